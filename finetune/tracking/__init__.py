"""Where figures go: TensorBoard, JSON lines, the console."""
