"""Referring segmentation: how well a mask fits the object that an expression names.

Source: big_vision `evaluators/proj/paligemma/transfers/segmentation.py`. MIoU is the mean over
expressions, cIoU (also called oIoU) divides all intersections by all unions.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paligemma.errors import DataError
from paligemma.metrics.measure import Measure, mean_measure, ratio_measure
from paligemma.metrics.pairs import require_same_length
from paligemma.outputs.boxes import Box, box_iou, decode_boxes
from paligemma.outputs.masks import MaskRegion, paste_mask
from paligemma.outputs.rle import decode_rle
from paligemma.vocab import NUM_LOC, NUM_SEG, SEG_PER_MASK

BOX_THRESHOLDS = (0.5, 0.75)

_ANSWER = re.compile(rf"((?:<loc\d{{4}}>){{4}})((?:<seg\d{{3}}>){{{SEG_PER_MASK}}})")

# int64[16] codewords -> float32[64, 64] around [-1, 1].
DecodeMask = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectMask:
    """One object: its box and its mask.

    Attributes:
        mask: bool[H, W] at the size of the picture, a `MaskRegion`, or COCO's run lengths; None
            for a box without a mask, which overlaps nothing as a mask.
    """

    box_yxyx: Box
    mask: np.ndarray | MaskRegion | Mapping[str, Any] | None


def read_tokens(text: str) -> tuple[Box, np.ndarray] | None:
    """Read the box and the codewords with which an answer begins.

    Args:
        text: whole answer with its tokens spelt out, nothing stripped.

    Returns:
        The normalised box and int64[16] codewords; None unless four location tokens and sixteen
        codewords stand at the very start. All after them is ignored.
    """
    match = _ANSWER.match(text)
    if match is None:
        return None
    bins = [int(n) for n in re.findall(r"\d{4}", match[1])]
    codes = [int(n) for n in re.findall(r"\d{3}", match[2])]
    if max(bins) >= NUM_LOC or max(codes) >= NUM_SEG:
        return None
    y0, x0, y1, x1 = decode_boxes(bins).tolist()
    return (y0, x0, y1, x1), np.array(codes, np.int64)


def read_object(text: str, image_wh: tuple[int, int], decode: DecodeMask) -> ObjectMask | None:
    """Read the object that an answer names.

    Box edges are truncated to whole pixels, the decoded map is resized bilinearly, and what is
    above 0 is foreground.

    Args:
        image_wh: width and height of the picture that the mask is compared on.
        decode: decodes the codewords of one mask to its map; for a codec
            `lambda codes: codec.decode(torch.from_numpy(codes)[None])[0].numpy()`.

    Returns:
        None where the answer is invalid: tokens are missing, the box is upside down, or it covers
        no pixel.
    """
    tokens = read_tokens(text)
    if tokens is None:
        return None
    box, codes = tokens
    region = paste_mask(decode(codes), box, image_wh)
    return None if region is None else ObjectMask(box_yxyx=box, mask=region)


def referring_measures(
    predictions: Sequence[ObjectMask | None], references: Sequence[ObjectMask]
) -> list[Measure]:
    """Compute MIoU, cIoU and the accuracy of boxes, one object an expression.

    Args:
        predictions: object of each answer; None for an invalid one, which overlaps nothing.

    Returns:
        "miou", "ciou", "boxacc_0.5", "boxacc_0.75" (box overlap of at least that much) and
        "invalid", the share of invalid answers. Where there are boxes but no mask at all, the
        figures of masks are left out.

    Raises:
        DataError: lengths differ, a reference mask is empty, or the masks of a pair differ in size.
    """
    require_same_length("referring segmentation", predictions=predictions, references=references)
    overlaps = np.zeros((len(references), 2))
    box_overlap = np.zeros(len(references))
    for row, (found, truth) in enumerate(zip(predictions, references, strict=True)):
        overlaps[row] = _overlap(found, truth, row)
        if found is not None:
            box_overlap[row] = box_iou(
                np.asarray(found.box_yxyx, np.float32), np.asarray(truth.box_yxyx, np.float32)
            )
    intersection, union = overlaps.T
    ious = intersection / np.maximum(union, 1)
    masks = [mean_measure("miou", ious), ratio_measure("ciou", intersection, union)]
    named = [one for one in predictions if one is not None]
    return [
        *(masks if not named or any(one.mask is not None for one in named) else ()),
        *(mean_measure(f"boxacc_{t}", box_overlap >= t) for t in BOX_THRESHOLDS),
        mean_measure("invalid", [found is None for found in predictions], is_error=True),
    ]


def _overlap(found: ObjectMask | None, truth: ObjectMask, row: int) -> tuple[int, int]:
    """Count the pixels in both masks, and in either."""
    wanted = np.zeros((0, 0), bool) if truth.mask is None else _pixels(truth.mask)
    total = int(np.count_nonzero(wanted))
    if not total:
        raise DataError(f"reference mask {row} holds no pixel; leave the expression out")
    if found is None or found.mask is None:
        return 0, total
    mask = _pixels(found.mask)
    if mask.shape != wanted.shape:
        raise DataError(
            f"masks are compared at the size of the picture, but prediction {row} is "
            f"{mask.shape} and its reference {wanted.shape} (height, width)"
        )
    both = int(np.count_nonzero(mask & wanted))
    return both, total + int(np.count_nonzero(mask)) - both


def _pixels(mask: np.ndarray | MaskRegion | Mapping[str, Any]) -> np.ndarray:
    if isinstance(mask, MaskRegion):
        return mask.to_array()
    if isinstance(mask, np.ndarray):
        if mask.dtype != np.bool_ or mask.ndim != 2:
            raise DataError(f"a mask is bool[H, W], got {mask.dtype}{list(mask.shape)}")
        return mask
    return decode_rle(mask)
