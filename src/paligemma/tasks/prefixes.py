"""Prefixes that several benchmarks share, exactly as in training: nothing is stripped.

Source: big_vision configs/proj/paligemma/transfers.
"""

from __future__ import annotations

CAPTION_PREFIX = "caption en"


def answer_prefix(question: str) -> str:
    """`answer en {question}`, of most question answering."""
    return f"answer en {question}"


def bare_prefix(question: str) -> str:
    """The question alone: DocVQA and ChartQA were trained without task words."""
    return question
