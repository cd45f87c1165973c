"""How well a mask codec rebuilds masks, and how hard its codewords are to predict.

Axes: N masks, B masks of a batch.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from paligemma.outputs.vqvae import MaskCodec
from paligemma.tiny.mask_set import MASK_LABELS, MaskSet
from paligemma.vocab import SEG_PER_MASK

_CHUNK = 256


def overlaps(reconstruction: Tensor, masks: Tensor) -> Tensor:
    """Overlaps float[B] of reconstructions (> 0) and masks in [0, 1] (> 0.5), all [B, 64, 64]."""
    a, b = reconstruction.flatten(1) > 0, masks.flatten(1) > 0.5
    return (a & b).sum(1) / (a | b).sum(1).clamp(min=1)


@torch.no_grad()
def measure_mask_codec(
    codec: MaskCodec, data: MaskSet, *, shifted: MaskSet | None = None
) -> dict[str, Any]:
    """Measure how well a codec rebuilds masks and how hard its codewords are to predict.

    Args:
        data: masks that it was not trained on.
        shifted: the same objects cut out by boxes that are moved by a pixel; needed for `stable`.

    Returns:
        For "all" and each label that occurs: `num`; `iou` and `iou_p10` (mean and lowest tenth, at
        64x64); `perplexity` (2 to the entropy in bits of one codeword) and `perplexity_by_cell`
        (the same within each of the sixteen places, entropies averaged); `num_live` codewords in
        use; and with `shifted`, `stable`, the share of codewords that a moved box leaves equal.
    """
    codes, ious = _encode_all(codec, data)
    moved = _encode_all(codec, shifted)[0] if shifted is not None else None
    groups = {"all": np.ones(len(data), bool)}
    groups |= {name: data.labels == i for i, name in enumerate(MASK_LABELS)}
    report = {}
    for name, rows in groups.items():
        if not rows.any():
            continue
        chosen = codes[rows]
        cells = [_entropy_bits(chosen[:, c]) for c in range(SEG_PER_MASK)]
        figures: dict[str, Any] = {
            "num": int(rows.sum()),
            "iou": float(ious[rows].mean()),
            "iou_p10": float(np.quantile(ious[rows], 0.1)),
            "perplexity": float(2 ** _entropy_bits(chosen)),
            "perplexity_by_cell": float(2 ** np.mean(cells)),
            "num_live": len(np.unique(chosen)),
        }
        if moved is not None:
            figures["stable"] = float((chosen == moved[rows]).mean())
        report[name] = {k: round(v, 4) for k, v in figures.items()}
    return report


def _encode_all(codec: MaskCodec, data: MaskSet) -> tuple[np.ndarray, np.ndarray]:
    """Codewords int64[N, 16] and overlaps float[N] of a whole set."""
    codes, ious = [], []
    for start in range(0, len(data), _CHUNK):
        batch = torch.from_numpy(data.masks[start : start + _CHUNK]).float() / 255
        found = codec.encode(batch)
        codes.append(found.numpy())
        ious.append(overlaps(codec.decode(found), batch).numpy())
    return np.concatenate(codes), np.concatenate(ious)


def _entropy_bits(values: np.ndarray) -> float:
    share = np.unique(values, return_counts=True)[1] / values.size
    return float(-(share * np.log2(share)).sum())
