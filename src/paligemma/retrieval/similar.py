"""Pictures that are like a picture, by the image tower alone.

PaliGemma keeps SigLIP's image tower without its head, and has no text tower. So pictures can be
compared with pictures, and with no text: that takes a ColPali model, or SigLIP itself.

Axes: N pictures, I patches, D width of the tower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from paligemma.errors import ConfigError, ImageError
from paligemma.pipeline.pictures import read_picture

if TYPE_CHECKING:
    from paligemma.pipeline.paligemma import PaliGemma
    from paligemma.processing.image import ImageSource


@dataclass(frozen=True, kw_only=True)
class Similar:
    """A picture that is like another.

    Attributes:
        number: its place among the pictures that were given.
        score: cosine of the two pictures' vectors, in [-1, 1].
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
    on_fault: Callable[[int, ImageError], None] | None = None,
) -> list[Similar]:
    """The k pictures that are most like one, the best first.

    Args:
        others: pictures to choose from; only their vectors are kept.
        batch_size: how many go through the tower at once.
        on_fault: called with the number of a picture that cannot be read, which is left out; None,
            and it is an error.

    Raises:
        ImageError: the picture, or where `on_fault` is None one of the others, is bad.
        ConfigError: k or the batch size is below 1.
    """
    if k < 1 or batch_size < 1:
        raise ConfigError(f"k and batch_size are at least 1, got {k} and {batch_size}")
    query = tower_vectors(model, [read_picture(picture, model.processor).pixels])[0]
    found: list[Similar] = []
    waiting: list[tuple[int, Tensor]] = []

    def compare() -> None:
        vectors = tower_vectors(model, [pixels for _, pixels in waiting])
        for (number, _), score in zip(waiting, (vectors @ query).tolist(), strict=True):
            found.append(Similar(number=number, score=score))
        waiting.clear()

    for number, other in enumerate(others):
        try:
            waiting.append((number, read_picture(other, model.processor).pixels))
        except ImageError as error:
            if on_fault is None:
                raise
            on_fault(number, error)
        if len(waiting) == batch_size:
            compare()
    if waiting:
        compare()
    return sorted(found, key=lambda one: (-one.score, one.number))[:k]
