"""Second auxiliary loss: soft tokens predict the edges of their object as location tokens.

Attention alone can copy an edge that a soft token stores as the embedding of a location token. An
edge that is stored as a number has to be translated by the decoder, which learns that late. The
head is dropped from the saved model.

Axes: N soft tokens, D width of the decoder.
"""

import math

import torch
from torch import Tensor, nn

from paligemma.vocab import NUM_LOC

_NUM_EDGES = 4
_NUM_AXES = 2


class EdgeHead(nn.Module):
    """Linear maps of a soft token, compared with the embeddings of the location tokens.

    Four maps predict the edges of the patch's object and two the place of the patch itself, which
    the edges build on and which a tower loses first.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, _NUM_EDGES * width)
        self.place = nn.Linear(width, _NUM_AXES * width)
        for layer in (self.proj, self.place):
            nn.init.normal_(layer.weight, std=width**-0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, soft_tokens: Tensor, loc_table: Tensor) -> Tensor:
        """Map float[N, D] and the table float[1024, D] to logits float[N, 4, 1024] of edges."""
        return self.proj(soft_tokens).unflatten(-1, (_NUM_EDGES, -1)) @ loc_table.T

    def places(self, soft_tokens: Tensor, loc_table: Tensor) -> Tensor:
        """Map them to logits float[N, 2, 1024] of the patch's centre (y, x)."""
        return self.place(soft_tokens).unflatten(-1, (_NUM_AXES, -1)) @ loc_table.T


def patch_centres(side: int, grid: int, corner: tuple[int, int] = (0, 0)) -> Tensor:
    """Compute the centre (y, x) of each patch in the field: float[side * side, 2] in [0, 1].

    Args:
        side: number of patches along a side of the picture.
        grid: number of patches along a side of the field.
        corner: (row, column) of the picture's first patch in the field.
    """
    rows, columns = ((torch.arange(side) + first + 0.5) / grid for first in corner)
    return torch.cartesian_prod(rows, columns)


def edge_loss(logits: Tensor, edges: Tensor, sigma_bins: float) -> Tensor:
    """Compute the mean cross-entropy against a normal distribution around each edge.

    Args:
        logits: float[N, E, 1024] of E edges or coordinates.
        edges: float[N, E], normalised to [0, 1] of the field.
        sigma_bins: standard deviation of the distribution in bins.
    """
    bins = torch.arange(NUM_LOC, device=logits.device)
    distance = (bins - edges[..., None] * (NUM_LOC - 1)) / sigma_bins
    target = torch.exp(-0.5 * distance.square()) / (sigma_bins * math.sqrt(2 * math.pi))
    return -(target * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
