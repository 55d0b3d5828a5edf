"""Rows kept on disk under a name that stands for all they depend on: sealed, budgeted, shared."""
