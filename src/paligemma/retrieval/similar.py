"""Pictures that are like a picture, by the image tower alone.

PaliGemma keeps SigLIP's image tower without its head, and has no text tower. So pictures can be
compared with pictures, and with no text: that takes a ColPali model, or SigLIP itself (siglip.py).

Axes: N pictures, I patches, D width of the tower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from paligemma.errors import ConfigError, ImageError
from paligemma.pipeline.pictures import read_picture

if TYPE_CHECKING:
    from paligemma.pipeline.paligemma import PaliGemma
    from paligemma.processing.image import ImageSource

OnFault = Callable[[int, ImageError], None]


@dataclass(frozen=True, kw_only=True)
class Similar:
    """A picture that is like another, or like a text.

    Attributes:
        number: its place among the pictures that were given.
        score: cosine of the two vectors, in [-1, 1].
    """

    number: int
    score: float


@torch.inference_mode()
def tower_vectors(model: PaliGemma, pixels: Sequence[Tensor]) -> Tensor:
    """A vector of each picture: the mean of its patches after the tower's last norm.

    Args:
        pixels: float32[R, R, 3] of each picture in [-1, 1]; one or more.

    Returns:
        float32[N, D] on the CPU, unit length.
    """
    with model.engine.computing(None):
        features = model.model.vision(torch.stack([*pixels]).to(model.model.device))  # [N, I, D]
    return normalize(features.float().mean(1).cpu(), dim=-1)


def similar_pictures(
    model: PaliGemma,
    picture: ImageSource,
    others: Sequence[ImageSource],
    *,
    k: int = 5,
    batch_size: int = 8,
    on_fault: OnFault | None = None,
) -> list[Similar]:
    """The k pictures that are most like one, the best first; see `nearest`.

    Raises:
        ImageError: the picture, or where `on_fault` is None one of the others, is bad.
    """

    def pixels_of(one: ImageSource) -> Tensor:
        return read_picture(one, model.processor).pixels

    encode = partial(tower_vectors, model)
    query = encode([pixels_of(picture)])[0]
    return nearest(query, others, pixels_of, encode, k=k, batch_size=batch_size, on_fault=on_fault)


def nearest(
    query: Tensor,
    pictures: Sequence[ImageSource],
    pixels_of: Callable[[ImageSource], Tensor],
    encode: Callable[[Sequence[Tensor]], Tensor],
    *,
    k: int = 5,
    batch_size: int = 8,
    on_fault: OnFault | None = None,
) -> list[Similar]:
    """The k pictures whose vectors are nearest to one, the best first.

    Args:
        query: float32[D].
        pictures: to choose from; only their scores are kept.
        pixels_of: prepares a picture.
        encode: makes float32[N, D] of prepared pictures.
        batch_size: how many are encoded at once.
        on_fault: called with the number of a picture that cannot be read, which is left out; None,
            and it is an error.

    Raises:
        ImageError: a bad picture where `on_fault` is None.
        ConfigError: k or the batch size is below 1.
    """
    if k < 1 or batch_size < 1:
        raise ConfigError(f"k and batch_size are at least 1, got {k} and {batch_size}")
    found: list[Similar] = []
    waiting: list[tuple[int, Tensor]] = []

    def compare() -> None:
        scores = encode([pixels for _, pixels in waiting]) @ query
        for (number, _), score in zip(waiting, scores.tolist(), strict=True):
            found.append(Similar(number=number, score=score))
        waiting.clear()

    for number, other in enumerate(pictures):
        try:
            waiting.append((number, pixels_of(other)))
        except ImageError as error:
            if on_fault is None:
                raise
            on_fault(number, error)
        if len(waiting) == batch_size:
            compare()
    if waiting:
        compare()
    return sorted(found, key=lambda one: (-one.score, one.number))[:k]
