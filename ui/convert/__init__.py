"""The tab Convert."""
