"""Captions of photographs, figures and screens; long descriptions and radiology reports."""
