"""What ColPali gives for a page or a query: a vector of each token.

Axes: N tokens, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Vectors:
    """The vectors of one page or of one query, without padding.

    Attributes:
        values: float32[N, D] on the CPU, each row of length 1.
        grid: rows and columns of the patches of a page, whose vectors come first, row by row; None
            for a query.
        pieces: of a query, the text of each of its N tokens, "" for those that the preset adds; of
            a page, nothing.
    """

    values: Tensor
    grid: tuple[int, int] | None = None
    pieces: tuple[str, ...] = ()
