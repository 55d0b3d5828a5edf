"""Samples: from sources of any kind to batches of tensors."""
