"""Previews for `plan` and `inspect`: costs, sizes, gradients, where the graph is cut."""
