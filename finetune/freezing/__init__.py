"""Freezing: select parameters, plan phases, apply the mask, prove it."""
