"""The tab Upload & Concepts."""
