"""Draw images from plain data: pure functions that need no run, no network and no torch."""
