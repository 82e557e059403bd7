"""Loading models, and the model manager, which owns the device."""
