"""Generation: from prompts to PNG files that contain their settings."""
