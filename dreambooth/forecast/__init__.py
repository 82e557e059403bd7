"""What a training will take: memory, disk and time, before it starts."""
