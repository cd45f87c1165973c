"""How fast a model answers on this machine, and how near that is to what the machine could do."""
