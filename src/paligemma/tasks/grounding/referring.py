"""Referring segmentation: RefCOCO, RefCOCO+ and RefCOCOg, one question a sentence.

Source: big_vision `configs/proj/paligemma/transfers/refcoco_seg.py` and
`evaluators/proj/paligemma/transfers/segmentation.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paligemma.errors import DataError
from paligemma.example import MASK, Asking, Example, Picture, Prediction
from paligemma.metrics.measure import Measure
from paligemma.metrics.segmentation import ObjectMask, referring_measures
from paligemma.outputs.boxes import decode_boxes, format_detections
from paligemma.outputs.rle import decode_rle
from paligemma.processing.resize import BILINEAR
from paligemma.tasks.grounding.refer_files import (
    COCO,
    REFER,
    SPLIT_BY,
    SPLITS,
    CocoImage,
    Outlines,
    Ref,
    normalised,
    read_refs,
    run_lengths,
    said_in,
)
from paligemma.tasks.reading.files import FilePicture, find_file
from paligemma.tasks.reading.rows import of_split
from paligemma.tasks.task import NeededFile, PublishedKey, Task
from paligemma.vocab import NUM_LOC, NUM_SEG, SEG_PER_MASK

if TYPE_CHECKING:
    from paligemma.outputs.vqvae import MaskCodec

# The three training splits together, without any picture that a val or test split shows.
COMBINED = "train-combined"
_TITLES = {"refcoco": "RefCOCO", "refcoco+": "RefCOCO+", "refcocog": "RefCOCOg"}
_ANSWER = re.compile(rf"((?:<loc\d{{4}}>){{4}})((?:<seg\d{{3}}>){{{SEG_PER_MASK}}})")
_FOLDERS = ("train2017", "images/train2017", "train2014", "images/train2014", "images")


def read_refer(data: Path, split: str, *, dataset: str) -> Iterator[Example]:
    """One example a sentence; sentences on one picture are one unit.

    Args:
        data: folder with `refcoco/refs(unc).p` and so on, COCO's instances and its pictures.
        split: of SPLITS, or "train-combined".
        dataset: "refcoco", "refcoco+" or "refcocog".
    """
    if split == COMBINED:
        yield from _read_combined(data)
        return
    of_split(dict.fromkeys((*SPLITS[dataset], COMBINED)), split, dataset)
    refs = [ref for ref in read_refs(data, dataset) if ref.split == split]
    yield from _examples(data, dataset, refs, id_prefix="")


def _read_combined(data: Path) -> Iterator[Example]:
    """The training set of the recipe: 24,407 pictures."""
    every = {dataset: read_refs(data, dataset) for dataset in SPLITS}
    held_out = {ref.image_id for refs in every.values() for ref in refs if ref.split != "train"}
    for dataset, refs in every.items():
        kept = [ref for ref in refs if ref.split == "train" and ref.image_id not in held_out]
        yield from _examples(data, dataset, kept, id_prefix=f"{dataset}/")


def _examples(data: Path, dataset: str, refs: list[Ref], *, id_prefix: str) -> Iterator[Example]:
    if not refs:
        raise DataError(f"{dataset} has no described object in this split; check its refs file")
    outlines = Outlines(data, dataset, refs)
    pictures = _Pictures(data)
    for ref in refs:
        image, found = outlines.of(ref)
        where = f"{outlines.path}, annotation {ref.ann_id}"
        references = {
            "box_yxyx": list(normalised(found.bbox, image)),
            "mask": run_lengths(found.segmentation, image, where),
            "ann_id": ref.ann_id,
        }
        picture = pictures.of(ref.image_id, image)
        for _, sent_id, sentence in said_in([ref], ref.split):
            yield Example(
                id=f"{id_prefix}{ref.ref_id}-{sent_id}",
                prefix=sentence,
                pictures=(picture,),
                references=references,
                slices={"dataset": dataset} if id_prefix else {},
                unit=str(ref.image_id),
            )


class _Pictures:
    """Where COCO's training pictures lie, under the names of 2017 or of 2014."""

    def __init__(self, data: Path) -> None:
        self._folder = find_file(data, *_FOLDERS, source=COCO)

    def of(self, image_id: int, image: CocoImage) -> Picture:
        names = (
            f"{image_id:012d}.jpg",
            f"COCO_train2014_{image_id:012d}.jpg",
            Path(image.file_name).name,
        )
        paths = [self._folder / name for name in names]
        return FilePicture(
            path=next((path for path in paths if path.is_file()), paths[0]),
            size_hw=(image.height, image.width),
        )


def referring_target(example: Example, codec: MaskCodec) -> str:
    """The answer to train on: four location tokens, sixteen codewords, no label.

    Args:
        example: of `read_refer`.
        codec: writes masks as codewords.
    """
    from paligemma.outputs.vqvae import mask_to_codes

    box = np.asarray(example.references["box_yxyx"])
    mask = decode_rle(example.references["mask"])
    return format_detections([box], [None], [mask_to_codes(codec, mask, box).tolist()])


def score_referring(
    examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[Measure]:
    """MIoU, cIoU and box accuracies; an answer counts if it begins with a box and a mask.

    Raises:
        DataError: an answer holds mask tokens but its prediction no decoded mask.
    """
    truths = [
        ObjectMask(
            box_yxyx=tuple(one.references["box_yxyx"]),
            mask=one.references["mask"],
        )
        for one in examples
    ]
    found = [
        _named_object(prediction, example.references["mask"]["size"])
        for example, prediction in zip(examples, predictions, strict=True)
    ]
    return referring_measures(found, truths)


def _named_object(prediction: Prediction, size_hw: Sequence[int]) -> ObjectMask | None:
    """The object of an answer; None where the reference evaluator counts it as invalid."""
    match = _ANSWER.match(prediction.text)
    if match is None:
        return None
    bins = [int(n) for n in re.findall(r"\d{4}", match[1])]
    codes = [int(n) for n in re.findall(r"\d{3}", match[2])]
    if max(bins) >= NUM_LOC or max(codes) >= NUM_SEG:
        return None
    box = decode_boxes(bins)
    # Edges are truncated to whole pixels; a box without any is invalid.
    y0, x0, y1, x1 = (box * np.array([*size_hw] * 2, np.float32)).astype(int).tolist()
    if y1 <= y0 or x1 <= x0:
        return None
    mask = prediction.objects[0].mask if prediction.objects else None
    if mask is None:
        raise DataError(
            f"prediction {prediction.id} writes a mask as tokens, but its decoded mask is missing; "
            "name the codec with --mask-codec, or add the run lengths"
        )
    ymin, xmin, ymax, xmax = box.tolist()
    return ObjectMask(box_yxyx=(ymin, xmin, ymax, xmax), mask=mask)


def _published(dataset: str) -> tuple[PublishedKey, ...]:
    names = {"val": ("val", "validation")}
    return tuple(
        PublishedKey(
            measure="miou", task=_TITLES[dataset], split=theirs, metric="mIoU", our_split=ours
        )
        for ours in SPLITS[dataset]
        if ours != "train"
        for theirs in names.get(ours, (ours,))
    )


def _task(dataset: str) -> Task:
    stem = f"{dataset}/refs({SPLIT_BY[dataset]})"
    return Task(
        name=dataset,
        title=_TITLES[dataset],
        family="grounding",
        splits=(*SPLITS[dataset], COMBINED),
        headline="miou",
        asking=Asking(text_len=48, max_new_tokens=48, resize_method=BILINEAR, answer=MASK),
        files=(
            NeededFile(
                path=f"{stem}.p",
                source=REFER,
                fields="ref_id, ann_id, image_id, split, sentences[]: sent, sent_id",
            ),
            NeededFile(
                path="instances_train2017.json",
                source=COCO,
                fields="images[]: id, file_name, height, width; "
                "annotations[]: id, image_id, bbox, segmentation",
            ),
            NeededFile(path="train2017/*.jpg", source=COCO),
        ),
        read=partial(read_refer, dataset=dataset),
        score=score_referring,
        published=_published(dataset),
        traps=(
            "The prompt is the sentence alone: no `segment` before it.",
            "The refs files are pickles: only their plain data is read, nothing in them is run.",
            "A perfect box still loses pixels: edges are truncated, so a perfect answer can have "
            "an IoU of 0.9.",
            "Published figures are MIoU, the mean over sentences; much of the literature prints "
            "cIoU.",
            "Train on train-combined: the three sets share pictures, and a training picture of one "
            "is a test picture of another.",
        ),
        transfer="refcoco_seg",
    )


TASKS: tuple[Task, ...] = tuple(_task(dataset) for dataset in SPLITS)
