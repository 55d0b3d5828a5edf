"""Optimizers, their parameter groups, and rates as pure functions of the step."""
