"""Scores of predictions against references; knows no model and no task."""
