"""How well a query's vectors match those of a page: late interaction, exact and in fewer bits.

Axes: Q query tokens, N page tokens, P pages, D dimensions.
Source: ColBERT, arXiv:2004.12832, eq. 3; ColPali, arXiv:2407.01449.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paligemma.errors import ConfigError

# Similarities that are in memory together, 64 MB.
_AT_ONCE = 1 << 24


def max_sim(query: Tensor, pages: Sequence[Tensor]) -> Tensor:
    """For each page the sum, over the query's tokens, of the best match among the page's tokens.

    Each page is scored by itself, in float32 and without padding, so a score depends neither on the
    other pages nor on their order.

    Args:
        query: float[Q, D].
        pages: float[N, D] of each page, in any dtype.

    Returns:
        float32[P].

    Raises:
        ConfigError: tensors of other shapes, or a page without vectors.
    """
    return score_matrix([query], pages)[0]


def score_matrix(queries: Sequence[Tensor], pages: Sequence[Tensor]) -> Tensor:
    """Scores of every query on every page, as `max_sim` gives them.

    Args:
        queries: float[Q, D] of each query.
        pages: float[N, D] of each page.

    Returns:
        float32[number of queries, P].
    """
    dim = _require(queries, pages)
    scores = torch.zeros(len(queries), len(pages))
    if not dim or not pages:
        return scores
    wide = [query.float() for query in queries]
    with torch.autocast(wide[0].device.type, enabled=False):
        for column, page in enumerate(pages):
            turned = page.to(wide[0].device, torch.float32).T
            for row, query in enumerate(wide):
                scores[row, column] = (query @ turned).amax(dim=1).sum()
    return scores


def _require(queries: Sequence[Tensor], pages: Sequence[Tensor]) -> int:
    """The number of dimensions that all have; 0 without queries."""
    dims = {one.shape[-1] for one in (*queries, *pages) if one.ndim == 2}
    if len(dims) > 1 or any(one.ndim != 2 or not len(one) for one in (*queries, *pages)):
        shapes = sorted({str(list(one.shape)) for one in (*queries, *pages)})[:5]
        raise ConfigError(
            "queries and pages are scored by vectors of one length, at least one of each, got the "
            f"shapes {', '.join(shapes)}; take all from one model"
        )
    return dims.pop() if queries and dims else 0
