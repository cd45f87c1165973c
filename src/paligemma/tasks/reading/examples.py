"""The commonest shape of an example: one prompt, and answers that are also targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from paligemma.example import Example, Picture


def example_of(
    name: str,
    prefix: str,
    *,
    picture: Picture | tuple[Picture, ...],
    answers: str | list[str],
    references: Any = None,
    targets: Iterable[str] | None = None,
    slices: Mapping[str, str] | None = None,
    unit: str | None = None,
) -> Example:
    """Build an example whose answers are its references and its targets.

    Args:
        name: id of the example.
        prefix: prompt of the example.
        picture: its picture, or several.
        answers: the one right answer, or all of them.
        references: data for the scorer to compare with; `answers` by default.
        targets: answers to train on; `answers` by default.
        slices: see `Example`.
        unit: see `Example`.
    """
    if targets is None:
        targets = [answers] if isinstance(answers, str) else answers
    return Example(
        id=name,
        prefix=prefix,
        pictures=picture if isinstance(picture, tuple) else (picture,),
        references=answers if references is None else references,
        targets=tuple(targets),
        slices=slices or {},
        unit=unit,
    )
