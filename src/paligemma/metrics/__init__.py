"""Scores of predictions against references, without any model or benchmark.

A function `..._measures` takes lists with one entry an example. It raises DataError where their
lengths differ or there is nothing to score.
"""
