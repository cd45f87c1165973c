"""Linear layers and the output head, with fast routes for bfloat16 on older CPUs.

A CPU without bfloat16 arithmetic widens each operand before it multiplies. torch's general product
does that in its innermost loop, again and again. The routes here widen every weight once. Like
torch they accumulate in float32 and round once, at the end; logits are not rounded at all.
Everywhere else the product is torch's own.

Axes: D input width, E output width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# With fewer rows than this, widening the weights costs more than it saves (measured at 2..24).
_MIN_ROWS = 16
# Size of a block of weights that is widened at once: it stays in the CPU's cache, and has enough
# rows for a fast product.
_CHUNK_ELEMENTS = 1 << 20
_CHUNK_ROWS = 256
# Number of the largest logits of each row that are computed again in float32.
_REFINED = 256


@cache
def widens_bfloat16() -> bool:
    """Whether this CPU computes bfloat16 products in float32: an x86 CPU without bfloat16 units."""
    # The oldest torch that the package allows does not have this function.
    if not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return capabilities.get("architecture") == "x86_64" and not (
        capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` by the fastest route that computes the same function.

    Args:
        x: float[..., D].
        weight: float[E, D].
        bias: float[E], or None.

    Returns:
        float[..., E].
    """
    num_rows = x.numel() // max(x.shape[-1], 1)
    if _is_plain(x, weight) or 1 < num_rows < _MIN_ROWS:
        return F.linear(x, weight, bias)
    if num_rows == 1:
        row = x.reshape(-1)
        y = torch.mv(weight, row) if bias is None else torch.addmv(bias, weight, row)
        return y.view(*x.shape[:-1], -1)
    return _widened(x, weight, bias)


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    """Whether to use torch's own product; always under autograd, which would keep wide copies."""
    narrow = x.dtype == weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    return not narrow or torch.is_grad_enabled() or not widens_bfloat16()


def _widened(
    x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None = None
) -> Tensor:
    """The product in float32, one block of output columns at a time; `dtype` is x's by default."""
    wide = x.float()
    y = x.new_empty(*x.shape[:-1], weight.shape[0], dtype=dtype)
    block = max(_CHUNK_ROWS, _CHUNK_ELEMENTS // weight.shape[1])
    for start in range(0, weight.shape[0], block):
        rows = slice(start, start + block)
        part = None if bias is None else bias[rows].float()
        y[..., rows] = F.linear(wide, weight[rows].float(), part)
    return y


def logits_product(hidden: Tensor, table: Tensor) -> Tensor:
    """Logits in float32 whatever the table's dtype, also under autocast.

    Logits around 20 that are rounded to bfloat16 lie an eighth apart, so the two largest are often
    equal and the lower id would win. Widening a bfloat16 table for few positions would take three
    times as long as torch's rounded product. That product finds the 256 largest logits of each
    position, and these are computed again in float32, so that the largest logit and its probability
    are those of a float32 product.

    Args:
        hidden: float[..., D] hidden states after the final norm.
        table: float[V, D] embeddings.

    Returns:
        float32[..., V].
    """
    with torch.autocast(hidden.device.type, enabled=False):
        if torch.is_grad_enabled() and table.dtype != torch.float32 and not table.requires_grad:
            rows = hidden.reshape(-1, hidden.shape[-1]).float()
            logits = _FrozenLogits.apply(rows, table)
            return logits.view(*hidden.shape[:-1], len(table))
        if table.dtype == torch.float32 or torch.is_grad_enabled():
            return F.linear(hidden.float(), table.float())
        rows = hidden.reshape(-1, hidden.shape[-1]).to(table.dtype)
        if table.device.type == "cpu" and len(rows) >= _MIN_ROWS:
            logits = _widened(rows, table, None, torch.float32)
        else:
            logits = refined(linear(rows, table).float(), rows, table.__getitem__)
    return logits.view(*hidden.shape[:-1], len(table))


class _FrozenLogits(torch.autograd.Function):
    """The product with a narrow table that is not trained, in float32, block by block.

    The table is never wide as a whole: autograd would keep it so until the backward.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, table: Tensor) -> Tensor:
        """float32[N, D], float[V, D] -> float32[N, V]."""
        ctx.save_for_backward(table)
        logits = rows.new_empty(len(rows), len(table))
        for block in _blocks(table):
            torch.mm(rows, table[block].float().T, out=logits[:, block])
        return logits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """float32[N, V] -> float32[N, D]."""
        (table,) = ctx.saved_tensors
        found = gradient.new_zeros(len(gradient), table.shape[1])
        for block in _blocks(table):
            found.addmm_(gradient[:, block], table[block].float())
        return found, None


def _blocks(table: Tensor) -> Iterator[slice]:
    """Ranges of rows, 32 MB wide on a CPU, and few for a GPU."""
    num_elements = _CHUNK_ELEMENTS << (6 if table.is_cuda else 3)
    size = max(_CHUNK_ROWS, num_elements // table.shape[1])
    for start in range(0, len(table), size):
        yield slice(start, start + size)


def refined(logits: Tensor, rows: Tensor, take: Callable[[Tensor], Tensor]) -> Tensor:
    """The rounded logits float32[N, V], the largest of each row computed again in float32.

    Args:
        rows: float[N, D], the hidden states.
        take: int64[M, R] -> float[M, R, D], rows of the table.
    """
    largest = logits.topk(min(_REFINED, logits.shape[1]), dim=1).indices
    for part in torch.arange(len(rows), device=rows.device).split(_MIN_ROWS):
        ids = largest[part]
        exact = take(ids).float() @ rows[part].float()[:, :, None]
        logits[part[:, None], ids] = exact[..., 0]
    return logits


class Linear(nn.Linear):
    """`nn.Linear` by way of `linear`.

    Nothing outside this class reads its weight, so a layer of another type can take its place if it
    has the same `forward`, `dtype` and `device`.
    """

    def reset_parameters(self) -> None:
        """Leave the values as they are in memory: every model draws or loads them all itself."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of inputs and outputs."""
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def forward(self, x: Tensor) -> Tensor:
        """float[..., D] -> float[..., E]."""
        return linear(x, self.weight, self.bias)

    def dense(self) -> Tensor:
        """float32[E, D]: the weights as a matrix, which an adapter is added to."""
        return self.weight.detach().float()

    def assign(self, dense: Tensor) -> None:
        """Take float32[E, D] as the weights, rounded to the layer's dtype."""
        self.weight = nn.Parameter(dense.to(self.weight.dtype), requires_grad=False)


class TiedEmbedding(nn.Module):
    """Token embeddings and output head: one table serves both.

    As with `Linear`, a layer of another type can take its place if it has the same methods.

    Args:
        num_tokens: size of the vocabulary, V.
        width: size of an embedding, D.
    """

    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__()
        # Left as it is in memory, as in `Linear`.
        self.weight = nn.Parameter(torch.empty(num_tokens, width))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the embeddings."""
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary, V."""
        return len(self.weight)

    @property
    def width(self) -> int:
        """Size of an embedding, D."""
        return self.weight.shape[1]

    @property
    def is_tied(self) -> bool:
        """Whether the logits are products with the embeddings themselves."""
        return True

    def forward(self, tokens: Tensor) -> Tensor:
        """int64[...] -> float[..., D]."""
        return F.embedding(tokens, self.weight)

    def assign_rows(self, ids: Tensor, rows: Tensor) -> None:
        """Take float[N, D] as the embeddings of some ids, rounded to the table's dtype."""
        table = self.weight.detach()
        table = table.index_copy(0, ids.to(table.device), rows.detach().to(table))
        self.weight = nn.Parameter(table, requires_grad=False)

    def rows(self, start: int, count: int) -> Tensor:
        """float[count, D]: the embeddings of `count` neighbouring ids from `start` on."""
        return self.weight[start : start + count]

    def logits(self, hidden: Tensor) -> Tensor:
        """float[..., D] -> float32[..., V]; see `logits_product`."""
        return logits_product(hidden, self.weight)


class UntiedEmbedding(TiedEmbedding):
    """Token embeddings, and an output head that was trained apart from them."""

    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__(num_tokens, width)
        self.head = nn.Parameter(torch.empty(num_tokens, width))

    @property
    def is_tied(self) -> bool:
        """Whether the logits are products with the embeddings themselves."""
        return False

    def logits(self, hidden: Tensor) -> Tensor:
        """float[..., D] -> float32[..., V]; see `logits_product`."""
        return logits_product(hidden, self.head)
