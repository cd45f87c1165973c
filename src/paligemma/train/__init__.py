"""Training of a model: loss, optimiser, data, checkpoints and one loop."""
