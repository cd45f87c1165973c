"""Fifth auxiliary objective: what the end of a prompt has gathered of the things it names.

The first word of an answer is decided at the last token of the prompt. "Is the star left of the
heart?" teaches one bit, and only if both places are there already; here that token is asked, one
block before the end, how many things each side of the prompt names, and where the one thing is and
how large, if it is one. Dropped from the saved model, like the patch heads.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paligemma.scenes import Scene

MAX_COUNT = 8
_NUM_SIDES = 2
# Down, right and the logarithm of the area; a tenth of the picture weighs as much as a doubling.
_PLACE_UNIT = 0.1


class GatheringHead(nn.Module):
    """One linear layer on the last token of each prompt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Linear(width, _NUM_SIDES * (MAX_COUNT + 1 + 3))
        nn.init.normal_(self.proj.weight, std=0.02)
        # Begins at the middle of the picture and at a fifth of its sides.
        guess = torch.tensor(
            [0.0] * (MAX_COUNT + 1) + [0.5 / _PLACE_UNIT] * 2 + [2 * math.log2(0.2)]
        )
        with torch.no_grad():
            self.proj.bias.copy_(guess.repeat(_NUM_SIDES))

    def forward(self, hidden: Tensor) -> Tensor:
        """float[B, D] -> float[B, 2, 12]: logits of the counts 0..8, then the place."""
        return self.proj(self.norm(hidden)).unflatten(-1, (_NUM_SIDES, -1))


def gathered(named: tuple[set[int], set[int]] | None, scene: Scene, *, has_two: bool) -> np.ndarray:
    """What `GatheringHead` should say.

    Args:
        named: of `naming.named_objects`.
        scene: the picture.
        has_two: whether the prompt names two sides.

    Returns:
        float32[2, 4]: count, then centre down, centre right and log2 of the area in
        units of the loss; NaN where it is not asked.
    """
    says = np.full((_NUM_SIDES, 4), np.nan, np.float32)
    for side, group in enumerate(named or ()):
        if side and not has_two:
            continue
        says[side, 0] = min(len(group), MAX_COUNT)
        if len(group) == 1:
            y0, x0, y1, x1 = scene.objects[next(iter(group))].box_yxyx
            says[side, 1] = (y0 + y1) / 2 / _PLACE_UNIT
            says[side, 2] = (x0 + x1) / 2 / _PLACE_UNIT
            says[side, 3] = math.log2((y1 - y0) * (x1 - x0))
    return says


def gathering_loss(answers: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the counts plus the distance of the places, each a mean over those asked.

    Args:
        answers: float[B, 2, 12] of the head.
        targets: float32[B, 2, 4] of `gathered`.
    """
    counted, placed = ~targets[..., 0].isnan(), ~targets[..., 1].isnan()
    counts = F.cross_entropy(
        answers[counted][:, : MAX_COUNT + 1], targets[counted][:, 0].long(), reduction="sum"
    )
    places = F.smooth_l1_loss(
        answers[placed][:, MAX_COUNT + 1 :], targets[placed][:, 1:], reduction="sum", beta=0.3
    )
    return counts / counted.sum().clamp(min=1) + places / placed.sum().clamp(min=1)


def ends_of_prompts(mask_loss: Tensor) -> Tensor:
    """int64[B], the last token before the first supervised one of bool or float[B, T]."""
    return (mask_loss > 0).int().argmax(dim=1) - 1


def tokens_at(hidden: Tensor, place: Tensor) -> Tensor:
    """float[B, T, D] and int64[B] -> float[B, D]."""
    return hidden[torch.arange(len(hidden), device=hidden.device), place]
