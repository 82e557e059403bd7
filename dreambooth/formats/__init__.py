"""File layouts of other tools, as data."""
