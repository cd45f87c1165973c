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


class EdgeHead(nn.Module):
    """Four linear maps of a soft token, one an edge, compared with the location embeddings."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, _NUM_EDGES * width)
        nn.init.normal_(self.proj.weight, std=width**-0.5)
        nn.init.zeros_(self.proj.bias)

    def forward(self, soft_tokens: Tensor, loc_table: Tensor) -> Tensor:
        """float[N, D] and float[1024, D] -> logits float[N, 4, 1024]."""
        return self.proj(soft_tokens).unflatten(-1, (_NUM_EDGES, -1)) @ loc_table.T


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
