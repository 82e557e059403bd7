"""How the embedded starter model is made: a procedural world, and the pre-training on it."""
