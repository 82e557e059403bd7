"""The long tier: exhaustive versions of what the other tests promise, run by `python -m pytest -m reliability`."""
