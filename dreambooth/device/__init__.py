"""Hardware, CPU threads and CUDA-graph capture."""
