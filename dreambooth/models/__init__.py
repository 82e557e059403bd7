"""Loading models, and the one owner of the device."""
