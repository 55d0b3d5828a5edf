"""Networks: declared in YAML or pretrained, and the inventory of their parameters."""
