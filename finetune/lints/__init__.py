"""Notes on networks that do not suit their task or data, found by running a few samples."""
