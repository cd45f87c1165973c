"""Result files of other programs, as rows of this project.

{"question_id" | "questionId" | "image_id" | "image" | "id",
 "answer" | "caption" | "prediction" | "response" | "text"}         servers, LLaVA, captions
{name: {"direct_answer", "multiple_choice"} | answer}               A-OKVQA, tables by file name
{"image_id", "category_id", "bbox": [x, y, width, height], "score"}  COCO detections
{"doc_id", "input", "filtered_resps", ...}                           lmms-eval, see `sample_logs`

An id is that of an example, or names its picture where that has one question or the row tells
which, or is the place of the question that the row repeats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from paligemma.errors import DataError
from paligemma.eval.sample_logs import Placed, by_place, each_sample, is_sample, of_sample
from paligemma.eval.scored import some_ids
from paligemma.example import Example
from paligemma.jobs.json_lines import number_of
from paligemma.tasks.reading.coco import by_id
from paligemma.tasks.reading.prefixes import question_of

# The one that names most examples is taken, the first of equals: a VQA row may name its image too,
# and a caption may have an id of its own.
_IDS = ("question_id", "questionId", "image_id", "image", "id")
_TEXTS = (
    *("answer", "caption", "direct_answer", "multiple_choice", "prediction", "response", "text"),
)
# Where one of these stands beside `answer`, that is the right answer.
_MODELS_OWN = ("prediction", "response")
_NUM_NAMED = 5
_NUM_KEYS = 10
_MAX_KEY_CHARS = 40
_DETECTION = frozenset({"image_id", "category_id", "bbox"})


def own_rows(
    rows: Iterator[Placed], examples: Sequence[Example], notices: list[str]
) -> Iterator[Placed]:
    """Rows with `id`, `text` and `objects`, whichever way they were written.

    Args:
        rows: place of each row, for errors, and the row, or what is wrong with it.
        examples: questions of the split; boxes in pixels need their sizes and categories.
        notices: gets a sentence for what rows hold that nothing can match.

    Returns:
        Rows, with an error in the place of each bad one.

    Raises:
        DataError: detections for a task without sizes.
    """
    names = _Names(examples)
    detections = _Detections(examples, names)
    told: list[tuple[str, dict[str, Any]]] = []
    for where, row in each_sample(rows):
        if isinstance(row, DataError):
            yield where, row
        # Detections that went through COCO's tools have an id of their own.
        elif row.keys() >= _DETECTION and "text" not in row:
            if error := detections.fault_of(where, row):
                yield where, error
        elif is_sample(row):
            told.append((where, of_sample(row, _IDS)))
        else:
            told += ((where, one) for one in _unfolded(row, names))
    yield from detections.rows()
    notices += detections.notices()
    hits = {key: sum(names.has(row, key) for _, row in told) for key in _IDS}
    ids: Sequence[str] = sorted(_IDS, key=lambda key: -hits[key])
    placed = [] if any(hits.values()) else by_place([row for _, row in told], examples)
    if placed:
        notices.append(
            f"{len(placed)} predictions have numbers for ids; each belongs to the question at that "
            "place, which its prompt repeats"
        )
        told = [
            (where, {**row, "question_id": one.id})
            for (where, row), one in zip(told, placed, strict=True)
        ]
        ids = _IDS
    empty: list[str] = []
    beside: list[str] = []
    for where, row in told:
        try:
            name, text = _id_and_text(where, row, ids, beside)
        except DataError as error:
            yield where, error
            continue
        name = names.example_of(name, row)
        if text is None:
            empty.append(name)
        yield where, {**row, "id": name, "text": text or ""}
    if empty:
        notices.append(
            f"{len(empty)} predictions are null or NaN and count as empty answers: "
            f"{some_ids(empty)}"
        )
    if beside:
        notices.append(
            f"{len(beside)} rows hold an answer beside the field {beside[0]!r}, which is taken for "
            "what the model said; the answer is taken for the right one and left out"
        )


def _unfolded(row: dict[str, Any], names: _Names) -> Iterator[dict[str, Any]]:
    """The rows of an object that holds one a name; otherwise the row itself."""
    is_row = any(key in row for key in _IDS) and any(key in row for key in _TEXTS)
    of_each = row and all(isinstance(one, dict) for one in row.values())
    if is_row or not (of_each or any(map(names.is_known, row))):
        yield row
        return
    for name, told in row.items():
        fields = told if isinstance(told, dict) else {"text": told}
        if {"direct_answer", "multiple_choice"} <= fields.keys():
            fields = {names.wanted: fields[names.wanted]}
        yield {"question_id": name, **fields}


def _id_and_text(
    where: str, row: Mapping[str, Any], ids: Sequence[str], beside: list[str]
) -> tuple[str, str | None]:
    """Name and text of a row, None for a text that is null or NaN."""
    key = next((one for one in ids if one in row), None)
    texts = [one for one in _TEXTS if one in row]
    if key == "id" and "text" in texts:
        texts = ["text"]
    own = [one for one in texts if one in _MODELS_OWN]
    if len(own) == 1 and set(texts) == {*own, "answer"}:
        beside += own
        texts = own
    # A bare id and an answer are how data files write questions with their right answers.
    if key is None or len(texts) != 1 or (key, *texts) == ("id", "answer"):
        found = ", ".join(repr(one[:_MAX_KEY_CHARS]) for one in [*row][:_NUM_KEYS])
        more = f" and {len(row) - _NUM_KEYS:,} more" if len(row) > _NUM_KEYS else ""
        raise DataError(
            f"{where} must hold an id and a text: one of {', '.join(_IDS)} and one of "
            f"{', '.join(_TEXTS)} (answer only beside a name of its own for the id); it has "
            f"{found or 'no field'}{more}; rename its fields, and keep one text"
        )
    name = _as_text(row[key])
    if not name:
        raise DataError(
            f"{where} must hold an id and a text, got {key} {row[key]!r:.80}; write the task's id "
            "as text"
        )
    text = row[texts[0]]
    if text is None or (isinstance(text, float) and math.isnan(text)):
        return name, None
    if _as_text(text) is None:
        raise DataError(
            f"{where} must hold an id and a text, got {texts[0]} {text!r:.80}; write the answer "
            "as text"
        )
    return name, _as_text(text)


def _as_text(value: Any) -> str | None:
    """Text, or a number as text, 7.0 as 7 since tables make whole numbers floats; else None."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value) if not isinstance(value, float) or math.isfinite(value) else None


def _number_or_name(row: Mapping[str, Any], key: str, where: str) -> str:
    """An id of a detection; raise DataError where it is none."""
    if not (found := _as_text(row[key])):
        raise DataError(
            f"{where}: {key} must be a whole number or text, got {row[key]!r:.80}; write that of "
            "the data"
        )
    return found


class _Names:
    """Which example a row names."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.ids = {one.id for one in examples}
        first = examples[0].references if examples else None
        is_choice = isinstance(first, dict) and "options" in first
        self.wanted = "multiple_choice" if is_choice else "direct_answer"
        self.others: dict[str, list[Example]] = {}
        for one in examples:
            path = getattr(one.pictures[0], "path", None) if len(one.pictures) == 1 else None
            paths = {path.name, path.stem} if isinstance(path, Path) else set()
            for name in {one.unit, *paths} - {None}:
                self.others.setdefault(str(name), []).append(one)

    def example_of(self, name: str, row: Mapping[str, Any]) -> str:
        """Id of the example that a name means; the name itself where it means none or several."""
        if name in self.ids:
            return name
        found = self.others.get(name) or self.others.get(PureWindowsPath(name).name, [])
        asked = row.get("prompt", row.get("question"))
        if len(found) > 1 and isinstance(asked, str):
            said = [(question_of(one.prefix) or one.prefix).strip().lower() for one in found]
            lengths = [len(text) * (text in asked.lower()) for text in said]
            found = [one for one, n in zip(found, lengths, strict=True) if n and n == max(lengths)]
        return found[0].id if len(found) == 1 else name

    def is_known(self, name: str) -> bool:
        """Whether a name means an example."""
        return self.example_of(name, {}) in self.ids

    def has(self, row: Mapping[str, Any], key: str) -> bool:
        """Whether a field of a row means an example."""
        name = _as_text(row.get(key))
        return name is not None and self.example_of(name, row) in self.ids


class _Detections:
    """Boxes of COCO's result format, gathered by picture."""

    def __init__(self, examples: Sequence[Example], names: _Names) -> None:
        self.examples = {one.id: one for one in examples}
        self.names = names
        self.labels = _categories(examples)
        self.found: dict[str, list[dict[str, Any]]] = {}
        self.num_strange = 0
        self.strange: set[str] = set()

    def fault_of(self, where: str, row: Mapping[str, Any]) -> DataError | None:
        """Take a detection, or tell what is wrong with it.

        Raises:
            DataError: the task has no sizes or categories.
        """
        try:
            image, one = self._read(where, row)
        except DataError as error:
            if self.examples and not self.labels:
                raise
            return error
        self.found.setdefault(image, []).extend(one)
        return None

    def _read(self, where: str, row: Mapping[str, Any]) -> tuple[str, list[dict[str, Any]]]:
        """The id of a picture, and the object on it, none where it is of no example."""
        if self.examples and not self.labels:
            raise DataError(
                f"{where}: boxes of COCO's result format belong to a benchmark of detection with "
                "categories; for another write id, text and objects"
            )
        image, category = (_number_or_name(row, key, where) for key in ("image_id", "category_id"))
        for key in ("file_name", "image_id"):  # some programs number pictures by their names
            if isinstance(name := row.get(key), str) and self.names.is_known(name):
                image = self.names.example_of(name, {})
                break
        example = self.examples.get(image)
        if example is None:  # named and left out like any other
            return image, []
        bbox = row["bbox"]
        if not isinstance(bbox, list) or len(bbox) != 4:
            raise DataError(f"{where}: bbox is [x, y, width, height], got {bbox!r:.80}")
        x, y, width, height = (number_of(one, f"{where}: bbox") for one in bbox)
        rows, columns = example.references["size_hw"]
        box = [y / rows, x / columns, (y + height) / rows, (x + width) / columns]
        one: dict[str, Any] = {
            "label": self.labels.get(category, f"category {category}"),
            "box_yxyx": box,
        }
        if "score" in row:
            said = math.nan if row["score"] is None else row["score"]
            one["score"] = number_of(said, f"{where}, image {image}: score")
        if category not in self.labels:
            self.num_strange += 1
            if len(self.strange) < _NUM_NAMED:
                self.strange.add(category)
        return image, [one]

    def rows(self) -> Iterator[Placed]:
        """A row a picture."""
        for image, objects in self.found.items():
            yield f"boxes of image {image}", {"id": image, "text": "", "objects": objects}

    def notices(self) -> list[str]:
        """A sentence on categories that the data has not."""
        if not self.num_strange:
            return []
        known = list(self.labels)
        return [
            f"{self.num_strange} detections have a category_id that is none of the data's, such as "
            f"{', '.join(sorted(self.strange))}, and find nothing: it has {len(known)} from "
            f"{known[0]} to {known[-1]}; where yours count from another start, all find the wrong "
            "classes"
        ]


def _categories(examples: Sequence[Example]) -> dict[str, str]:
    """Names of the categories by the id of the annotation file, in its order: all that the examples
    tell.
    """
    first = examples[0].references if examples else None
    if not isinstance(first, dict) or "size_hw" not in first:
        return {}
    listed = zip(first.get("category_ids", ()), first.get("classes", ()), strict=False)
    told = {
        one["category_id"]: one["label"]
        for example in examples
        for one in example.references["objects"]
    }
    named = dict(listed) | told  # of categories of one name, only the objects tell the others
    return {str(key): named[key] for key in sorted(named, key=by_id)}
