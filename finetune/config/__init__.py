"""The nodes of a config: closed and documented. Imports neither torch nor another room."""
