"""A taught model leaves: files for other tools."""
