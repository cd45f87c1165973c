"""The one thing that training, evaluation and inference pass around."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images and token rows of B examples; rows are padded on the right.

    Attributes:
        images: float32[B, R, R, 3] or [B, F, R, R, 3] in [-1, 1], or None for text only.
        tokens: int64[B, T] token ids, 0 = padding.
        mask_ar: int64[B, T], 1 opens an autoregressive step, 0 joins the block of the token before.
        mask_input: bool[B, T], valid tokens.
        mask_loss: float32[B, T] weight of each token as a target, or None at inference.

    Source: big_vision configs/proj/paligemma/transfers/common.py.
    """

    images: torch.Tensor | None
    tokens: torch.Tensor
    mask_ar: torch.Tensor
    mask_input: torch.Tensor
    mask_loss: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved = {
            field.name: value.to(device)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
            else value
            for field in fields(self)
        }
        return Batch(**moved)

    @property
    def num_examples(self) -> int:
        return self.tokens.shape[0]
