"""Third auxiliary loss: soft tokens predict the codewords of their object's mask.

A mask answer is sixteen codewords, a grid of four by four over the object's box. From the text
alone the decoder learns them late, because prompts segment few objects. With this loss every patch
of every object predicts the codewords that lie on it, by comparison with the embeddings of the
mask tokens. The head is dropped from the saved model.

Axes: N objects or soft tokens, I patches of a picture, K mask tokens, D width of the decoder.
"""

import numpy as np
import torch
from torch import Tensor, nn

from paligemma.outputs.vqvae import MaskCodec
from paligemma.tiny.dense import NO_TARGET
from paligemma.vocab import NUM_SEG, SEG_PER_SIDE

# Points of a patch with a target: (down, right) from its centre in sides of a patch.
_POINTS = np.array([(-0.25, -0.25), (-0.25, 0.25), (0.25, -0.25), (0.25, 0.25)])


def similar_codewords(codec: MaskCodec, sharpness: float = 1.4) -> Tensor:
    """Soft targets of mask tokens: how well each codeword stands for another.

    The weight falls with the squared distance of two codewords, in units of the median distance
    from a codeword to its nearest neighbour.

    Args:
        sharpness: logarithm of the ratio between a codeword's own weight and that of another one
            at the unit distance.

    Returns:
        float32[NUM_SEG, NUM_SEG], rows sum to 1; tokens beyond the codebook keep to themselves.
    """
    table = codec.codewords()
    squares = torch.cdist(table, table).square()
    apart = squares + torch.diag(torch.full((len(table),), torch.inf))
    unit = apart.amin(dim=1).median()
    weights = torch.eye(NUM_SEG)
    weights[: len(table), : len(table)] = (-sharpness * squares / unit).softmax(dim=1)
    return weights


def soft_cross_entropy(logits: Tensor, targets: Tensor, similarity: Tensor) -> Tensor:
    """Mean cross-entropy of float[..., K] against rows of float32[K, K] without NO_TARGET.

    Args:
        targets: int64[...], codewords.
        similarity: result of `similar_codewords`.
    """
    there = targets != NO_TARGET
    log_p = logits[there].float().log_softmax(dim=-1)
    return -(similarity[targets[there]] * log_p).sum() / there.sum().clamp(min=1)


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
