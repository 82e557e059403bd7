"""Settings of each task with ranges, units and help sentences; concepts; presets."""
