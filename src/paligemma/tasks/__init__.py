"""Benchmarks: how each reads its files, asks a model and scores its answers."""
