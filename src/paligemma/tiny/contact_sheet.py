"""The first pictures of a run over drawn scenes with the model's answers, on one sheet."""

from collections.abc import Sequence
from itertools import islice

from PIL import Image

from paligemma.eval.page_pictures import detection_of
from paligemma.example import Example, Prediction
from paligemma.outputs.detections import Detections
from paligemma.outputs.draw import DrawStyle, draw_detections
from paligemma.outputs.sheet import on_sheet, with_heads, with_lines

NUM_PICTURES, NUM_COLUMNS = 12, 3
_SIDE_PX = 448
_MAX_PIXELS = 2**24
_HEADS = ("Boxes of detect", "Masks of segment")

Answered = tuple[Example, Prediction]


def contact_sheet(examples: Sequence[Example], predictions: Sequence[Prediction]) -> Image.Image:
    """Draw one tile a picture: the boxes, the segmented mask, and every answer in words.

    Args:
        examples: examples of `tasks.scenes`, in order and with their pictures.
    """
    by_picture: dict[str | None, list[Answered]] = {}
    for example, answer in zip(examples, predictions, strict=True):
        by_picture.setdefault(example.unit, []).append((example, answer))
    tiles = [_tile(group) for group in islice(by_picture.values(), NUM_PICTURES)]
    return on_sheet(tiles, NUM_COLUMNS)


def _tile(group: Sequence[Answered]) -> Image.Image:
    """All detected boxes on the left, the segmented phrase on the right, words below."""
    picture = Image.fromarray(group[0][0].pictures[0].read(_MAX_PIXELS))
    by_task = {example.references["task"]: answer.objects for example, answer in group}
    style = DrawStyle(legend=False, min_side_px=_SIDE_PX)
    left, right = (
        draw_detections(
            picture,
            Detections(
                items=tuple(
                    detection_of(one, picture.size, one.score) for one in by_task.get(task, ())
                ),
                image_wh=picture.size,
            ),
            style=style,
        )
        for task in ("detect", "segment")
    )
    pair = Image.new("RGB", (left.width + right.width, left.height))
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width, 0))
    return with_lines(
        with_heads(pair, _HEADS), [_line(example, answer) for example, answer in group]
    )


def _line(example: Example, answer: Prediction) -> str:
    """The prompt with the answer, and the truth where the answer in words differs."""
    references = example.references
    if "objects" in references:
        number, true_number = len(answer.objects), len(references["objects"])
        return f"{example.prefix}: {number} found, {true_number} there"
    # A region to caption stands in the prompt as location tokens, which people cannot read.
    words, is_region, _ = example.prefix.partition("<loc")
    place = " of one region" if is_region else ""
    text, truth = answer.text.strip(), references["text"]
    return f"{words.strip()}{place}: {text}" + ("" if text == truth else f"  (true: {truth})")
