"""One run from its settings to its final state: start, resume, wait, evaluate."""
