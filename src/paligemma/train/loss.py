"""Loss of training and perplexity of evaluation.

Axes: B batch, T text tokens that the model sees (rows hold one more), N supervised positions,
V vocabulary.
Source: big_vision trainers/proj/paligemma/train.py and evaluators/proj/paligemma/perplexity.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from paligemma.batch import Batch
from paligemma.errors import ConfigError, DataError
from paligemma.model.paligemma import PaliGemmaModel

# What a batch's loss is a mean over: the examples, each a mean over its tokens, as in the original;
# or all supervised tokens together.
MEANS = ("example", "token")
# Most logits that are in memory at once, 64 MB.
CHUNK_LOGITS = 1 << 24
# Logits float[N, V], targets int64[N] and label smoothing -> losses float32[N].
TokenLoss = Callable[[Tensor, Tensor, float], Tensor]


@dataclass(frozen=True, kw_only=True)
class TrainingLoss:
    """Loss of one batch.

    Attributes:
        loss: float32[], mean over the examples or the tokens; call backward on it.
        per_example: float32[B], nats a supervised token.
        num_targets: int64[B], number of supervised tokens of each example.
    """

    loss: Tensor
    per_example: Tensor
    num_targets: Tensor


def token_losses(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Compute the cross-entropy of every token in nats.

    Args:
        logits: float[..., V].
        targets: int64[...], token ids.
        label_smoothing: eps; the target keeps 1 - eps and each other class gets eps / (V - 1).

    Returns:
        float32[...].

    Raises:
        ConfigError: eps lies outside [0, 1 - 1/V].
    """
    num_classes = logits.shape[-1]
    if not 0.0 <= label_smoothing <= 1.0 - 1.0 / num_classes:
        raise ConfigError(
            f"label_smoothing must lie in [0, 1 - 1/{num_classes}], got {label_smoothing}"
        )
    flat, target = logits.float().flatten(0, -2), targets.flatten()
    losses = F.cross_entropy(flat, target, reduction="none")
    if label_smoothing:
        # sum_j q_j (log sum exp x - x_j) without a sum of weights q: torch's own smoothing adds
        # them up in float32 for the gradient, and over 257,152 classes loses four digits of it.
        off = label_smoothing / (num_classes - 1)
        chosen = flat.gather(1, target[:, None])[:, 0]
        losses = losses + off * (num_classes * chosen - flat.sum(dim=-1))
    return losses.view(targets.shape)


def per_example_loss(token_losses: Tensor, weights: Tensor) -> Tensor:
    """Average the losses of each example over its tokens.

    Args:
        token_losses: float32[B, T].
        weights: float[B, T], weight of each token as a target.

    Returns:
        float32[B]: the weighted sum over max(sum of weights, 1).
    """
    return (token_losses * weights).sum(dim=-1) / weights.sum(dim=-1).clamp(min=1.0)


def training_loss(
    model: PaliGemmaModel,
    batch: Batch,
    label_smoothing: float = 0.0,
    *,
    soft_tokens: Tensor | None = None,
    token_loss: TokenLoss = token_losses,
    mean: str = MEANS[0],
) -> TrainingLoss:
    """Compute the loss of a training batch: by default a mean over tokens, then over examples.

    Args:
        batch: rows of text_len + 1 tokens with mask_loss. mask_input is not used, because padding
            opens autoregressive steps of its own.
        label_smoothing: as in `token_losses`.
        soft_tokens: float[B, I, D], the encoded images; `batch.images` are encoded by default.
        token_loss: loss of every supervised token, for targets that are no single class.
        mean: one of `MEANS`; "token" weighs every token alike, so long answers more.

    Raises:
        DataError: the batch has no mask_loss.
        ConfigError: the smoothing is out of range.
    """
    if batch.mask_loss is None:
        raise DataError("a training batch needs mask_loss, got None; build it with a suffix")
    weights = batch.mask_loss[:, 1:].float()
    losses = _supervised_losses(model, batch, weights, token_loss, label_smoothing, soft_tokens)
    per_example = per_example_loss(losses, weights)
    loss = per_example.mean()
    if mean == "token":
        loss = (losses * weights).sum() / weights.sum().clamp(min=1.0)
    return TrainingLoss(loss=loss, per_example=per_example, num_targets=(weights > 0).sum(dim=-1))


@torch.no_grad()
def perplexity(model: PaliGemmaModel, batch: Batch, *, average: bool = True) -> Tensor:
    """Compute the negative log-likelihood of the supervised tokens, in nats and not smoothed.

    Args:
        batch: rows of text_len + 1 tokens. Without mask_loss every position counts, padding
            included, as in the original.
        average: divide by the number of supervised tokens; otherwise return the sum.

    Returns:
        float32[B].
    """
    weights = (
        torch.ones_like(batch.tokens[:, 1:], dtype=torch.float32)
        if batch.mask_loss is None
        else batch.mask_loss[:, 1:].float()
    )
    losses = _supervised_losses(model, batch, weights, token_losses)
    return per_example_loss(losses, weights) if average else (losses * weights).sum(dim=-1)


def _supervised_losses(
    model: PaliGemmaModel,
    batch: Batch,
    weights: Tensor,
    token_loss: TokenLoss,
    label_smoothing: float = 0.0,
    soft_tokens: Tensor | None = None,
) -> Tensor:
    """float32[B, T]: losses where the weight is not 0, and 0 elsewhere.

    Logits are computed at these positions only and in chunks: over the whole vocabulary they are
    by far the largest tensor of a step.
    """
    if soft_tokens is None and batch.images is not None:
        soft_tokens = model.encode_image(batch.images)
    hidden = model.hidden(soft_tokens, batch.tokens[:, :-1], batch.mask_ar[:, :-1])
    rows, columns = torch.where(weights > 0)
    losses = supervised_losses(
        model.text.logits,
        hidden[rows, columns],
        batch.tokens[:, 1:][rows, columns],
        model.config.vocab.size,
        token_loss,
        label_smoothing,
    )
    return torch.zeros_like(weights).index_put((rows, columns), losses)


def supervised_losses(
    logits_of: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    vocab_size: int,
    token_loss: TokenLoss,
    label_smoothing: float,
) -> Tensor:
    """Losses float32[N] of N positions, with the logits of `CHUNK_LOGITS` / V of them at a time.

    Each chunk's logits are dropped after forward and computed again for its gradients.

    Args:
        logits_of: the output head, float[N, D] -> float32[N, V].
        hidden: float[N, D].
        targets: int64[N].
        vocab_size: V.
        token_loss, label_smoothing: as in `training_loss`.
    """

    def losses_of(hidden: Tensor, targets: Tensor) -> Tensor:
        return token_loss(logits_of(hidden), targets, label_smoothing)

    size = max(1, CHUNK_LOGITS // vocab_size)
    if len(targets) <= size:
        return losses_of(hidden, targets)
    chunks = zip(hidden.split(size), targets.split(size), strict=True)
    return torch.cat([checkpoint(losses_of, *one, use_reentrant=False) for one in chunks])
