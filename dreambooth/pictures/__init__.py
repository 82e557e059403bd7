"""From prompts to PNG files that tell how they were made."""
