"""Models on their way into memory, and the one owner of the device they live on."""
