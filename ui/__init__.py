"""The page: four tabs over the engine. Nothing below this package knows of it."""
