"""Detection: COCO, DocLayNet and any set in COCO's format, asked in the two ways that models know.

"detect all classes" is how PaliGemma 2 was taught (arXiv:2412.03555, appendix C): the model writes
boxes until its room is full and may neither stop nor write noise, so that every box gets a
confidence. "detect cat ; dog" is how pre-trained and most fine-tuned models are asked.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from paligemma.errors import DataError
from paligemma.example import ALL_CLASSES, NOISE, OBJECTS, Asking, Example, Prediction
from paligemma.metrics.measure import Measure
from paligemma.outputs.boxes import encode_boxes, format_detections, format_loc
from paligemma.processing.prompts import detect_prompt
from paligemma.processing.resize import BILINEAR_ANTIALIAS
from paligemma.tasks.grounding.refer_files import normalised
from paligemma.tasks.reading.class_names import COCO_CLASSES, DOCLAYNET_CLASSES
from paligemma.tasks.reading.coco_sets import (
    DetectionSet,
    LabelledImage,
    pictures_of,
    read_detection_set,
)
from paligemma.tasks.reading.files import FilePicture, find_file
from paligemma.tasks.reading.rows import of_split
from paligemma.tasks.task import NeededFile, PublishedKey, Task

ALL_CLASSES_PREFIX = "detect all classes"
SEPARATOR = " ; "
# COCO's scorer takes the hundred best of a picture; with its label a box has about seven tokens.
MAX_ANSWER_TOKENS = 704
_COCO = "cocodataset.org (COCO 2017)"
_DOCLAYNET = "github.com/DS4SD/DocLayNet (DocLayNet core dataset)"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a set keeps its files; {split} stands for the split.

    Attributes:
        name: of the benchmark, for errors.
        splits: ours -> as the files call it.
        annotations, pictures: places below the data folder, the official one first.
        source: where they come from.
        beside: pictures may also lie beside the annotation file.
    """

    name: str
    splits: dict[str, str]
    annotations: tuple[str, ...]
    pictures: tuple[str, ...]
    source: str
    beside: bool = False


COCO = Layout(
    name="coco-detection",
    splits={"val": "val2017", "train": "train2017"},
    annotations=("annotations/instances_{split}.json", "instances_{split}.json"),
    pictures=("{split}", "images/{split}"),
    source=_COCO,
)
DOCLAYNET = Layout(
    name="doclaynet",
    splits={"test": "test", "val": "val", "train": "train"},
    annotations=("COCO/{split}.json", "DocLayNet_core/COCO/{split}.json"),
    pictures=("PNG", "DocLayNet_core/PNG"),
    source=_DOCLAYNET,
)
OWN = Layout(
    name="own-detection",
    splits={"test": "test", "valid": "valid", "val": "val", "train": "train"},
    annotations=(
        "{split}/_annotations.coco.json",
        "annotations/instances_{split}.json",
        "annotations/{split}.json",
        "{split}.json",
    ),
    pictures=("{split}", "images/{split}", "images"),
    source="your own labels, exported as COCO JSON",
    beside=True,
)


def read_detection(
    data: Path, split: str, *, layout: Layout, names_classes: bool
) -> Iterator[Example]:
    """One example a picture, those without objects too.

    Args:
        data: folder.
        split: of the layout.
        layout: where the files lie.
        names_classes: ask for all classes of the file by name instead of "all classes".
    """
    theirs = of_split(layout.splits, split, layout.name)
    places = [place.format(split=theirs) for place in layout.annotations]
    found = read_detection_set(find_file(data, *places, source=layout.source))
    folders = [Path(data) / place.format(split=theirs) for place in layout.pictures]
    if layout.beside:
        folders.insert(0, found.path.parent)
    prefix = detect_prompt(found.classes) if names_classes else ALL_CLASSES_PREFIX
    for one, path in pictures_of(found, folders):
        yield Example(
            id=str(one.id),
            prefix=prefix,
            pictures=(FilePicture(path=path, size_hw=(one.image.height, one.image.width)),),
            references={
                "size_hw": [one.image.height, one.image.width],
                "objects": list(one.objects),
                **({"classes": list(found.classes)} if names_classes else {}),
            },
            targets=(_target(one, found),) if names_classes else (),
        )


def _target(one: LabelledImage, found: DetectionSet) -> str:
    """Boxes with labels in an order of chance that is the same on every machine; no crowds."""
    rng = np.random.default_rng(zlib.crc32(f"{found.path.name} {one.id}".encode()))
    objects = [row for row in one.objects if not row["iscrowd"]]
    objects = [objects[k] for k in rng.permutation(len(objects))]
    boxes = [normalised(tuple(row["bbox"]), one.image) for row in objects]
    return format_detections(boxes, [row["label"] for row in objects])


def score_detection(
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    *,
    classes: Sequence[str] | None = None,
) -> list[Measure]:
    """COCO's average precision and recall, and average precision by class.

    Args:
        examples: of `read_detection`.
        predictions: their objects, each with a confidence.
        classes: names that may be found; None takes those that were asked for.
    """
    from paligemma.metrics.detection import detection_measures

    if not examples:
        raise DataError("average precision needs pictures, got none")
    names = list(classes or examples[0].references["classes"])
    number = {name: k for k, name in enumerate(names, start=1)}
    references, found = [], []
    for example, prediction in zip(examples, predictions, strict=True):
        if (
            bare := next((one for one in prediction.objects if one.score is None), None)
        ) is not None:
            raise DataError(
                "average precision ranks boxes, so each needs a confidence; the prediction of "
                f"{example.id} has none for {bare.label[:80]!r}: write its score, or 1 for all"
            )
        references.append(_numbered(example, number))
        height, width = example.references["size_hw"]
        found.append(
            [
                {
                    "label": one.label,
                    "bbox": _bbox(one.box_yxyx, height, width),
                    "score": one.score,
                }
                for one in prediction.objects
            ]
        )
    categories = {k: name for name, k in number.items()}
    return detection_measures(found, references, categories, by_class=True)


def _numbered(example: Example, number: dict[str, int]) -> list[dict[str, Any]]:
    rows = []
    for row in example.references["objects"]:
        if row["label"] not in number:
            raise DataError(
                f"picture {example.id} holds the class {row['label']!r}, which the benchmark does "
                f"not have among its {len(number)}; check the annotation file"
            )
        rows.append({**row, "category_id": number[row["label"]]})
    return rows


def _bbox(box_yxyx: Sequence[float], height: int, width: int) -> list[float]:
    y0, x0, y1, x1 = box_yxyx
    return [x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of an answer to train on.

    Attributes:
        text: location tokens, a class or a separator.
        has_loss: whether the model is to learn to write it.
    """

    text: str
    has_loss: bool = True


def noisy_target(
    boxes_yxyx: Sequence[Sequence[float]],
    labels: Sequence[str],
    rng: np.random.Generator,
    *,
    max_tokens: int,
    count_tokens: Callable[[str], int],
    separator: str = SEPARATOR,
    noise: str = NOISE,
) -> tuple[Piece, ...]:
    """The answer that teaches a model to go on: objects in random order, then noise to the end.

    The loss covers everything but the coordinates of noise boxes: where they lie means nothing,
    that they are noise does. No end token follows, since none may be written at inference. An
    object that no longer fits is left out whole.

    Args:
        boxes_yxyx: normalised to [0, 1].
        labels: of the boxes.
        rng: gives the order and the noise.
        max_tokens: room for the answer.
        count_tokens: tokens of a text.
        separator: between objects; unpublished.
        noise: class of the noise boxes.

    Source: arXiv:2412.03555, appendix C.
    """
    if len(boxes_yxyx) != len(labels):
        raise DataError(f"every box needs a label, got {len(boxes_yxyx)} and {len(labels)}")
    pieces: list[Piece] = []
    room = max_tokens

    def add(bins: Sequence[int], label: str, *, is_noise: bool) -> bool:
        nonlocal room
        new = [Piece(text=separator)] if pieces and separator else []
        new.append(Piece(text=format_loc(bins), has_loss=not is_noise))
        new.append(Piece(text=f" {label}"))
        needed = sum(count_tokens(piece.text) for piece in new)
        if needed < 1:
            raise DataError("count_tokens must count at least one token of a box, got none")
        if needed > room:
            return False
        pieces.extend(new)
        room -= needed
        return True

    for k in rng.permutation(len(labels)):
        add(encode_boxes(boxes_yxyx[k]).tolist(), labels[k], is_noise=False)
    fits = True
    while fits:
        y, x = np.sort(rng.random((2, 2)), axis=1)
        bins = encode_boxes([y[0], x[0], y[1], x[1]]).tolist()
        fits = add(bins, noise, is_noise=True)
    return tuple(pieces)


_ASK_ALL = Asking(
    text_len=MAX_ANSWER_TOKENS + 16,
    max_new_tokens=MAX_ANSWER_TOKENS,
    resize_method=BILINEAR_ANTIALIAS,
    answer=ALL_CLASSES,
)
# Eighty names are about 250 tokens of prompt.
_ASK_NAMES = replace(_ASK_ALL, text_len=MAX_ANSWER_TOKENS + 512, answer=OBJECTS)
_FIELDS = (
    "images[]: id, file_name, height, width; annotations[]: image_id, category_id, bbox, area, "
    "iscrowd; categories[]: id, name"
)
_TRAPS = (
    "Every box needs a confidence; where a model is not made to go on to the end, boxes that it "
    "never writes cost recall.",
    "At most a hundred boxes of a picture count, and crowds are neither found nor missed.",
    "Pictures without objects stay in: boxes on them are mistakes.",
)
_UNKNOWN = "Separator and length of the published models are unknown; these are ours."


def _task(
    name: str,
    title: str,
    layout: Layout,
    *,
    classes: tuple[str, ...] | None,
    names_classes: bool,
    published: tuple[PublishedKey, ...] = (),
    traps: tuple[str, ...],
) -> Task:
    return Task(
        name=name,
        title=title,
        family="grounding",
        splits=tuple(layout.splits),
        headline="ap",
        asking=_ASK_NAMES if names_classes else _ASK_ALL,
        files=(
            NeededFile(path=layout.annotations[0], source=layout.source, fields=_FIELDS),
            NeededFile(path=layout.pictures[0], source=layout.source),
        ),
        read=partial(read_detection, layout=layout, names_classes=names_classes),
        score=partial(score_detection, classes=classes),
        published=published,
        traps=(*_TRAPS, *traps),
    )


def _published(ours: str, theirs: str) -> tuple[PublishedKey, ...]:
    return (
        PublishedKey(
            measure="ap", task="object detection", split=theirs, metric="mAP", our_split=ours
        ),
    )


_NAMED = "Asks for all classes by name; published figures come from `detect all classes`."

TASKS: tuple[Task, ...] = (
    _task(
        "coco-detection",
        "COCO detection",
        COCO,
        classes=COCO_CLASSES,
        names_classes=False,
        published=_published("val", "COCO"),
        traps=(_UNKNOWN,),
    ),
    _task(
        "coco-detection-labels",
        "COCO detection, classes by name",
        COCO,
        classes=COCO_CLASSES,
        names_classes=True,
        traps=(_NAMED,),
    ),
    _task(
        "doclaynet",
        "DocLayNet",
        DOCLAYNET,
        classes=DOCLAYNET_CLASSES,
        names_classes=False,
        published=_published("test", "DocLayNet"),
        traps=(_UNKNOWN, "Whether the published figures are of test or of val is not said."),
    ),
    _task(
        "doclaynet-labels",
        "DocLayNet, classes by name",
        DOCLAYNET,
        classes=DOCLAYNET_CLASSES,
        names_classes=True,
        traps=(_NAMED,),
    ),
    _task(
        "own-detection",
        "Own detection set in COCO's format",
        OWN,
        classes=None,
        names_classes=True,
        traps=("Asks `detect a ; b` for all classes of the file, in the order of their ids.",),
    ),
)
