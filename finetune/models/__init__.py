"""Networks: declared in YAML or pretrained, and what they are made of."""
