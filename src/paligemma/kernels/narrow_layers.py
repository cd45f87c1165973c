"""Linear layers and the embedding table in fewer bits by torch's own operations, for a GPU.

The values are those of packed layers of the same kind, in rows instead of panels. A product widens
some rows of weights at a time to the dtype of its inputs.

Axes: D input width, E output width, V vocabulary, N and K rows and columns of a matrix.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paligemma.kernels import panels
from paligemma.kernels.linear import refined

KINDS = ("int8", "fp8", "int4")
# Weights that are rounded, and that are widened, at once.
_ROUNDED_AT_ONCE, _WIDENED_AT_ONCE = 1 << 24, 1 << 26
_HALF = panels.GROUP // 2


class NarrowMatrix(nn.Module):
    """A matrix [N, K] without values; `quantise` gives it some.

    Args:
        kind: one of `KINDS`.
        n, k: N and K.

    Attributes:
        codes: int8 or float8_e4m3fn [N, K]; of int4 uint8[N, K/2], where byte j of the 16 of a
            group has column j in its lower half and column j + 16 in the other.
        scale: float32[N]; of int4 float16[N, K/32].
    """

    codes: Tensor
    scale: Tensor

    def __init__(self, kind: str, n: int, k: int) -> None:
        super().__init__()
        self.kind, self.n, self.k = kind, n, k
        self.register_buffer("codes", torch.empty(0, device="meta"))
        self.register_buffer("scale", torch.empty(0, device="meta"))

    @property
    def num_bytes(self) -> int:
        """Bytes of codes and scales."""
        columns = panels.num_columns(self.kind, self.k)
        if self.kind == "int4":
            return self.n * columns // panels.GROUP * (_HALF + torch.float16.itemsize)
        return self.n * (self.k + torch.float32.itemsize)

    @torch.no_grad()
    def quantise(self, weight: Tensor) -> None:
        """Take float[N, K] as the values, on its device; a part of them is in float32 at a time.

        Raises:
            ValueError: another shape.
        """
        if tuple(weight.shape) != (self.n, self.k):
            raise ValueError(f"the matrix is {self.n} x {self.k}, got {tuple(weight.shape)}")
        columns = panels.num_columns(self.kind, self.k)
        codes, scales = [], []
        for some in weight.detach().split(max(1, _ROUNDED_AT_ONCE // self.k)):
            found, scale = panels.rounded(self.kind, F.pad(some.float(), (0, columns - self.k)))
            if self.kind == "int4":
                halves = found.unflatten(1, (-1, 2, _HALF))
                found = (halves[:, :, 0] | halves[:, :, 1] << 4).flatten(1)
            else:
                found = found[:, : self.k]
            codes.append(found)
            scales.append(scale)
        self.codes, self.scale = torch.cat(codes), torch.cat(scales)

    def take(self, ids: Tensor) -> Tensor:
        """int64[...] -> float32[..., K]: the values of some rows."""
        values = self._widened(self.codes[ids], self.scale[ids], torch.float32)
        return values if self.kind == "int4" else values * self.scale[ids][..., None]

    def multiply(self, x: Tensor) -> Tensor:
        """float[..., K] -> float[..., N] in x's dtype, which rounds each output once or twice."""
        y = x.new_empty(*x.shape[:-1], self.n)
        step = max(1, _WIDENED_AT_ONCE // self.k)
        for start in range(0, self.n, step):
            rows = slice(start, start + step)
            y[..., rows] = F.linear(x, self._widened(self.codes[rows], self.scale[rows], x.dtype))
        return y if self.kind == "int4" else (y * self.scale).to(y.dtype)

    def _widened(self, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """[..., K] in a dtype: the values of int4; of the other kinds without their scales."""
        if self.kind != "int4":
            return codes.to(dtype)
        pairs = codes.unflatten(-1, (-1, 1, _HALF))  # [..., G, 1, 16]
        whole = torch.cat([pairs & 15, pairs >> 4], dim=-2).flatten(-2).to(dtype) - 8
        return (whole * scale.to(dtype)[..., None]).flatten(-2)[..., : self.k]


class NarrowLinear(nn.Module):
    """Stands in for a frozen `Linear`; for inference, as no gradient flows through it.

    Args:
        kind: one of `KINDS`.
        in_features, out_features: D and E.
        bias: whether there is one; it is not quantised.
        dtype: of inputs and outputs.
    """

    def __init__(
        self, kind: str, in_features: int, out_features: int, *, bias: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.dtype = in_features, out_features, dtype
        self.matrix = NarrowMatrix(kind, out_features, in_features)
        empty = torch.empty(out_features, device="meta")
        self.bias = nn.Parameter(empty, requires_grad=False) if bias else None

    @property
    def device(self) -> torch.device:
        return self.matrix.codes.device

    def quantise(self, weight: Tensor) -> None:
        """Take float[E, D] as the weights; ValueError for another shape."""
        self.matrix.quantise(weight)

    def forward(self, x: Tensor) -> Tensor:
        """float[..., D] -> float[..., E]."""
        y = self.matrix.multiply(x)
        return y if self.bias is None else y + self.bias

    def dense(self) -> Tensor:
        """float32[E, D]: the values that the weights stand for."""
        return self.matrix.take(torch.arange(self.out_features, device=self.device))


class NarrowEmbedding(nn.Module):
    """Stands in for `TiedEmbedding` and `UntiedEmbedding`.

    Args:
        kind: one of `KINDS`.
        num_tokens, width: V and D.
        is_tied: whether the logits are products with the embeddings themselves.
        dtype: of embeddings and hidden states.
    """

    def __init__(
        self, kind: str, num_tokens: int, width: int, *, is_tied: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.num_tokens, self.width, self.is_tied = num_tokens, width, is_tied
        self.dtype = dtype
        self.matrix = NarrowMatrix(kind, num_tokens, width)
        self.head = self.matrix if is_tied else NarrowMatrix(kind, num_tokens, width)

    @property
    def device(self) -> torch.device:
        return self.matrix.codes.device

    def quantise(self, weight: Tensor) -> None:
        """Take float[V, D] as the embeddings; ValueError for another shape."""
        self.matrix.quantise(weight)

    def quantise_head(self, weight: Tensor) -> None:
        """Take float[V, D] as a head of its own; ValueError for another shape."""
        self.head.quantise(weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64[...] -> float[..., D]."""
        return self.matrix.take(tokens).to(self.dtype)

    def rows(self, start: int, count: int) -> Tensor:
        """float[count, D]: the embeddings of `count` neighbouring ids from `start` on."""
        return self(torch.arange(start, start + count, device=self.device))

    def logits(self, hidden: Tensor) -> Tensor:
        """float[..., D] -> float32[..., V]; the largest as exact as those of a plain table."""
        rows = hidden.reshape(-1, self.width)
        logits = refined(self.head.multiply(rows).float(), rows, self.head.take)
        return logits.view(*hidden.shape[:-1], self.num_tokens)
