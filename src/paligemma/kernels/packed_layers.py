"""Linear layers and the embedding table as packed matrices: fewer bits, float32 arithmetic.

Axes: D input width, E output width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paligemma.kernels.packed_matrix import PackedMatrix, num_bytes, num_scales


class PackedWeight(nn.Module):
    """Where the weights of a layer lie; there are none until they are packed or held.

    A module, so that panels and scales are among the buffers of a model.

    Args:
        kind: of `PackedMatrix`.
        n, k: rows and columns.
    """

    def __init__(self, kind: str, n: int, k: int) -> None:
        super().__init__()
        self.kind, self.n, self.k = kind, n, k
        self._matrix: PackedMatrix | None = None
        self.register_buffer("panels", None)
        self.register_buffer("scale", None)

    @property
    def num_bytes(self) -> int:
        """Bytes of the panels."""
        return num_bytes(self.kind, self.n, self.k)

    @property
    def num_scales(self) -> int:
        return num_scales(self.kind, self.n)

    @property
    def is_empty(self) -> bool:
        """Whether there are no weights yet."""
        return self._matrix is None

    @property
    def matrix(self) -> PackedMatrix:
        """The weights.

        Raises:
            ValueError: there are none yet.
        """
        if self._matrix is None:
            raise ValueError("the layer has no weights yet")
        return self._matrix

    def hold(self, matrix: PackedMatrix) -> None:
        """Take a matrix that is packed already."""
        self._matrix, self.panels, self.scale = matrix, matrix.data, matrix.scale

    @torch.no_grad()
    def pack(self, weight: Tensor) -> None:
        """Take float[N, K]; ValueError for another shape."""
        matrix = self._matrix or self.new_matrix()
        matrix.pack(weight)
        self.hold(matrix)

    def new_matrix(self) -> PackedMatrix:
        """A matrix of this size to be packed."""
        return PackedMatrix.empty(self.kind, self.n, self.k)


class PackedLinear(nn.Module):
    """Stands in for a frozen `Linear`; for inference, as no gradient flows through it.

    Args:
        kind: of `PackedMatrix`.
        in_features, out_features: D and E.
        bias: whether there is one; it stays float32.
    """

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, kind: str, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = PackedWeight(kind, out_features, in_features)
        empty = torch.empty(out_features, device="meta")
        self.bias = nn.Parameter(empty, requires_grad=False) if bias else None

    @property
    def matrix(self) -> PackedMatrix:
        """[E, D], its weights."""
        return self.weight.matrix

    def quantise(self, weight: Tensor) -> None:
        """Take float[E, D] as the weights; ValueError for another shape."""
        self.weight.pack(weight)

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """float[..., D] -> float32[..., E], in the memory of `out` where it is given."""
        return self.matrix.multiply(x, self.bias, out)

    def dense(self) -> Tensor:
        """float32[E, D]: the values that the weights stand for."""
        return self.matrix.unpack()


class PackedEmbedding(nn.Module):
    """Stands in for `TiedEmbedding` and `UntiedEmbedding`.

    Args:
        kind: of `PackedMatrix`.
        num_tokens, width: V and D.
        is_tied: whether the logits are products with the embeddings themselves.
    """

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, kind: str, num_tokens: int, width: int, *, is_tied: bool) -> None:
        super().__init__()
        self.num_tokens, self.width, self.is_tied = num_tokens, width, is_tied
        self.weight = PackedWeight(kind, num_tokens, width)
        self.head_weight = None if is_tied else PackedWeight(kind, num_tokens, width)

    @property
    def matrix(self) -> PackedMatrix:
        """[V, D], the embeddings."""
        return self.weight.matrix

    @property
    def head(self) -> PackedMatrix:
        """[V, D], the output head."""
        return (self.head_weight or self.weight).matrix

    def quantise(self, weight: Tensor) -> None:
        """Take float[V, D] as the embeddings; ValueError for another shape."""
        self.weight.pack(weight)

    def quantise_head(self, weight: Tensor) -> None:
        """Take float[V, D] as a head of its own; ValueError for another shape."""
        assert self.head_weight is not None
        self.head_weight.pack(weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64[...] -> float32[..., D]."""
        ids, places = tokens.unique(return_inverse=True)
        return self.matrix.take(ids)[places]

    def rows(self, start: int, count: int) -> Tensor:
        """float32[count, D]: the embeddings of `count` neighbouring ids from `start` on."""
        return self.matrix.unpack(start, start + count)

    def logits(self, hidden: Tensor) -> Tensor:
        """float[..., D] -> float32[..., V]."""
        return self.head.multiply(hidden)


def packed_weights(model: nn.Module) -> dict[str, PackedWeight]:
    """The packed weights of a model, each by the parameter of a plain model that it stands for."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear | PackedEmbedding):
            found[f"{name}.weight"] = module.weight
        if isinstance(module, PackedEmbedding) and module.head_weight is not None:
            found[f"{name}.head"] = module.head_weight
    return found
