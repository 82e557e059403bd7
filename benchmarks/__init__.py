"""Measurements, each a command (`python -m benchmarks.NAME`) that prints a table and writes it as JSON on request."""
