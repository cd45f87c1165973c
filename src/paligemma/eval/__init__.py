"""Runs a task with a model and reports how sure the score is."""
