"""Tasks: the loss of each sample, metrics with their direction, what outputs mean."""
