"""Changes to a built model from outside: low-rank adapters."""
