"""Targets that spread over neighbouring location bins and over similar codewords of masks.

The original's targets are one-hot. For a model that learns locations from random weights a
neighbouring bin is nearly right, and so is a codeword that draws nearly the same.

Axes: N supervised tokens, V vocabulary.
"""

import torch
from torch import Tensor

from paligemma.train.loss import token_losses
from paligemma.vocab import NUM_LOC

# The Gaussian over neighbouring bins ends here, in standard deviations.
_REACH = 4.0


def spread_losses(
    logits: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    *,
    loc0: int,
    sigma_bins: float,
    seg0: int | None = None,
    similarity: Tensor | None = None,
) -> Tensor:
    """Compute each token's cross-entropy, with soft targets for locations and masks: float32[N].

    The one-hot part of its target distribution becomes a Gaussian over the 1,024 location ids, cut
    at 4 standard deviations and at both ends of the range, then normalised. That of a mask token
    becomes its row of `similarity`.

    Args:
        logits: float[N, V].
        targets: int64[N], token ids.
        sigma_bins: standard deviation in bins, above 0.
        seg0: id of the first mask token, where `similarity` is given.
        similarity: float32[K, K], see `mask_tokens.similar_codewords`; None keeps mask targets
            one-hot.
    """
    bins = targets - loc0
    (rows,) = torch.where((bins >= 0) & (bins < NUM_LOC))
    bins = bins[rows, None]
    locations = logits[rows, loc0 : loc0 + NUM_LOC].float()
    distance = (torch.arange(NUM_LOC, device=logits.device) - bins).float() / sigma_bins
    weights = torch.where(distance.abs() <= _REACH, torch.exp(-0.5 * distance**2), 0.0)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    # The loss is log Z minus a mean of logits; only the share of the one-hot part moves.
    share = 1.0 - label_smoothing - label_smoothing / (logits.shape[-1] - 1)
    moved = locations.gather(1, bins).squeeze(1) - (weights * locations).sum(dim=-1)
    losses = token_losses(logits, targets, label_smoothing).index_add(0, rows, share * moved)
    if similarity is None or seg0 is None:
        return losses
    codes = targets - seg0
    (rows,) = torch.where((codes >= 0) & (codes < len(similarity)))
    codes = codes[rows]
    masks = logits[rows, seg0 : seg0 + len(similarity)].float()
    moved = masks.gather(1, codes[:, None])[:, 0] - (similarity[codes] * masks).sum(dim=-1)
    return losses.index_add(0, rows, share * moved)
