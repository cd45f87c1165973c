"""Reads predictions that another program made, checks them and matches them with examples.

A notice names and counts everything that cannot be scored as it stands:

    missing id            scored as an empty answer, or refused
    id of no example      left out
    second line of an id  left out, the first counts
    confidence not finite counts as 0, so that it ranks last
    coordinate not finite the object is left out, as where it is beyond any picture
    mask not readable     scored as an empty answer
    row not readable      left out, as long as another can be read
"""

from __future__ import annotations

import codecs
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paligemma import json_file
from paligemma.errors import ConfigError, DataError
from paligemma.eval.official_rows import Placed, own_rows
from paligemma.eval.scored import some_ids
from paligemma.example import Example, FoundObject, Prediction
from paligemma.jobs.json_lines import (
    MAX_LINE_BYTES,
    object_of,
    prediction_from_json,
    read_lines,
)
from paligemma.outputs.rle import decode_rle

if TYPE_CHECKING:
    from paligemma.outputs.vqvae import MaskCodec

EMPTY, REFUSE = "empty", "refuse"
# Of a picture's sides; more is no place, and would overflow as an area. Pixels stay below.
_FARTHEST = 1e6
# Of a result file that is one list; a million captions have 0.1 GB.
MAX_BYTES = 1 << 30
# Farther than any box that a model places beside a picture: such numbers are pixels.
_PIXELS_FROM = 4.0


@dataclass(frozen=True, kw_only=True, eq=False)
class ForeignPredictions:
    """Predictions of a file.

    Attributes:
        path: the file.
        predictions: predictions by example id; every number is finite.
        duplicates: ids of lines that were left out, once for each line.
        bad_scores: ids of predictions with a confidence that was not finite, now 0.
        bad_boxes: ids of predictions with an object whose box is no place, now left out.
        far_boxes: ids of predictions with a box far outside the picture, as pixels would be.
        notices: sentences on what its rows hold besides.
    """

    path: Path
    predictions: dict[str, Prediction]
    duplicates: tuple[str, ...] = ()
    bad_scores: tuple[str, ...] = ()
    bad_boxes: tuple[str, ...] = ()
    far_boxes: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def read_predictions(
    path: str | os.PathLike[str], examples: Sequence[Example] = ()
) -> ForeignPredictions:
    """Predictions of a file with `id`, `text`, and where there are any `objects` in each row.

    Args:
        path: JSON lines, or one JSON list of the same rows; also the result files of
            `official_rows`.
        examples: questions of the split, for result files whose boxes are in pixels.

    Raises:
        DataError: unreadable, or no row is a prediction.
    """
    path = Path(path)
    found: dict[str, Prediction] = {}
    duplicates, bad_scores, bad_boxes, far_boxes = [], [], [], []
    notices: list[str] = []
    faults: list[DataError] = []
    for where, row in own_rows(_rows(path), examples, notices):
        try:
            one = _prediction(row, where)
        except DataError as error:
            faults.append(error)
            continue
        if one.id in found:
            duplicates.append(one.id)
            continue
        kept = [item for item in one.objects if all(map(_is_place, item.box_yxyx))]
        if len(kept) < len(one.objects):
            bad_boxes.append(one.id)
        if any(max(map(abs, item.box_yxyx)) > _PIXELS_FROM for item in kept):
            far_boxes.append(one.id)
        if any(not _is_scored(item) for item in kept):
            bad_scores.append(one.id)
        objects = tuple(item if _is_scored(item) else replace(item, score=0.0) for item in kept)
        logprob = one.logprob
        if logprob is not None and not math.isfinite(logprob):
            logprob = None
        found[one.id] = replace(one, objects=objects, logprob=logprob)
    if faults and not found:
        raise faults[0]
    if faults:
        notices.append(
            f"{len(faults):,} rows cannot be read and were left out, such as {faults[0]}"
        )
    if not found:
        raise DataError(f"{path} must hold at least one prediction, got none; name another file")
    return ForeignPredictions(
        path=path,
        predictions=found,
        duplicates=tuple(duplicates),
        bad_scores=tuple(bad_scores),
        bad_boxes=tuple(bad_boxes),
        far_boxes=tuple(far_boxes),
        notices=tuple(notices),
    )


def _prediction(row: dict[str, Any] | DataError, where: str) -> Prediction:
    """The prediction of a row; a confidence or coordinate that is null is one that is NaN."""
    if isinstance(row, DataError):
        raise row
    if isinstance(objects := row.get("objects"), list):
        row = {**row, "objects": [_with_nan(one) for one in objects]}
    return prediction_from_json(row, where)


def _with_nan(one: Any) -> Any:
    if not isinstance(one, dict):
        return one
    box = one.get("box_yxyx")
    if isinstance(box, list):
        one = {**one, "box_yxyx": [math.nan if c is None else c for c in box]}
    return {**one, "score": math.nan} if one.get("score", 0) is None else one


def _is_place(coordinate: float) -> bool:
    return math.isfinite(coordinate) and abs(coordinate) <= _FARTHEST


def _is_scored(one: FoundObject) -> bool:
    return one.score is None or math.isfinite(one.score)


def _rows(path: Path) -> Iterator[Placed]:
    """Where each row stands, and the row: of lines, of one list, or one object on many lines."""
    if not _is_one_value(path):
        for number, line in read_lines(path):
            where = f"{path}, line {number}"
            try:
                yield where, object_of(line, path, number)
            except DataError as error:
                yield where, error
        return
    try:
        rows = json_file.read_json(path, max_bytes=MAX_BYTES, finite=False)
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}); mend it") from error
    if isinstance(rows, dict):
        rows = [rows]
    for number, row in enumerate(rows, start=1):
        where = f"{path}, row {number}"
        if not isinstance(row, dict):
            row = DataError(f"{where} must be a JSON object, got {row!r:.80}; mend it")
        yield where, row


def _is_one_value(path: Path) -> bool:
    """Whether a list or object goes on beyond its line, rather than each line being a row.

    So is a line that is longer than a row may be.
    """
    try:
        with open(path, "rb") as file:
            line = b""
            while not line and (read := file.readline(MAX_LINE_BYTES)):
                line = read.removeprefix(codecs.BOM_UTF8).strip()
            goes_on = line.endswith((b"{", b"[", b",", b":")) or len(read) == MAX_LINE_BYTES
            return line.startswith(b"[") or (
                line.startswith(b"{") and goes_on and bool(file.read(1))
            )
    except OSError as error:
        raise DataError(f"{path} must be a readable file ({error}); check the path") from error


def match_examples(
    foreign: ForeignPredictions, examples: Sequence[Example], *, missing: str = EMPTY
) -> tuple[list[Prediction], list[str]]:
    """One prediction an example, in order, and a sentence for everything that was amiss.

    Args:
        foreign: predictions of a file.
        examples: questions of the split, in order.
        missing: "empty" scores an example without prediction as an empty answer; "refuse" raises.

    Raises:
        DataError: predictions are missing and may not be, or none belongs to an example.
        ConfigError: an unknown policy.
    """
    if missing not in (EMPTY, REFUSE):
        raise ConfigError(f"missing must be {EMPTY} or {REFUSE}, got {missing!r}")
    ids = {one.id for one in examples}
    absent = [one.id for one in examples if one.id not in foreign.predictions]
    extra = [name for name in foreign.predictions if name not in ids]
    if len(absent) == len(ids):
        raise DataError(
            f"{foreign.path} must hold ids of the split, but none of its "
            f"{len(foreign.predictions)} is: it has {some_ids(extra)}, the split "
            f"{some_ids([one.id for one in examples])}; write the task's ids"
        )
    if absent and missing == REFUSE:
        raise DataError(
            f"{foreign.path} must answer every example, misses {len(absent)} of {len(ids)}: "
            f"{some_ids(absent)}; add them, or count them as empty answers"
        )
    notices = [
        *foreign.notices,
        *(
            f"{len(names)} {what}: {some_ids(names)}"
            for names, what in (
                (absent, f"of {len(ids)} examples have no prediction and count as empty answers"),
                (extra, "predictions belong to no example and were left out"),
                (foreign.duplicates, "further lines repeat an id and were left out"),
                (
                    foreign.bad_scores,
                    "predictions hold a confidence that is no number; it became 0",
                ),
                (foreign.bad_boxes, "predictions hold a box that is no number; it was left out"),
                (
                    foreign.far_boxes,
                    "predictions hold a box far outside the picture; box_yxyx is in [0, 1], not "
                    "pixels",
                ),
            )
            if names
        ),
    ]
    matched, unreadable = [], []
    for example in examples:
        one = foreign.predictions.get(example.id)
        if one is not None and not _has_masks_of(example, one):
            unreadable.append(example.id)
            one = None
        matched.append(one or Prediction(id=example.id, text="", error="no prediction"))
    if unreadable:
        notices.append(
            f"{len(unreadable)} predictions hold a mask that is no run lengths of their picture "
            f"and count as empty answers: {some_ids(unreadable)}"
        )
    return matched, notices


def _has_masks_of(example: Example, one: Prediction) -> bool:
    """Whether every mask of a prediction can be read, at the size of the example's own mask."""
    references = example.references
    wanted = references.get("mask") if isinstance(references, Mapping) else None
    size = [int(n) for n in wanted["size"]] if wanted is not None else None
    for found in one.objects:
        if found.mask is None:
            continue
        try:
            shape = list(decode_rle(found.mask).shape)
        except DataError:
            return False
        if size not in (None, shape):
            return False
    return True


def decoded_masks(
    predictions: Sequence[Prediction], examples: Sequence[Example], codec: MaskCodec
) -> list[Prediction]:
    """The predictions, with the objects that a text spells where it came without objects.

    Args:
        predictions: one prediction for each example, in order.
        examples: questions of a benchmark of masks, whose references hold `mask` with its size.
        codec: decoder of the codewords.
    """
    from paligemma.jobs.model_answerer import found_object
    from paligemma.outputs.assemble import to_detections
    from paligemma.outputs.parse import parse_objects

    decoded = []
    for one, example in zip(predictions, examples, strict=True):
        parsed = parse_objects(one.text)
        if parsed.objects and not one.objects:
            height, width = example.references["mask"]["size"]
            size_wh = int(width), int(height)
            objects = tuple(
                found_object(item, None, image_wh=size_wh, padded_wh=size_wh, is_decoded=True)
                for item in to_detections(parsed, size_wh, codec=codec)
                if item.is_valid
            )
            one = replace(one, objects=objects)
        decoded.append(one)
    return decoded
