"""Reads detection sets: COCO, DocLayNet and any set in COCO's format.

There are two prompts. PaliGemma 2 was trained on "detect all classes" (arXiv:2412.03555, appendix
C): the model writes boxes until its room is full and may neither stop nor write noise, so that
every box gets a confidence. Pre-trained and most fine-tuned models take "detect cat ; dog".
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paligemma.example import Example
from paligemma.outputs.boxes import format_detections
from paligemma.processing.prompts import detect_prompt
from paligemma.tasks.reading.coco import (
    DetectionSet,
    LabelledImage,
    normalised,
    picture_paths,
    read_detection_set,
)
from paligemma.tasks.reading.coco_stream import is_coco_file
from paligemma.tasks.reading.examples import example_of
from paligemma.tasks.reading.files import find_file

ALL_CLASSES_PREFIX = "detect all classes"


@dataclass(frozen=True, kw_only=True)
class DetectionFiles:
    """Places of the files of a set; {split} stands for the split.

    Attributes:
        splits: name of each of our splits in the files.
        annotations: places of the annotation file below the data folder, the official one first.
        pictures: places of the folder of pictures, likewise.
    """

    name: str
    splits: dict[str, str]
    annotations: tuple[str, ...]
    pictures: tuple[str, ...]
    source: str
    beside: bool = False


COCO = DetectionFiles(
    name="coco-detection",
    splits={"val": "val2017", "train": "train2017"},
    annotations=("annotations/instances_{split}.json", "instances_{split}.json"),
    pictures=("{split}", "images/{split}"),
    source="cocodataset.org (COCO 2017)",
)
DOCLAYNET = DetectionFiles(
    name="doclaynet",
    splits={"test": "test", "val": "val", "train": "train"},
    annotations=("COCO/{split}.json", "DocLayNet_core/COCO/{split}.json"),
    pictures=("PNG", "DocLayNet_core/PNG"),
    source="github.com/DS4SD/DocLayNet (DocLayNet core dataset)",
)
OWN = DetectionFiles(
    name="own-detection",
    splits={"test": "test", "valid": "valid", "val": "val", "train": "train"},
    annotations=(
        "{split}/_annotations.coco.json",
        "annotations/instances_{split}.json",
        "annotations/{split}.json",
        "{split}.json",
    ),
    pictures=("{split}", "images/{split}", "images", "images/default"),
    source="your own labels, exported as COCO JSON",
    beside=True,
)


def read_detection(
    data: Path, split: str, *, places: DetectionFiles, names_classes: bool
) -> Iterator[Example]:
    """Read one example a picture, pictures without objects too.

    Args:
        names_classes: ask for all classes of the file by name instead of "all classes".
    """
    theirs = places.splits[split]
    candidates = [place.format(split=theirs) for place in places.annotations]
    if places.beside and (alone := _only_file(Path(data), places)) is not None:
        candidates.append(alone)
    found = read_detection_set(find_file(data, *candidates, source=places.source))
    folders = [Path(data) / place.format(split=theirs) for place in places.pictures]
    if places.beside:
        folders.insert(0, found.path.parent)
    prefix = detect_prompt(found.classes) if names_classes else ALL_CLASSES_PREFIX
    listed = {"classes": list(found.classes), "category_ids": list(found.category_ids)}
    for one, picture in picture_paths(found, folders):
        yield example_of(
            str(one.id),
            prefix,
            picture=picture,
            answers=[_target(one, found)],
            references={
                "size_hw": list(one.image.size_hw),
                "objects": list(one.objects),
                **(listed if names_classes else {}),
            },
        )


def _only_file(data: Path, places: DetectionFiles) -> str | None:
    """The annotation file of a folder that has one alone, named after no split: tools export
    `instances_default.json` (CVAT), `result.json` (Label Studio) or a name of the user's."""
    of_splits = {
        place.format(split=split) for place in places.annotations for split in places.splits
    }
    found = filter(is_coco_file, (*data.glob("*.json"), *data.glob("annotations/*.json")))
    names = {path.relative_to(data).as_posix() for path in found}
    return names.pop() if len(names) == 1 and not names & of_splits else None


def _target(one: LabelledImage, found: DetectionSet) -> str:
    """Write boxes with labels, without crowds, in a random order that every machine repeats."""
    rng = np.random.default_rng(zlib.crc32(f"{found.path.name} {one.id}".encode()))
    objects = [row for row in one.objects if not row["iscrowd"]]
    objects = [objects[k] for k in rng.permutation(len(objects))]
    boxes = [normalised(tuple(row["bbox"]), one.image) for row in objects]
    return format_detections(boxes, [row["label"] for row in objects])
