"""Pure functions from plain data to an image: no run, no network, no torch."""
