"""Third auxiliary loss: soft tokens predict the codewords of their object's mask.

A mask answer is sixteen codewords, a grid of four by four over the object's box. From the text
alone the decoder learns them late, because prompts segment few objects. With this loss every patch
of every object predicts the codewords that lie on it, by comparison with the embeddings of the
mask tokens. The head is dropped from the saved model.

Axes: N objects or soft tokens, I patches of a picture, K mask tokens, D width of the decoder.
"""

import numpy as np
from torch import Tensor, nn

from paligemma.tiny.dense import NO_TARGET
from paligemma.vocab import SEG_PER_SIDE

# Points of a patch with a target: (down, right) from its centre in sides of a patch.
_POINTS = np.array([(-0.25, -0.25), (-0.25, 0.25), (0.25, -0.25), (0.25, 0.25)])


class MaskTokenHead(nn.Module):
    """A linear map for each point of a patch, compared with the embeddings of the mask tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, len(_POINTS) * width)
        nn.init.normal_(self.proj.weight, std=width**-0.5)
        nn.init.zeros_(self.proj.bias)

    def forward(self, soft_tokens: Tensor, seg_table: Tensor) -> Tensor:
        """Map float[N, D] and the table float[K, D] to logits float[N, 4, K]."""
        return self.proj(soft_tokens).unflatten(-1, (len(_POINTS), -1)) @ seg_table.T


def mask_token_targets(
    owners: np.ndarray, boxes_px: np.ndarray, codes: np.ndarray, patch_px: int
) -> np.ndarray:
    """Find the codeword under each point of each patch.

    Args:
        owners: int64[I], index of the object that each patch of a square picture shows, -1 for
            none.
        boxes_px: float[N, 4], boxes (top, left, bottom, right) of the objects.
        codes: int64[N, 16], codewords of the objects in raster order.

    Returns:
        int64[I, 4]; NO_TARGET where the patch shows no object or the point lies off its box.
    """
    grid = round(len(owners) ** 0.5)
    centres = (np.indices((grid, grid)).reshape(2, -1).T + 0.5) * patch_px
    points = centres[:, None] + _POINTS * patch_px
    found = np.full((len(owners), len(_POINTS)), NO_TARGET, dtype=np.int64)
    for number, (box, of_object) in enumerate(zip(boxes_px, codes, strict=True)):
        place = (points - box[:2]) / (box[2:] - box[:2])
        inside = ((place >= 0) & (place < 1)).all(axis=-1) & (owners == number)[:, None]
        cells = (place[inside] * SEG_PER_SIDE).astype(int)
        found[inside] = of_object[cells[:, 0] * SEG_PER_SIDE + cells[:, 1]]
    return found
