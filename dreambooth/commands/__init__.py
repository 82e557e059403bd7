"""The command line: arguments in, the engine's functions called, sentences and bars out."""
