"""The training loop, and the wiring that builds a run from its config."""
