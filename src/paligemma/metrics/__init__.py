"""Scores of predictions against references, without any model or benchmark."""
