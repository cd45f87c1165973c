"""Third auxiliary objective: what a patch says of its object's mask, in the decoder's own terms.

A mask answer is sixteen codewords, a grid of four by four over the object's box. Asked of the
decoder alone they are learnt late, from the few objects that prompts segment; here every patch of
every object names the codewords that lie on it, so that a soft token holds them as the mask tokens
spell them. Dropped from the saved model, like the patch heads.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from paligemma.tiny.dense import mean_over_asked
from paligemma.vocab import SEG_PER_SIDE

# Points of a patch that are asked, from its centre in sides of a patch: (down, right).
_POINTS = np.array([(-0.25, -0.25), (-0.25, 0.25), (0.25, -0.25), (0.25, 0.25)])
# What `mean_over_asked` leaves out.
NOT_ASKED = -1


class MaskTokenHead(nn.Module):
    """Linear maps of a soft token, one a point of the patch, compared with the mask embeddings."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, len(_POINTS) * width)
        nn.init.normal_(self.proj.weight, std=width**-0.5)
        nn.init.zeros_(self.proj.bias)

    def forward(self, soft_tokens: Tensor, seg_table: Tensor) -> Tensor:
        """float[N, D] and float[K, D] -> logits float[N, 4, K]."""
        return self.proj(soft_tokens).unflatten(-1, (len(_POINTS), -1)) @ seg_table.T


def mask_token_targets(
    owners: np.ndarray, boxes_px: np.ndarray, codes: np.ndarray, patch_px: int
) -> np.ndarray:
    """The codeword under each point of each patch.

    Args:
        owners: int64[I], the object that each patch of a square picture shows, -1 for none.
        boxes_px: float[N, 4] of the objects, (top, left, bottom, right).
        codes: int64[N, 16] of the objects, raster order.
        patch_px: side of a patch.

    Returns:
        int64[I, 4]; NOT_ASKED where the patch shows no object or the point lies off its box.
    """
    grid = round(len(owners) ** 0.5)
    centres = (np.indices((grid, grid)).reshape(2, -1).T + 0.5) * patch_px
    points = centres[:, None] + _POINTS * patch_px
    found = np.full((len(owners), len(_POINTS)), NOT_ASKED, dtype=np.int64)
    for number, (box, of_object) in enumerate(zip(boxes_px, codes, strict=True)):
        place = (points - box[:2]) / (box[2:] - box[:2])
        inside = ((place >= 0) & (place < 1)).all(axis=-1) & (owners == number)[:, None]
        cells = (place[inside] * SEG_PER_SIDE).astype(int)
        found[inside] = of_object[cells[:, 0] * SEG_PER_SIDE + cells[:, 1]]
    return found


def mask_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over the points that are asked.

    Args:
        logits: float[N, 4, K].
        targets: int64[N, 4], NOT_ASKED where there is no answer.
    """
    return mean_over_asked(logits, targets)
