"""Rows of the embedding table that are trained alone, beside the frozen table.

Axes: N trained rows, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paligemma.errors import ConfigError
from paligemma.kernels.linear import TiedEmbedding
from paligemma.vocab import NUM_LOC, NUM_SEG, Vocab

# Tokens that an adapter may learn by name.
TOKEN_KINDS: Mapping[str, str] = {"loc": "locations", "seg": "codewords of masks"}


def ids_of(kind: str, vocab: Vocab) -> range:
    """The ids of a name of `TOKEN_KINDS`.

    Raises:
        ConfigError: the vocabulary has none.
    """
    if not vocab.has_objects:
        raise ConfigError(
            f"rows of {kind} are trained in a vocabulary that has them, this model's has neither "
            "<loc> nor <seg>; leave them out"
        )
    first, count = (vocab.loc0, NUM_LOC) if kind == "loc" else (vocab.seg0, NUM_SEG)
    return range(first, first + count)


class TokenRows(nn.Module):
    """New values of some rows of the table, as float32 whatever the table's dtype.

    Args:
        ids: int64[N], each once.
        rows: float32[N, D].
        start: float[N, D], the table's own rows; None where they are not known.
    """

    ids: Tensor

    def __init__(self, ids: Tensor, rows: Tensor, start: Tensor | None = None) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows)
        self.register_buffer("ids", ids, persistent=False)
        self._start = start

    @property
    def is_active(self) -> bool:
        """Whether some row differs from the table's."""
        start = self._start
        return start is None or bool((self.rows.detach() != start.to(self.rows)).any())


class AdaptedEmbedding(nn.Module):
    """An embedding with rows of its own; stands in its place, with its methods.

    Where the table is the output head too, the logits of these tokens are computed from the same
    rows, so that they are learnt once. A head of its own stays as it is.

    Args:
        base: the embedding, unchanged.
        update: its new rows.
    """

    # Where the row of an id lies in the update; -1 for an id that has none.
    places: Tensor

    def __init__(self, base: TiedEmbedding, update: TokenRows) -> None:
        super().__init__()
        self.base, self.update = base, update
        places = torch.full((base.num_tokens,), -1)
        places[update.ids.cpu()] = torch.arange(len(update.ids))
        self.register_buffer("places", places.to(base.device), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the embeddings."""
        return self.base.dtype

    @property
    def device(self) -> torch.device:
        return self.base.device

    def forward(self, tokens: Tensor) -> Tensor:
        """int64[...] -> float[..., D]."""
        return self._replaced(self.base(tokens), self.places[tokens])

    def rows(self, start: int, count: int) -> Tensor:
        """float[count, D]: the embeddings of `count` neighbouring ids from `start` on."""
        return self._replaced(self.base.rows(start, count), self.places[start : start + count])

    def logits(self, hidden: Tensor) -> Tensor:
        """float[..., D] -> float32[..., V]; see `logits_product`."""
        logits = self.base.logits(hidden)
        if not self.base.is_tied:
            return logits
        with torch.autocast(hidden.device.type, enabled=False):
            own = F.linear(hidden.float(), self.update.rows.float())
        return logits.index_copy_(-1, self.update.ids, own)

    def _replaced(self, embeddings: Tensor, places: Tensor) -> Tensor:
        own = F.embedding(places.clamp(min=0), self.update.rows).to(embeddings.dtype)
        return torch.where((places >= 0)[..., None], own, embeddings)

    def fold(self) -> TiedEmbedding:
        """The embedding itself, its rows replaced."""
        self.base.assign_rows(self.update.ids, self.update.rows)
        return self.base
