"""Benchmarks that a model trained on VQAv2 answers without further training."""
