"""Load a model by its name and ask it about pictures."""
