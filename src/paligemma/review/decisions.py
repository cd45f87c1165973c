"""What a person decided about rows, kept as it comes, and the rows that come of it.

decisions.jsonl   every decision with the key of its labels, appended; the last one of a row counts
train.jsonl       accepted and corrected rows, as `paligemma train` reads them
images/           their pictures
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from paligemma.errors import ConfigError, DataError, PaliGemmaError
from paligemma.example import Picture
from paligemma.jobs.json_lines import read_rows
from paligemma.jobs.labelling.finding import open_input
from paligemma.jobs.labelling.folder import BATCH, LISTING, LabelFolder
from paligemma.jobs.labelling.records import Record
from paligemma.jobs.run_folder import cut_torn_line, read_json_object
from paligemma.outputs.boxes import encode_boxes, format_detections
from paligemma.outputs.parse import parse_objects
from paligemma.processing.image import MAX_PIXELS
from paligemma.processing.prompts import object_prompt
from paligemma.whole_file import whole_file, write_whole

logger = logging.getLogger(__name__)

DECISIONS, TRAIN, IMAGES = "decisions.jsonl", "train.jsonl", "images"
STATES = ("accepted", "rejected")
_MAX_OBJECTS, _MAX_TEXT, _MAX_LABEL = 1024, 8192, 256
# What no tokenizer takes, and what no label has: surrogates, control characters.
_NO_TEXT = re.compile(r"[\x00\ud800-\udfff]")
_NO_LABEL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def checked(decision: Any, record: Record) -> Record:
    """A decision about a row as it is kept.

    Args:
        decision: `{"state": "accepted" or "rejected", "objects": [{"label", "box_yxyx"}]}`, or
            "text" in the place of objects where the answer is words.

    Raises:
        DataError: it is no such object; names what is wrong.
    """
    if not isinstance(decision, dict) or decision.get("state") not in STATES:
        raise DataError(f"a decision has a state, {' or '.join(STATES)}, got {repr(decision)[:80]}")
    kept: Record = {"row": record["row"], "state": decision["state"]}
    if decision["state"] == "rejected":
        return kept
    if "detections" not in record:
        text = decision.get("text")
        is_text = isinstance(text, str) and text.strip() and len(text) <= _MAX_TEXT
        if not isinstance(text, str) or not is_text or _NO_TEXT.search(text):
            raise DataError(
                f"an answer has 1 to {_MAX_TEXT} characters of Unicode, got {repr(text)[:80]}"
            )
        return {**kept, "text": text.strip()}
    objects = decision.get("objects")
    if not isinstance(objects, list) or len(objects) > _MAX_OBJECTS:
        raise DataError(f"objects are a list of at most {_MAX_OBJECTS}, got {repr(objects)[:80]}")
    return {**kept, "objects": [_object(one) for one in objects]}


def _object(one: Any) -> Record:
    fields = one if isinstance(one, dict) else {}
    box: Any = fields.get("box_yxyx")
    label = fields.get("label")
    is_box = isinstance(box, list) and len(box) == 4
    if not (is_box and all(type(v) in (int, float) for v in box) and isinstance(label, str)):
        raise DataError(f"an object has a label and a box_yxyx, got {repr(one)[:80]}")
    y0, x0, y1, x1 = (min(1.0, max(0.0, float(value))) for value in box)
    if not (y0 < y1 and x0 < x1):  # NaN too
        raise DataError(f"a box has ymin < ymax and xmin < xmax within the picture, got {box}")
    label = label.strip()
    if _NO_LABEL.search(label) or len(label) > _MAX_LABEL:
        raise DataError(
            f"a label is one line of at most {_MAX_LABEL} characters, got {repr(label)[:80]}"
        )
    format_detections([(y0, x0, y1, x1)], [label])  # A label that cannot be read back is refused.
    return {"label": label, "box_yxyx": [y0, x0, y1, x1]}


class Reviewed:
    """The folder of a review.

    Args:
        path: folder, which may be new.
        labels: folder of the labels.
        records: rows that are looked at.

    Raises:
        DataError: there are no labels, or the decisions that are there are damaged.
        ConfigError: the decisions that are there are about other labels.
    """

    def __init__(self, path: Path, labels: Path, records: Sequence[Record]) -> None:
        self.path, self._labels = path, LabelFolder(labels)
        self.records = {int(one["row"]): one for one in records}
        self.order = list(self.records)
        about = read_json_object(labels / BATCH)
        try:
            named, self._key = about["input"], str(about["key"])
            self._source = open_input(
                named["named"],
                labels / LISTING,
                pictures=None if named["pictures"] is None else Path(named["pictures"]),
                column=named["column"],
                split=named["split"],
            )
        except (KeyError, TypeError) as error:
            raise DataError(f"{labels / BATCH} is damaged ({error!r}); restore it") from error
        self._parts = self._labels.parts()
        self.decisions: dict[int, Record] = {}
        path.mkdir(parents=True, exist_ok=True)
        if (path / DECISIONS).exists():
            with open(path / DECISIONS, "r+b") as file:
                cut_torn_line(file)
            for number, row in read_rows(path / DECISIONS):
                self._keep(row, number)

    def _keep(self, decision: Record, line: int) -> None:
        """A decision of an earlier review."""
        row, key = decision.get("row"), decision.get("key")
        if type(row) is not int or decision.get("state") not in STATES:
            raise DataError(
                f"{self.path / DECISIONS}, line {line} is no decision about a row; remove the line"
            )
        if key != self._key:
            raise ConfigError(
                f"{self.path} holds decisions about other labels (key {key!r:.40}) than those of "
                f"{self._labels.path} (key {self._key}); name a new --output"
            )
        self.decisions[row] = decision

    def pictures(self, row: int) -> tuple[Picture, ...]:
        """The picture of a row, or the frames of its example; none is read yet.

        Raises:
            PaliGemmaError: they can no longer be found.
        """
        part = next((one for one in reversed(self._parts) if one.first_row <= row), None)
        if part is None:
            raise DataError(f"{self._labels.path} has no row {row}")
        for number, (_, found) in enumerate(self._source.rows(part.start), part.first_row):
            if number == row:
                if found.error is not None:
                    raise DataError(found.error)
                return found.pictures
        raise DataError(f"the input has no row {row} any more; it was changed")

    def picture(self, row: int) -> np.ndarray:
        """uint8[H, W, 3] of a row's picture, or of its first frame.

        Raises:
            PaliGemmaError: it can no longer be read.
        """
        return self.pictures(row)[0].read(MAX_PIXELS)

    def decide(self, row: int, decision: Any) -> Record:
        """Keep a decision; it is on disk once this returns.

        Raises:
            DataError: no such row, or no decision.
            ConfigError: the disk takes no more.
        """
        if row not in self.records:
            raise DataError(f"row {row} is not among those that are looked at")
        kept = {**checked(decision, self.records[row]), "key": self._key}
        try:
            self._append(json.dumps(kept).encode() + b"\n")
        except OSError as error:
            raise ConfigError(
                f"decisions are kept in {self.path / DECISIONS}, which failed ({error.strerror})"
            ) from error
        self.decisions[row] = kept
        return kept

    def _append(self, line: bytes) -> None:
        path = self.path / DECISIONS
        before = path.stat().st_size if path.exists() else 0
        try:
            with open(path, "ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):  # The next decision must not follow half a line.
                os.truncate(path, before)
            raise

    def counts(self) -> Counter[str]:
        """Decided rows by state, those of earlier reviews too, and "open" ones of this."""
        counts = Counter(str(one["state"]) for one in list(self.decisions.values()))
        counts["open"] = sum(row not in self.decisions for row in self.order)
        return counts

    def write_rows(self) -> int:
        """Write train.jsonl and the pictures of the rows that were accepted; returns their number.

        Rows that another choice of this folder showed are among them. A row whose picture can no
        longer be read is left out, with a warning.
        """
        (self.path / IMAGES).mkdir(exist_ok=True)
        rows = list(self._accepted())
        write_whole(self.path / TRAIN, (json.dumps(row) + "\n" for row in rows))
        return len(rows)

    def _accepted(self) -> Iterator[Mapping[str, Any]]:
        left_out: list[str] = []
        for record in self._decided_records():
            row, decision = int(record["row"]), self.decisions[int(record["row"])]
            try:
                prefix, suffix = taught(record, checked(decision, record))
                names = self._saved(row)
            except PaliGemmaError as error:
                left_out.append(f"row {row}: {error}")
                continue
            image = names if len(names) > 1 else names[0]
            yield {"image": image, "prefix": prefix, "suffix": suffix}
        if left_out:
            logger.warning(
                "%d accepted rows are left out of %s, such as %s",
                len(left_out),
                TRAIN,
                left_out[0],
            )

    def _decided_records(self) -> Iterator[Record]:
        """The labels of all accepted rows, in order; those of this review are at hand."""
        wanted = {row for row, one in self.decisions.items() if one["state"] == "accepted"}
        elsewhere = wanted - self.records.keys()
        found = {row: self.records[row] for row in wanted & self.records.keys()}
        if elsewhere:
            every = self._labels.records()
            found |= {int(one["row"]): one for one in every if int(one["row"]) in elsewhere}
        if gone := sorted(wanted - found.keys()):
            logger.warning(
                "%d accepted rows, such as row %d, are no longer among the labels of %s, and are "
                "left out of %s",
                len(gone),
                gone[0],
                self._labels.path,
                TRAIN,
            )
        for row in sorted(found):
            yield found[row]

    def _saved(self, row: int) -> list[str]:
        """Names of the files with the pictures of a row, which are written once."""
        pictures = self.pictures(row)
        names = []
        for number, picture in enumerate(pictures):
            frame = f"-{number}" if len(pictures) > 1 else ""
            names.append(f"{IMAGES}/{row:010d}{frame}.png")
            if not (self.path / names[-1]).exists():
                image = Image.fromarray(picture.read(MAX_PIXELS))
                with whole_file(self.path / names[-1]) as partial:
                    image.save(partial)
        return names


def taught(record: Record, decision: Record) -> tuple[str, str]:
    """Prompt and answer that a reviewed row teaches.

    Objects that stand as the model wrote them keep its codewords; where one was moved or added,
    a row of `segment` teaches `detect`, for nobody drew its mask. Labels of the answer that the
    prompt does not name are added to it: nothing is taught to be told unasked.
    """
    prompt = str(record["prompt"])
    if "text" in decision:
        return prompt, str(decision["text"])
    parsed = parse_objects(str(record["text"])).objects
    as_written = {(*one.loc, one.label): one.seg for one in parsed}
    # A corrected label leaves the mask of its box, where that has one object alone.
    places = Counter(one.loc for one in parsed)
    alone: dict[tuple[int, ...], Sequence[int] | None] = {
        one.loc: one.seg for one in parsed if places[one.loc] == 1
    }
    boxes = [one["box_yxyx"] for one in decision["objects"]]
    labels = [one["label"] for one in decision["objects"]]
    if not boxes:
        return prompt, ""
    bins = [tuple(map(int, one)) for one in encode_boxes(boxes).tolist()]
    codes = [
        as_written.get((*one, label), alone.get(one))
        for one, label in zip(bins, labels, strict=True)
    ]
    if prompt.startswith("segment ") and not all(codes):
        prompt, codes = prompt.replace("segment ", "detect ", 1), [None] * len(codes)
    return _naming(prompt, labels), format_detections(boxes, labels, codes if any(codes) else None)


def _naming(prompt: str, labels: Sequence[str]) -> str:
    """A prompt of `detect` or `segment` that names all labels; any other as it is."""
    asked = object_prompt(prompt)
    if asked is None:
        return prompt
    more = dict.fromkeys(label for label in labels if label not in asked.labels)
    return " ; ".join((prompt.rstrip(), *more))
