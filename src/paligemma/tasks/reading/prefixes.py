"""Texts that several benchmarks share, exactly as in training: nothing is stripped.

Source: big_vision configs/proj/paligemma/transfers.
"""

from __future__ import annotations

import string

CAPTION_PREFIX = "caption en"
# TensorFlow's lower-casing at its default encoding: no other letter changes.
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_ANSWER, _CHOICES, _OPTIONS = "answer en ", "answer en  ", " choose from: "


def answer_prefix(question: str) -> str:
    """Return `answer en {question}`, the prompt of most question answering."""
    return _ANSWER + question


def bare_prefix(question: str) -> str:
    """Return the question alone: DocVQA and ChartQA were trained without task words."""
    return question


def choices_prefix(question: str, options: list[str]) -> str:
    """Return `answer en  {question} choose from: A \\t B \\t C`, two spaces after the language.

    The template of the original ends in a space and its format adds one; options are joined by
    space, tab, space.
    """
    return _CHOICES + question + _OPTIONS + " \t ".join(options)


def caption_prefix(language: str) -> str:
    """Return `caption {language}`."""
    return f"caption {language}"


def question_of(prefix: str) -> str | None:
    """Return the question of `answer_prefix` or `choices_prefix`; None for other prefixes."""
    if prefix.startswith(_CHOICES) and _OPTIONS in prefix:
        return prefix.removeprefix(_CHOICES).rpartition(_OPTIONS)[0]
    return prefix.removeprefix(_ANSWER) if prefix.startswith(_ANSWER) else None


def lower_ascii(text: str) -> str:
    """Lower A to Z alone, as the original's op `lower` does for targets."""
    return text.translate(_LOWER)
