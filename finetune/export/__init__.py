"""Bring a trained network out of its run: in formats of other libraries, and certified."""
