"""Referring segmentation of RefCOCO, RefCOCO+ and RefCOCOg, and detection.

Source: big_vision `configs/proj/paligemma/transfers/refcoco_seg.py` and
`evaluators/proj/paligemma/transfers/segmentation.py`; arXiv:2412.03555, appendix C.
"""

from dataclasses import replace
from functools import partial

from paligemma.example import ALL_CLASSES, MASK, OBJECTS, Asking
from paligemma.tasks.grounding import detection, referring, scores
from paligemma.tasks.published import asking_of
from paligemma.tasks.reading.class_names import COCO_CLASSES, DOCLAYNET_CLASSES
from paligemma.tasks.task import NeededFile, PublishedKey, Task, files_from, published_keys


def _referring(dataset: str, title: str) -> Task:
    splits = referring.SPLITS[dataset]
    theirs = {"val": ("val", "validation")}
    places = [
        (title, name, split)
        for split in splits
        if split != "train"
        for name in theirs.get(split, (split,))
    ]
    return Task(
        name=dataset,
        title=title,
        family="grounding",
        splits=(*splits, referring.COMBINED),
        headline="miou",
        asking=replace(asking_of("refcoco_seg"), answer=MASK),
        files=files_from(
            referring.COCO_TRAIN,
            NeededFile(
                f"{referring.refs_file(dataset)}.p",
                referring.REFER,
                fields="ref_id, ann_id, image_id, split, sentences[]: sent, sent_id",
            ),
            (
                "instances_train2017.json",
                "images[]: id, file_name, height, width; "
                "annotations[]: id, image_id, bbox, segmentation",
            ),
            "train2017/*.jpg",
        ),
        reader=partial(referring.read_refer, dataset=dataset),
        from_rows=referring.refer_examples,
        score=scores.score_referring,
        published=published_keys("miou", "mIoU", *places),
        traps=(
            "The prompt is the sentence alone, without `segment` before it.",
            "The refs files are pickles: the reader takes their plain data and runs nothing in "
            "them.",
            "A perfect box still loses pixels: edges are truncated, so a perfect answer can have "
            "an IoU of 0.9.",
            "Published figures are MIoU, the mean over sentences; much of the literature prints "
            "cIoU.",
            "The hub copies hold one outline of an object as a flat list, and more objects in val: "
            "that of RefCOCOg has 7,573, the official one 2,573.",
            "Train on train-combined: the three sets share pictures, and a training picture of one "
            "is a test picture of another.",
        ),
        transfer="refcoco_seg",
    )


# COCO's scorer takes the hundred best of a picture; with its label a box has about seven tokens.
_MAX_ANSWER_TOKENS = 704
_ASK_ALL = Asking(
    text_len=_MAX_ANSWER_TOKENS + 16, max_new_tokens=_MAX_ANSWER_TOKENS, answer=ALL_CLASSES
)
# Eighty names are about 250 tokens of prompt.
_ASK_NAMES = replace(_ASK_ALL, text_len=_MAX_ANSWER_TOKENS + 512, answer=OBJECTS)
_UNKNOWN = "Separator and length of the published models are unknown; ours are a choice."


def _detection(
    name: str,
    title: str,
    places: detection.DetectionFiles,
    *traps: str,
    names_classes: bool = True,
    classes: tuple[str, ...] | None = None,
    published: tuple[PublishedKey, ...] = (),
) -> Task:
    return Task(
        name=name,
        title=title,
        family="grounding",
        splits=tuple(places.splits),
        headline="ap",
        asking=_ASK_NAMES if names_classes else _ASK_ALL,
        files=files_from(
            places.source,
            (
                places.annotations[0],
                "images[]: id, file_name, height, width; annotations[]: image_id, "
                "category_id, bbox, area, iscrowd; categories[]: id, name",
            ),
            places.pictures[0],
        ),
        reader=partial(detection.read_detection, places=places, names_classes=names_classes),
        score=partial(scores.score_detection, classes=classes),
        published=published,
        traps=(
            "Every box needs a confidence; a model that stops early loses recall by the boxes "
            "that it never writes.",
            "At most a hundred boxes of a picture count, and crowds are neither found nor missed.",
            "Pictures without objects stay in, and boxes on them are mistakes.",
            *traps,
        ),
    )


_NAMED = "The prompt names all classes; published figures come from `detect all classes`."

TASKS: tuple[Task, ...] = (
    _referring("refcoco", "RefCOCO"),
    _referring("refcoco+", "RefCOCO+"),
    _referring("refcocog", "RefCOCOg"),
    _detection(
        "coco-detection",
        "COCO detection",
        detection.COCO,
        _UNKNOWN,
        names_classes=False,
        classes=COCO_CLASSES,
        published=published_keys("ap", "mAP", ("object detection", "COCO", "val")),
    ),
    _detection(
        "coco-detection-labels",
        "COCO detection, classes by name",
        detection.COCO,
        _NAMED,
        classes=COCO_CLASSES,
    ),
    _detection(
        "doclaynet",
        "DocLayNet",
        detection.DOCLAYNET,
        _UNKNOWN,
        "No source states whether the published figures belong to test or val.",
        names_classes=False,
        classes=DOCLAYNET_CLASSES,
        published=published_keys("ap", "mAP", ("object detection", "DocLayNet", "test")),
    ),
    _detection(
        "doclaynet-labels",
        "DocLayNet, classes by name",
        detection.DOCLAYNET,
        _NAMED,
        classes=DOCLAYNET_CLASSES,
    ),
    _detection(
        "own-detection",
        "Own detection set in COCO's format",
        detection.OWN,
        "The prompt is `detect a ; b` with all classes of the file, in the order of their ids.",
    ),
)
