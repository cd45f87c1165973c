"""Loss of training and perplexity of evaluation.

Axes: B batch, T text tokens that the model sees (rows hold one more), N supervised positions,
V vocabulary.
Source: big_vision trainers/proj/paligemma/train.py and evaluators/proj/paligemma/perplexity.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from paligemma.batch import Batch
from paligemma.errors import ConfigError, DataError
from paligemma.model.paligemma import PaliGemmaModel
from paligemma.vocab import NUM_LOC

# The Gaussian over neighbouring location bins ends here, in standard deviations.
_LOC_REACH = 4.0


@dataclass(frozen=True, kw_only=True)
class TrainingLoss:
    """What one batch says.

    Attributes:
        loss: float32[], mean over examples; call backward on it.
        per_example: float32[B], nats a supervised token.
        num_targets: int64[B], supervised tokens of each example.
    """

    loss: Tensor
    per_example: Tensor
    num_targets: Tensor


def token_losses(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy in nats of every token.

    Args:
        logits: float[..., V].
        targets: int64[...].
        label_smoothing: eps; the target keeps 1 - eps and each other class gets eps / (V - 1).

    Returns:
        float32[...].

    Raises:
        ConfigError: eps outside [0, 1 - 1/V].
    """
    num_classes = logits.shape[-1]
    if not 0.0 <= label_smoothing <= 1.0 - 1.0 / num_classes:
        raise ConfigError(
            f"label_smoothing must lie in [0, 1 - 1/{num_classes}], got {label_smoothing}"
        )
    # torch spreads its eps over all V classes, the target included.
    spread = label_smoothing * num_classes / (num_classes - 1)
    flat = F.cross_entropy(
        logits.float().flatten(0, -2),
        targets.flatten(),
        reduction="none",
        label_smoothing=min(spread, 1.0),
    )
    return flat.view(targets.shape)


def location_correction(
    logits: Tensor, targets: Tensor, loc0: int, sigma_bins: float, label_smoothing: float = 0.0
) -> Tensor:
    """What to add to `token_losses` so that location targets spread over neighbouring bins.

    The one-hot part of the target distribution of a location token becomes a Gaussian over the
    1,024 location ids, cut at 4 standard deviations and at both ends of the range, then normalised.
    Not in the original, whose targets are one-hot.

    Args:
        logits: float[N, V].
        targets: int64[N].
        loc0: first location id.
        sigma_bins: standard deviation in bins, above 0.
        label_smoothing: as in `token_losses`.

    Returns:
        float32[N]; 0 where the target is no location.
    """
    bins = targets - loc0
    (rows,) = torch.where((bins >= 0) & (bins < NUM_LOC))
    bins = bins[rows, None]
    locations = logits[rows, loc0 : loc0 + NUM_LOC].float()
    distance = (torch.arange(NUM_LOC, device=logits.device) - bins).float() / sigma_bins
    weights = torch.where(distance.abs() <= _LOC_REACH, torch.exp(-0.5 * distance**2), 0.0)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    # The loss is log Z minus a mean of logits; only the share of the one-hot part moves.
    share = 1.0 - label_smoothing - label_smoothing / (logits.shape[-1] - 1)
    moved = locations.gather(1, bins).squeeze(1) - (weights * locations).sum(dim=-1)
    return torch.zeros(targets.shape, device=logits.device).index_add(0, rows, share * moved)


def per_example_loss(token_losses: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of float32[B, T] losses over max(sum of weights, 1): float32[B]."""
    weights = weights.float()
    return (token_losses * weights).sum(dim=-1) / weights.sum(dim=-1).clamp(min=1.0)


def batch_loss(per_example: Tensor) -> Tensor:
    """Mean over examples, not over tokens: float32[]."""
    return per_example.mean()


def training_loss(
    model: PaliGemmaModel,
    batch: Batch,
    label_smoothing: float = 0.0,
    *,
    loc_sigma_bins: float = 0.0,
    soft_tokens: Tensor | None = None,
) -> TrainingLoss:
    """Loss of a training batch; logits are computed at supervised positions only.

    Args:
        batch: rows of text_len + 1 tokens with mask_loss; mask_input is not used, as padding opens
            autoregressive steps of its own.
        label_smoothing: as in `token_losses`.
        loc_sigma_bins: as in `location_correction`; 0 is the original's loss.
        soft_tokens: float[B, I, D] if the images are already encoded.

    Raises:
        DataError: the batch has no mask_loss.
        ConfigError: a vocabulary without location tokens, or a smoothing out of range.
    """
    if batch.mask_loss is None:
        raise DataError("a training batch needs mask_loss, got None; build it with a suffix")
    weights = batch.mask_loss[:, 1:].float()
    if soft_tokens is None and batch.images is not None:
        soft_tokens = model.encode_image(batch.images)
    hidden = model.hidden(soft_tokens, batch.tokens[:, :-1], batch.mask_ar[:, :-1])
    per_example = _supervised_loss(
        model, hidden, batch.tokens[:, 1:], weights, label_smoothing, loc_sigma_bins
    )
    return TrainingLoss(
        loss=batch_loss(per_example), per_example=per_example, num_targets=(weights > 0).sum(dim=-1)
    )


def _supervised_loss(
    model: PaliGemmaModel,
    hidden: Tensor,
    targets: Tensor,
    weights: Tensor,
    label_smoothing: float,
    loc_sigma_bins: float,
) -> Tensor:
    """`per_example_loss` of float[B, T, D] hidden states without the logits that have weight 0."""
    rows, columns = torch.where(weights > 0)
    logits, targets = model.text.logits(hidden[rows, columns]), targets[rows, columns]
    losses = token_losses(logits, targets, label_smoothing)
    if loc_sigma_bins:
        vocab = model.config.vocab
        if not vocab.has_objects or loc_sigma_bins < 0:
            raise ConfigError(
                "loc_sigma_bins must not be negative and needs a vocabulary with location tokens, "
                f"got {loc_sigma_bins}; set it to 0"
            )
        losses = losses + location_correction(
            logits, targets, vocab.loc0, loc_sigma_bins, label_smoothing
        )
    sums = torch.zeros(len(weights), device=losses.device)
    sums = sums.index_add(0, rows, losses * weights[rows, columns])
    return sums / weights.sum(dim=-1).clamp(min=1.0)


@torch.no_grad()
def perplexity(model: PaliGemmaModel, batch: Batch, *, average: bool = True) -> Tensor:
    """Negative log-likelihood of the supervised tokens in nats: no exponent, no smoothing.

    Args:
        batch: rows of text_len + 1 tokens. Without mask_loss every position counts, padding
            included, as in the original.
        average: divide by the number of supervised tokens; otherwise the sum.

    Returns:
        float32[B].
    """
    targets = batch.tokens[:, 1:]
    weights = (
        torch.ones_like(targets, dtype=torch.float32)
        if batch.mask_loss is None
        else batch.mask_loss[:, 1:].float()
    )
    soft_tokens = None if batch.images is None else model.encode_image(batch.images)
    hidden = model.hidden(soft_tokens, batch.tokens[:, :-1], batch.mask_ar[:, :-1])
    mean = _supervised_loss(model, hidden, targets, weights, 0.0, 0.0)
    return mean if average else mean * weights.sum(dim=-1).clamp(min=1.0)
