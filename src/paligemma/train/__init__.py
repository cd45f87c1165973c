"""Teach a model: loss, optimiser, data and one loop for every stage."""
