"""File formats of other tools, as data."""
