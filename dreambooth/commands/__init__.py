"""The command line: parses arguments, calls the engine, prints sentences and progress bars."""
