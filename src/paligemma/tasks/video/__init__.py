"""Captions and answers over the frames of a clip."""
