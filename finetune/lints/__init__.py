"""Notes on a network that does not suit its task or data, found by running it on a few samples."""
