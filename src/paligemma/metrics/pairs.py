"""Checks of lists that every metric makes first, and edit distances."""

from collections.abc import Hashable, Sequence, Sized
from typing import get_args

from paligemma.errors import DataError
from paligemma.metrics.extras import missing_extra


def require_same_length(what: str, **lists: Sized) -> None:
    """Refuse parallel lists that are not equally long, or empty.

    Raises:
        DataError: lengths differ, or there is no example.
    """
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{num} {name}" for name, num in lengths.items())
        raise DataError(f"{what} needs lists of one length, got {found}; pair them by example")
    if not all(lengths.values()):
        raise DataError(f"{what} is undefined without examples; pass at least one")


def require_choice(what: str, value: object, choices: object) -> None:
    """Refuse an option that is none of its names.

    Args:
        choices: `Literal` type of the names.

    Raises:
        DataError: it is none of them.
    """
    names = get_args(choices)
    if value not in names:
        raise DataError(f"{what} must be one of {', '.join(names)}, got {value!r}")


def require_answers(what: str, answers: Sequence[Sequence[str]], *, at_least: int = 1) -> None:
    """Refuse questions without enough answers to compare with.

    Raises:
        DataError: one has fewer, or is one string where a list is meant.
    """
    for index, one in enumerate(answers):
        if isinstance(one, str):
            raise DataError(
                f"{what} needs a list of answers a question, got the string {one!r} for question "
                f"{index}; wrap it in a list"
            )
        if len(one) < at_least:
            raise DataError(
                f"{what} needs at least {at_least} answer(s) a question, got {len(one)} for "
                f"question {index}; leave it out"
            )


def edit_distance(a: Sequence[object], b: Sequence[object]) -> int:
    """Count the fewest insertions, deletions and replacements from a to b, in plain Python."""
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    if not a or not b:
        return len(a) + len(b)
    above = list(range(len(b) + 1))
    for row, unit in enumerate(a, start=1):
        left, diagonal = row, above[0]
        above[0] = row
        for column, other in enumerate(b, start=1):
            up = above[column]
            left = min(left + 1, up + 1, diagonal + (unit != other))
            above[column], diagonal = left, up
    return above[-1]


def levenshtein(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Compute `edit_distance` by rapidfuzz, which is fast enough for long texts.

    Raises:
        MissingExtraError: rapidfuzz is not installed.
    """
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise missing_extra("rapidfuzz", "eval", "this edit distance") from error
    if not (isinstance(a, str) and isinstance(b, str)):
        # rapidfuzz compares hashes; numbering the units makes them collide never.
        numbers: dict[Hashable, int] = {}
        a = [numbers.setdefault(unit, len(numbers)) for unit in a]
        b = [numbers.setdefault(unit, len(numbers)) for unit in b]
    return int(Levenshtein.distance(a, b))
