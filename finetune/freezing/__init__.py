"""What is frozen: chosen, planned, applied and proven."""
