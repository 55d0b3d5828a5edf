"""The frozen prefix runs once per sample: what it is, whether caching it pays, store, replay."""
