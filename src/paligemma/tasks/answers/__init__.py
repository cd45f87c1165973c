"""Short answers to questions about one or two pictures."""
