"""Settings of each task with their ranges, units and sentences, concepts, and presets."""
