"""A user's own rows as a benchmark: what a fine-tuned model is measured with."""

from __future__ import annotations

from dataclasses import replace

from paligemma.example import MASK, OBJECTS, TEXT, Asking, Example
from paligemma.tasks.own.files import TASK, own_rows, read_own
from paligemma.tasks.own.found import SPLITS
from paligemma.tasks.own.masks import with_masks
from paligemma.tasks.own.scores import BY_PROMPT, METRICS, score_own
from paligemma.tasks.reading.formats import own_format
from paligemma.tasks.scenes.scores import METRICS as HEADLINES
from paligemma.tasks.task import NeededFile, Task

_ASK_TEXT = Asking(text_len=512, max_new_tokens=128, resize_method="bicubic", answer=TEXT)
_ASK_OBJECTS = replace(_ASK_TEXT, max_new_tokens=256, answer=OBJECTS)
_ASK_MASKS = replace(_ASK_OBJECTS, answer=MASK)


def asking_for(example: Example) -> Asking:
    """Return the asking of an example: masks, boxes or words."""
    if example.references["task"] != "detect":
        return _ASK_TEXT
    return _ASK_MASKS if example.references["slice"] == "segment" else _ASK_OBJECTS


TASKS: tuple[Task, ...] = (
    Task(
        name=TASK,
        title="Own rows, or own pictures with labels",
        family="own",
        splits=SPLITS,
        headline=f"detect_{HEADLINES['detect']}",
        asking=_ASK_OBJECTS,
        files=(
            NeededFile(
                "{split}.jsonl",
                "your own rows, or labels in another format of docs/finetuning.md",
                fields="image, prefix, suffix",
            ),
            NeededFile("images/*", "your own pictures, beside the file or in a folder `images`"),
            own_format(TASK, "masks, language, prefix, suffix, first_pixel"),
        ),
        reader=read_own,
        row_reader=own_rows,
        score=score_own,
        rules={"metric": (BY_PROMPT, *METRICS)},
        traps=(
            "The prompt decides the measure: `detect` and `segment` give average precision of "
            "boxes, `ocr` the character error rate, any other the share of answers that equal one "
            "of theirs; `--metric NAME` scores answers in words by another.",
            "Pictures are turned as their EXIF says and resized as the hub resizes them (bicubic), "
            "in training and in measuring.",
            "Masks of `segment` rows count where the model has a mask codec: of each label of a "
            "picture all masks together, as `segment_miou` and `segment_ciou`. A fine-tuning's "
            "looks at its held-out rows count boxes alone.",
            "Labels become `detect a ; b` over all classes of the set, and `segment a ; b` where "
            "every object of the picture has a mask, unless own-format.json sets masks to false.",
        ),
        asking_for=asking_for,
        with_masks=with_masks,
    ),
)
