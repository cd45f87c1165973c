"""Answers to train on that need a random order or a mask codec."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from paligemma.errors import DataError
from paligemma.example import NOISE, Example
from paligemma.outputs.boxes import SEPARATOR, encode_boxes, format_detections, format_loc
from paligemma.outputs.rle import decode_rle

if TYPE_CHECKING:
    from paligemma.outputs.vqvae import MaskCodec


def referring_target(example: Example, codec: MaskCodec) -> str:
    """Write the answer to train on: four location tokens, sixteen codewords, no label."""
    from paligemma.outputs.vqvae import mask_to_codes

    box = np.asarray(example.references["box_yxyx"])
    mask = decode_rle(example.references["mask"])
    return format_detections([box], [None], [mask_to_codes(codec, mask, box).tolist()])


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of an answer to train on.

    Attributes:
        text: location tokens, a class or a separator.
        has_loss: whether the loss covers it.
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
    """Write objects in random order, then noise up to the length, so that a model learns to go on.

    The loss covers everything but the coordinates of noise boxes: where they lie means nothing,
    that they are noise does. No end token follows, since none may be written at inference. An
    object that no longer fits is left out whole.

    Args:
        boxes_yxyx: boxes normalised to [0, 1].
        separator: text between two objects; the published one is unknown.
        noise: class of a noise box, to the letter: an answer bars the token that it is.

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
        new.append(Piece(text=label if is_noise else f" {label}"))
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
