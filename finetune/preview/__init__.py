"""What `plan` and `inspect` show before a run: costs, sizes, where the graph is cut."""
