"""Labels looked at by a person, in a browser, and kept as rows to learn from."""
