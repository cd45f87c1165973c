"""Logs of answers that lmms-eval writes, and rows whose numbers are places in a list of questions.

{"doc_id", "input", "target", "filtered_resps": [text], metric: {"question_id", ...} | number}
{"logs": [{"doc_id", "doc": {"question_id", "question", ...}, "resps": [[text]], ...}]}

A number alone tells nothing, so it is taken for a place only where every row's prompt holds the
question of that place: LLaVA numbers POPE's three files through, in an order of its own.
Source: EvolvingLMMs-Lab/lmms-eval, loggers/evaluation_tracker.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from typing import Any

from paligemma.errors import DataError
from paligemma.example import Example
from paligemma.tasks.reading.prefixes import question_of

# Where a row stands, for errors, and the row, or what is wrong with it.
Placed = tuple[str, dict[str, Any] | DataError]

_LOGS = "logs"
_ANSWERS = ("filtered_resps", "resps")
# Four files have 24 orders.
_MAX_FILES = 4
_FIRST_NUMBERS = (0, 1)


def each_sample(rows: Iterator[Placed]) -> Iterator[Placed]:
    """The rows, with those of a whole log in its place."""
    for where, row in rows:
        logs = row.get(_LOGS) if isinstance(row, dict) else None
        if not isinstance(logs, list):
            yield where, row
            continue
        for number, one in enumerate(logs, start=1):
            place = f"{where}, log {number}"
            if not isinstance(one, dict):
                one = DataError(f"{place} must be a JSON object, got {one!r:.80}; mend it")
            yield place, one


def is_sample(row: Mapping[str, Any]) -> bool:
    """Whether a row is one of a log."""
    return "doc_id" in row and any(name in row for name in _ANSWERS)


def of_sample(row: Mapping[str, Any], ids: Sequence[str]) -> dict[str, Any]:
    """A row of a log with the fields of a result file; `text` is absent where it holds none.

    Args:
        ids: names that an id may have, in the data's row or beside a metric.
    """
    nested = [one for one in row.values() if isinstance(one, dict)]
    told = {key: one[key] for one in nested for key in ids if key in one}
    doc = row.get("doc")
    prompt = row.get("input", doc.get("question") if isinstance(doc, dict) else None)
    found = {**told, "doc_id": row["doc_id"], "prompt": prompt}
    answer: Any = next(row[name] for name in _ANSWERS if name in row)
    while isinstance(answer, list) and answer:
        answer = answer[0]
    return found if isinstance(answer, list | dict) else {**found, "text": answer}


def by_place(rows: Sequence[Mapping[str, Any]], examples: Sequence[Example]) -> list[Example]:
    """The examples whose places the numbers of all rows are; none where they are not certain.

    Args:
        rows: rows with a number, `doc_id` or `question_id`, and the `prompt` that was asked.
        examples: questions of the split, in order.
    """
    numbers = [number for row in rows if (number := _number(row)) is not None]
    asked = [text.lower() for row in rows if isinstance(text := _prompt(row), str)]
    if not len(rows) == len(numbers) == len(asked) > 0:
        return []
    is_log = all("doc_id" in row for row in rows)  # which counts from 0
    firsts = _FIRST_NUMBERS[:1] if is_log else _FIRST_NUMBERS
    found = []
    for ordered in _orders(examples):
        for first in firsts:
            places = [number - first for number in numbers]
            if min(places) < 0 or max(places) >= len(ordered):
                continue
            named = [ordered[place] for place in places]
            if all(_question(one) in text for one, text in zip(named, asked, strict=True)):
                found.append(named)
    if len({tuple(one.id for one in named) for named in found}) != 1:
        return []
    # Other numbers are places only if questions tell them apart.
    return found[0] if is_log or len(set(map(_question, found[0]))) > 1 else []


def _number(row: Mapping[str, Any]) -> int | None:
    value = row.get("doc_id", row.get("question_id"))
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 10 else None


def _prompt(row: Mapping[str, Any]) -> Any:
    return row.get("prompt", row.get("question"))


def _question(one: Example) -> str:
    return (question_of(one.prefix) or one.prefix).strip().lower()


def _orders(examples: Sequence[Example]) -> Iterator[list[Example]]:
    """The examples in order, each file of theirs alone, and their files in every order."""
    files: dict[str, list[Example]] = {}
    for one in examples:
        files.setdefault(str(one.slices.get("file", "")), []).append(one)
    if not 1 < len(files) <= _MAX_FILES:
        yield list(examples)
        return
    yield from files.values()
    for order in permutations(files.values()):
        yield [one for file in order for one in file]
