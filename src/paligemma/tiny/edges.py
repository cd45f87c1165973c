"""Second auxiliary objective: what a patch says of its object's edges, in the decoder's own terms.

A soft token that holds an edge as the decoder's location tokens spell it can be copied out by
attention alone; one that holds it as a number has to be translated by the decoder, which it learns
late. Dropped from the saved model, like the patch heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from paligemma.vocab import NUM_LOC

_NUM_EDGES = 4
_NUM_AXES = 2


class EdgeHead(nn.Module):
    """Linear maps of a soft token, compared with the location embeddings.

    Four tell the edges of the patch's object, two the place of the patch itself: the first step
    towards the others, and the easiest to forget on the way through the tower.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, _NUM_EDGES * width)
        self.place = nn.Linear(width, _NUM_AXES * width)
        for layer in (self.proj, self.place):
            nn.init.normal_(layer.weight, std=width**-0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, soft_tokens: Tensor, loc_table: Tensor) -> Tensor:
        """float[N, D] and float[1024, D] -> logits float[N, 4, 1024] of the edges."""
        return self.proj(soft_tokens).unflatten(-1, (_NUM_EDGES, -1)) @ loc_table.T

    def places(self, soft_tokens: Tensor, loc_table: Tensor) -> Tensor:
        """float[N, D] and float[1024, D] -> logits float[N, 2, 1024] of the patch's centre."""
        return self.place(soft_tokens).unflatten(-1, (_NUM_AXES, -1)) @ loc_table.T


def patch_centres(side: int, grid: int, corner: tuple[int, int] = (0, 0)) -> Tensor:
    """Where the patches of a picture lie in the field.

    Args:
        side: patches along a side of the picture.
        grid: patches along a side of the field.
        corner: (row, column) of the picture's first patch.

    Returns:
        float[side * side, 2]: (y, x) of each centre, normalised to [0, 1].
    """
    rows, columns = ((torch.arange(side) + first + 0.5) / grid for first in corner)
    return torch.cartesian_prod(rows, columns)


def edge_loss(logits: Tensor, edges: Tensor, sigma_bins: float) -> Tensor:
    """Mean cross-entropy against a normal distribution around each edge.

    Args:
        logits: float[N, 4, 1024].
        edges: float[N, 4], normalised to [0, 1] of the field.
        sigma_bins: its standard deviation in bins.
    """
    bins = torch.arange(NUM_LOC, device=logits.device)
    distance = (bins - edges[..., None] * (NUM_LOC - 1)) / sigma_bins
    target = torch.exp(-0.5 * distance.square()) / (sigma_bins * math.sqrt(2 * math.pi))
    return -(target * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
