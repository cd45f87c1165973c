"""Fifth auxiliary loss: the last token of a prompt predicts counts and places.

The last token of the prompt decides the first word of an answer. "Is the star left of the heart?"
teaches one bit, and only if both places are available there. With this loss the hidden state of
that token, after half of the decoder and again one block before its end, predicts for each side of
the prompt how many things it names and, of a single thing, its place and size; and the differences
of places and sizes between the sides. The heads are dropped from the saved model.

Axes: B prompts, T tokens, D width of the decoder.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paligemma.scenes import Scene

MAX_COUNT = 8
_NUM_SIDES = 2
_NUM_PLACES = 3
# Down, right and the logarithm of the area; a tenth of the picture weighs as much as a doubling.
_PLACE_UNIT = 0.1


class GatheringHead(nn.Module):
    """One linear layer on the last token of each prompt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Linear(width, _NUM_SIDES * (MAX_COUNT + 1 + _NUM_PLACES) + _NUM_PLACES)
        nn.init.normal_(self.proj.weight, std=0.02)
        # The first guess is the middle of the picture and a fifth of its sides.
        guess = torch.tensor(
            [0.0] * (MAX_COUNT + 1) + [0.5 / _PLACE_UNIT] * 2 + [2 * math.log2(0.2)]
        )
        with torch.no_grad():
            self.proj.bias.copy_(torch.cat((guess.repeat(_NUM_SIDES), torch.zeros(_NUM_PLACES))))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Map float[B, D] to float[B, 2, 12], logits of the counts 0..8, then the place of each
        side; and to float[B, 3], the second place minus the first.
        """
        found = self.proj(self.norm(hidden)).float()
        sides, apart = found[:, :-_NUM_PLACES], found[:, -_NUM_PLACES:]
        return sides.unflatten(-1, (_NUM_SIDES, -1)), apart


def gathered(named: tuple[set[int], set[int]] | None, scene: Scene, *, has_two: bool) -> np.ndarray:
    """Compute the targets of `GatheringHead` for one prompt.

    Args:
        named: result of `naming.named_objects`.
        has_two: whether the prompt names two sides.

    Returns:
        float32[2, 4]: the count, then centre down, centre right and log2 of the area in units of
        the loss; NaN where a target does not apply.
    """
    targets = np.full((_NUM_SIDES, 4), np.nan, np.float32)
    for side, group in enumerate(named or ()):
        if side and not has_two:
            continue
        targets[side, 0] = min(len(group), MAX_COUNT)
        if len(group) == 1:
            y0, x0, y1, x1 = scene.objects[next(iter(group))].box_yxyx
            targets[side, 1] = (y0 + y1) / 2 / _PLACE_UNIT
            targets[side, 2] = (x0 + x1) / 2 / _PLACE_UNIT
            targets[side, 3] = math.log2((y1 - y0) * (x1 - x0))
    return targets


def gathering_loss(answers: Tensor, apart: Tensor, targets: Tensor) -> Tensor:
    """Compute the cross-entropy of the counts plus the distances of places and of differences.

    All are means over the targets that apply.

    Args:
        answers: float[B, 2, 12], first output of the head.
        apart: float[B, 3], second output of the head.
        targets: float32[B, 2, 4], stacked results of `gathered`.
    """
    counted, placed = ~targets[..., 0].isnan(), ~targets[..., 1].isnan()
    counts = F.cross_entropy(
        answers[counted][:, : MAX_COUNT + 1], targets[counted][:, 0].long(), reduction="sum"
    )
    places = F.smooth_l1_loss(
        answers[placed][:, MAX_COUNT + 1 :], targets[placed][:, 1:], reduction="sum", beta=0.3
    )
    differences = targets[:, 1, 1:] - targets[:, 0, 1:]
    both = placed.all(dim=1)
    between = F.smooth_l1_loss(apart[both], differences[both], reduction="sum", beta=0.3)
    return (
        counts / counted.sum().clamp(min=1)
        + places / placed.sum().clamp(min=1)
        + between / both.sum().clamp(min=1)
    )


def ends_of_prompts(mask_loss: Tensor) -> Tensor:
    """Return int64[B], the token before the first supervised one of a mask float[B, T]."""
    return (mask_loss > 0).int().argmax(dim=1) - 1


def tokens_at(hidden: Tensor, place: Tensor) -> Tensor:
    """Take one hidden state of each row: float[B, T, D] and int64[B] give float[B, D]."""
    return hidden[torch.arange(len(hidden), device=hidden.device), place]
