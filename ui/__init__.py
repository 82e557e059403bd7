"""The page: four tabs over the engine, which does not depend on it."""
