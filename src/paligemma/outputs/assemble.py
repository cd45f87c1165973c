"""From parsed objects to detections: bins become coordinates, codewords become masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from paligemma.outputs.boxes import Box, Divisor, as_box, decode_boxes
from paligemma.outputs.detections import Detections
from paligemma.outputs.masks import paste_mask
from paligemma.outputs.types import Detection, ParsedObject, ParsedOutput

if TYPE_CHECKING:
    from paligemma.outputs.vqvae import MaskCodec


def to_detections(
    parsed: ParsedOutput,
    image_wh: tuple[int, int],
    *,
    codec: MaskCodec | None = None,
    divisor: Divisor = 1023,
) -> Detections:
    """Detections of one image.

    Args:
        image_wh: width and height of the original image, pixels.
        codec: decoder of `<seg>` codewords; without one masks stay codewords.
        divisor: number by which a bin is divided; see `boxes.encode_boxes`.

    Returns:
        One detection per object, in order, invalid ones included; scores where tokens had them.
    """
    values = {} if codec is None else _decode_masks(parsed.objects, codec)
    items = tuple(
        _detection(o, image_wh, values.get(i), divisor) for i, o in enumerate(parsed.objects)
    )
    return Detections(items=items, image_wh=image_wh, text=parsed.text, rest=parsed.rest)


def _decode_masks(objects: Sequence[ParsedObject], codec: MaskCodec) -> dict[int, np.ndarray]:
    """float32[64, 64] of each valid object whose codewords the codec knows, by position."""
    rows = {
        i: item.seg
        for i, item in enumerate(objects)
        if item.seg is not None and item.is_valid and max(item.seg) < codec.config.num_codes
    }
    if not rows:
        return {}
    import torch

    codes = torch.tensor(list(rows.values()), device=next(codec.parameters()).device)
    return dict(zip(rows, codec.decode(codes).float().cpu().numpy(), strict=True))


def _detection(
    item: ParsedObject, image_wh: tuple[int, int], values: np.ndarray | None, divisor: Divisor
) -> Detection:
    box = decode_boxes(item.loc, divisor=divisor)
    scores = item.scores
    return Detection(
        label=item.label,
        box_yxyx=as_box(box),
        image_wh=image_wh,
        score=None if scores is None else scores.score,
        box_score=None if scores is None else scores.box_score,
        label_score=None if scores is None else scores.label_score,
        mask_score=None if scores is None else scores.mask_score,
        box_expected_yxyx=_scaled(None if scores is None else scores.expected_yxyx, divisor),
        box_std_yxyx=_scaled(None if scores is None else scores.std_yxyx, divisor),
        codes=item.seg,
        region=None if values is None else paste_mask(values, box, image_wh),
    )


def _scaled(bins: Box | None, divisor: Divisor) -> Box | None:
    return None if bins is None else as_box(np.asarray(bins, np.float64) / divisor)
