"""Checkpoints in and out: released layouts, strict loading, saving, converting, diagnosing."""
