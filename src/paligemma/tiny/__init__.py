"""The embedded model: its stages, objectives, data and report. Nothing here serves other models."""
