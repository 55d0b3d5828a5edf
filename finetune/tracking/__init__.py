"""Trackers, which receive the figures of a run: TensorBoard, JSON lines, the console."""
