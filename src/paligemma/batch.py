"""Token rows and the batches that training, evaluation and inference pass around.

Axes: B examples, F frames, R image side, T tokens.
Source: big_vision configs/proj/paligemma/transfers/common.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """The text of one example: four sequences of equal length.

    Attributes:
        tokens: token ids.
        mask_ar: 1 opens an autoregressive step, 0 joins the block of the token before.
        mask_input: 1 for a valid token, 0 for padding.
        mask_loss: weight of each token as a target.
    """

    tokens: tuple[int, ...]
    mask_ar: tuple[int, ...]
    mask_input: tuple[int, ...]
    mask_loss: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    def fit(self, length: int, pad: int) -> TokenRow:
        """Cut or pad the row on the right; a cut loses EOS and may leave no suffix at all.

        Args:
            length: number of tokens that the new row has.
            pad: id of the padding token.
        """
        missing = max(length - len(self), 0)

        def fitted(values: tuple[int, ...], filling: int) -> tuple[int, ...]:
            return values[:length] + (filling,) * missing

        return TokenRow(
            tokens=fitted(self.tokens, pad),
            mask_ar=fitted(self.mask_ar, 1),
            mask_input=fitted(self.mask_input, 0),
            mask_loss=fitted(self.mask_loss, 0),
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images and token rows of B examples; rows are padded on the right.

    Attributes:
        images: float32[B, R, R, 3] or [B, F, R, R, 3] in [-1, 1], or None for text only.
        tokens: int64[B, T] token ids.
        mask_ar: int64[B, T], 1 opens an autoregressive step, 0 joins the block of the token before.
        mask_input: bool[B, T], valid tokens.
        mask_loss: float32[B, T] weight of each token as a target, or None at inference.
    """

    images: Tensor | None
    tokens: Tensor
    mask_ar: Tensor
    mask_input: Tensor
    mask_loss: Tensor | None = None

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[TokenRow],
        *,
        pad: int,
        images: Tensor | None = None,
        with_loss: bool = False,
    ) -> Batch:
        """A batch of rows of unequal length, padded on the right to the longest.

        Args:
            rows: text of each example; none at all gives tensors of shape [0, 0].
            pad: id of the padding token.
            images: float32[B, R, R, 3] or [B, F, R, R, 3] in [-1, 1], or None for text only.
            with_loss: keep `mask_loss`, as training needs.
        """
        length = max(map(len, rows), default=0)
        fitted = [row.fit(length, pad) for row in rows]

        def stacked(values: Sequence[tuple[int, ...]], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).view(len(rows), length)

        return cls(
            images=images,
            tokens=stacked([row.tokens for row in fitted], torch.int64),
            mask_ar=stacked([row.mask_ar for row in fitted], torch.int64),
            mask_input=stacked([row.mask_input for row in fitted], torch.bool),
            mask_loss=stacked([row.mask_loss for row in fitted], torch.float32)
            if with_loss
            else None,
        )

    @property
    def num_examples(self) -> int:
        return self.tokens.shape[0]

    def rows(self, index: Tensor | Sequence[int] | slice) -> Batch:
        """The chosen examples, in the order of the index, with their images.

        Args:
            index: int64[B'] or a list of row numbers, which may repeat; bool[B]; or a slice.
        """
        return self._map(lambda tensor: tensor[index])

    def trim(self) -> Batch:
        """The batch without the last columns, in which every row has padding."""
        used = self.mask_input.any(dim=0).nonzero()
        length = int(used[-1]) + 1 if len(used) else 0
        images = self.images
        return self._map(lambda tensor: tensor if tensor is images else tensor[:, :length])

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(x) for name, x in tensors.items() if x is not None})
