"""A contest: the same fine-tuning by this project, by hand, by peers, and at the limit."""
