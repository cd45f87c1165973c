"""Training of the embedded model: its stages, objective, data and mask codec."""
