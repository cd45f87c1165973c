"""Linear layers and the embedding table as packed matrices: fewer bits, float32 arithmetic.

Layers that read the same input lie in one matrix: query, key and value one after another, gate and
up in alternate panels. Each layer holds its part of it, and a decoder step may take the whole.

Axes: D input width, E output width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paligemma.kernels.packed_matrix import PANEL, PackedMatrix

# Version of what is stored: panels of each kind, and which layers share a matrix.
LAYOUT = 1
# Rows that are packed at once where they must be widened before.
_ROWS_AT_ONCE = 1 << 13


class PackedStore(nn.Module):
    """Where the weights of a layer lie, or those of several layers that are joined.

    Memory is taken when the first of them is packed, or the matrix is put there from a file. A
    module, so that panels and scales are among the buffers of a model.

    Args:
        name: of the matrix in a file.
        kind: of `PackedMatrix`.
        sizes: E of each layer; those of joined ones are whole panels.
        width: D.
        interleaved: whether the layers, two of one size, lie in alternate panels.

    Attributes:
        missing: places of the layers that have no weights yet.
    """

    def __init__(
        self, name: str, kind: str, sizes: Sequence[int], width: int, *, interleaved: bool = False
    ) -> None:
        super().__init__()
        self.name, self.kind, self.sizes, self.width = name, kind, tuple(sizes), width
        self.missing = set(range(len(self.sizes)))
        self._stride = 2 if interleaved else 1
        self._matrix: PackedMatrix | None = None
        self.register_buffer("panels", None)
        self.register_buffer("scale", None)

    @property
    def matrix(self) -> PackedMatrix:
        """The matrix of all layers."""
        if self._matrix is None:
            self._hold(PackedMatrix.empty(self.kind, sum(self.sizes), self.width))
        assert self._matrix is not None
        return self._matrix

    def put(self, matrix: PackedMatrix) -> None:
        """Take a matrix that is packed already."""
        self._hold(matrix)
        self.missing.clear()

    def _hold(self, matrix: PackedMatrix) -> None:
        self._matrix, self.panels, self.scale = matrix, matrix.data, matrix.scale

    def part(self, place: int) -> PackedMatrix:
        """The matrix of one layer, a view."""
        return self._rows(place, 0, self.sizes[place])

    @torch.no_grad()
    def pack(self, place: int, weight: Tensor) -> None:
        """Take float[E, D] as the weights of one layer.

        Raises:
            ValueError: another shape.
        """
        if tuple(weight.shape) != (self.sizes[place], self.width):
            raise ValueError(f"the layer has {self.sizes[place], self.width}, {weight.shape}")
        for start in range(0, len(weight), _ROWS_AT_ONCE):
            rows = weight[start : start + _ROWS_AT_ONCE]
            rows = rows if rows.dtype == torch.bfloat16 else rows.float()
            self._rows(place, start, len(rows)).pack(rows.contiguous())
        self.missing.discard(place)

    def _rows(self, place: int, start: int, count: int) -> PackedMatrix:
        if len(self.sizes) == 1 and count == self.sizes[0]:
            return self.matrix
        before = place if self._stride == 2 else sum(self.sizes[:place]) // PANEL
        first = before + self._stride * (start // PANEL)
        return self.matrix.part(first, count, self._stride)


class PackedLinear(nn.Module):
    """Stands in for a frozen `Linear`; for inference, as no gradient flows through it.

    Args:
        store: where its weights lie.
        place: its number among the layers there.
        bias: whether there is one; it stays float32.
    """

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, store: PackedStore, place: int = 0, *, bias: bool) -> None:
        super().__init__()
        self.store, self.place = store, place
        self.in_features, self.out_features = store.width, store.sizes[place]
        empty = torch.empty(self.out_features, device="meta")
        self.bias = nn.Parameter(empty, requires_grad=False) if bias else None
        self._part: PackedMatrix | None = None

    @property
    def matrix(self) -> PackedMatrix:
        """Its weights."""
        if self._part is None:
            self._part = self.store.part(self.place)
        return self._part

    def quantise(self, weight: Tensor) -> None:
        """Take float[E, D] as the weights; ValueError for another shape."""
        self.store.pack(self.place, weight)

    def forward(self, x: Tensor) -> Tensor:
        """float[..., D] -> float32[..., E]."""
        return self.matrix.multiply(x, self.bias)

    def dense(self) -> Tensor:
        """float32[E, D]: the values that the weights stand for."""
        return self.matrix.unpack()


class PackedEmbedding(nn.Module):
    """Stands in for `TiedEmbedding` and `UntiedEmbedding`.

    Args:
        table: where the embeddings lie.
        head: where an output head of its own lies; None is the table.
    """

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, table: PackedStore, head: PackedStore | None = None) -> None:
        super().__init__()
        self.store, self.head_store = table, head or table
        self.num_tokens, self.width = table.sizes[0], table.width

    @property
    def matrix(self) -> PackedMatrix:
        """[V, D], the embeddings."""
        return self.store.matrix

    @property
    def head(self) -> PackedMatrix:
        """[V, D], the output head."""
        return self.head_store.matrix

    @property
    def is_tied(self) -> bool:
        """Whether the logits are products with the embeddings themselves."""
        return self.head_store is self.store

    def quantise(self, weight: Tensor) -> None:
        """Take float[V, D] as the embeddings; ValueError for another shape."""
        self.store.pack(0, weight)

    def quantise_head(self, weight: Tensor) -> None:
        """Take float[V, D] as the head; ValueError for another shape."""
        self.head_store.pack(0, weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64[...] -> float32[..., D]."""
        ids, places = tokens.unique(return_inverse=True)
        rows = [self.rows(token, 1) for token in ids.tolist()]
        found = torch.cat(rows) if rows else torch.empty(0, self.width)
        return found[places]

    def rows(self, start: int, count: int) -> Tensor:
        """float32[count, D]: the embeddings of `count` neighbouring ids from `start` on."""
        return self.matrix.unpack(start, start + count)

    def logits(self, hidden: Tensor) -> Tensor:
        """float[..., D] -> float32[..., V]."""
        return self.head.multiply(hidden)


def stores_of(model: nn.Module) -> list[PackedStore]:
    """The packed matrices of a model, each once, in its order."""
    return [module for module in model.modules() if isinstance(module, PackedStore)]
