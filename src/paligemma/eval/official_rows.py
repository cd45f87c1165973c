"""Result files as test servers and COCO's tools take them, as rows of this project.

{"question_id" | "questionId" | "image_id" | "image",
 "answer" | "caption" | "prediction" | "text"}                                 VQA, captions
{question: {"direct_answer", "multiple_choice"} | answer}                      A-OKVQA
{"image_id", "category_id", "bbox": [x, y, width, height], "score"}            COCO detections
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from paligemma.errors import DataError
from paligemma.example import Example
from paligemma.jobs.json_lines import number_of

# The first that a row holds is taken: a VQA row may name its image beside its question.
_IDS = ("question_id", "questionId", "image_id", "image")
_TEXTS = ("answer", "caption", "direct_answer", "multiple_choice", "prediction", "text")
_NUM_NAMED = 5
_DETECTION = frozenset({"image_id", "category_id", "bbox"})

Placed = tuple[str, dict[str, Any]]


def own_rows(
    rows: Iterator[Placed], examples: Sequence[Example], notices: list[str]
) -> Iterator[Placed]:
    """Rows with `id`, `text` and `objects`, whichever way they were written.

    Args:
        rows: place of each row, for errors, and the row.
        examples: questions of the split; boxes in pixels need their sizes and categories.
        notices: gets a sentence for what rows hold that nothing can match.

    Raises:
        DataError: a detection that is malformed, or of a picture or task without a size.
    """
    detections = _Detections(examples)
    ids = {one.id for one in examples}
    wanted = {
        "multiple_choice" if "options" in one.references else "direct_answer"
        for one in examples[:1]
        if isinstance(one.references, dict)
    }
    for where, row in rows:
        # Detections that went through COCO's tools have an id of their own.
        if row.keys() >= _DETECTION and "text" not in row:
            detections.add(where, row)
        elif {"id", "text"} <= row.keys():
            yield where, row
        elif (named := _text_row(row)) is not row:
            yield where, named
        elif "id" in row or "text" in row:
            yield where, row
        elif row and all(isinstance(one, dict) for one in row.values()):
            for name, inner in row.items():
                both = "direct_answer" in inner and "multiple_choice" in inner
                kept = {key: one for key, one in inner.items() if not both or key in wanted}
                yield where, _text_row({"question_id": name, **kept})
        elif ids & row.keys() and all(isinstance(one, str) for one in row.values()):
            for name, text in row.items():
                yield where, {"id": name, "text": text}
        else:
            yield where, _text_row(row)
    yield from detections.rows()
    if detections.num_strange:
        known = sorted(detections.labels)
        some = ", ".join(map(str, sorted(detections.strange)[:_NUM_NAMED]))
        notices.append(
            f"{detections.num_strange} detections have a category_id that is none of the data's, "
            f"such as {some}, and find nothing: it has {len(known)} from {known[0]} to "
            f"{known[-1]}; where yours count from another start, all find the wrong classes"
        )


def _text_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row under this project's names, as it is where its names are others."""
    name = next((key for key in _IDS if key in row), None)
    text = [key for key in _TEXTS if key in row]
    if name is None or len(text) != 1:
        return row
    return {"id": row[name], "text": row[text[0]]}


class _Detections:
    """Boxes of COCO's result format, gathered by picture."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = {one.id: one for one in examples}
        self.labels = _categories(examples)
        self.found: dict[str, list[dict[str, Any]]] = {}
        self.num_strange = 0
        self.strange: set[int] = set()

    def add(self, where: str, row: Mapping[str, Any]) -> None:
        image, category, bbox = str(row["image_id"]), row["category_id"], row["bbox"]
        objects = self.found.setdefault(image, [])
        example = self.examples.get(image)
        if example is None:  # of no example: named and left out like any other
            return
        size_hw = (
            example.references.get("size_hw") if isinstance(example.references, dict) else None
        )
        if size_hw is None or not self.labels:
            raise DataError(
                f"{where}: boxes of COCO's result format belong to a benchmark of detection with "
                "categories; for another write id, text and objects"
            )
        if isinstance(category, bool) or not isinstance(category, int):
            raise DataError(f"{where}: category_id must be a whole number, got {category!r:.80}")
        if not isinstance(bbox, list) or len(bbox) != 4:
            raise DataError(f"{where}: bbox is [x, y, width, height], got {bbox!r:.80}")
        x, y, width, height = (number_of(one, f"{where}: bbox") for one in bbox)
        rows, columns = size_hw
        box = [y / rows, x / columns, (y + height) / rows, (x + width) / columns]
        label = self.labels.get(category)
        if label is None:
            self.num_strange += 1
            if len(self.strange) < _NUM_NAMED:
                self.strange.add(category)
            label = f"category {category}"
        one = {"label": label, "box_yxyx": box}
        objects.append(one | ({"score": row["score"]} if "score" in row else {}))

    def rows(self) -> Iterator[Placed]:
        for image, objects in self.found.items():
            yield f"boxes of image {image}", {"id": image, "text": "", "objects": objects}


def _categories(examples: Sequence[Example]) -> dict[Any, str]:
    """Names of the categories by the id of the annotation file: all that the examples tell."""
    first = examples[0].references if examples else None
    listed = (
        dict(zip(first["category_ids"], first["classes"], strict=False))
        if isinstance(first, dict) and {"category_ids", "classes"} <= first.keys()
        else {}
    )
    return listed | {
        one["category_id"]: one["label"]
        for example in examples
        if isinstance(example.references, dict)
        for one in example.references.get("objects", ())
        if isinstance(one, dict) and "category_id" in one
    }
