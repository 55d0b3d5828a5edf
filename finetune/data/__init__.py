"""Samples: from any source to batches of tensors."""
