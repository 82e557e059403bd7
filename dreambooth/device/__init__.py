"""What hardware this is, how many threads compute on it, and CUDA-graph capture."""
