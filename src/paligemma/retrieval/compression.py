"""Vectors in fewer bits: eight a number, or one.

Axes: N page vectors, Q query tokens, P pages, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from paligemma.errors import ConfigError

# Number of ones in each byte, where NumPy does not count them itself (before 2.0).
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1)


def quantise_int8(values: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors as whole numbers with a scale each; a fourth of the bytes of float32.

    Args:
        values: float[N, D].

    Returns:
        int8[N, D] and float32[N]; `widen` multiplies them.
    """
    wide = values.float()
    scales = wide.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (wide / scales[:, None]).round().clamp(-127, 127).to(torch.int8), scales


def widen(codes: Tensor, scales: Tensor) -> Tensor:
    """float32[N, D]: the vectors that `quantise_int8` rounded."""
    return codes.float() * scales[:, None]


def binary(values: Tensor) -> Tensor:
    """The signs of vectors, a thirty-second of the bytes of float32.

    Args:
        values: float[N, D], D a multiple of 8.

    Returns:
        uint8[N, D/8]; a bit is 1 where a number is positive, the first number in the highest bit.

    Raises:
        ConfigError: D is no multiple of 8.
    """
    if values.ndim != 2 or values.shape[1] % 8:
        raise ConfigError(
            f"signs are packed eight a byte, got vectors of the shape {list(values.shape)}; the "
            "number of dimensions must be a multiple of 8"
        )
    return torch.from_numpy(np.packbits(values.cpu().numpy() > 0, axis=1))


def hamming_sim(query: Tensor, pages: Sequence[Tensor]) -> Tensor:
    """MaxSim of signs: as `max_sim`, of vectors whose numbers are all 1 or -1.

    It finds candidates, which are then scored exactly: signs alone confuse pages that are alike.

    Args:
        query: uint8[Q, D/8] from `binary`.
        pages: uint8[N, D/8] of each page.

    Returns:
        float32[P], between -Q*D and Q*D.

    Raises:
        ConfigError: other shapes or dtypes, or a page without vectors.
    """
    for one in (query, *pages):
        if one.dtype != torch.uint8 or one.ndim != 2 or one.shape[1] != query.shape[1]:
            raise ConfigError(
                f"signs are compared as uint8[.., {query.shape[-1]}], got {one.dtype} of the shape "
                f"{list(one.shape)}; take all from binary"
            )
        if not len(one):
            raise ConfigError("queries and pages need at least one vector, got none")
    num_bits = 8 * query.shape[1]
    mine = _words(query)
    nearest = [_num_apart(mine, _words(page)).min(axis=1).sum(dtype=np.int64) for page in pages]
    counts = torch.tensor(nearest, dtype=torch.float32).view(-1)
    return len(query) * num_bits - 2 * counts


def _words(signs: Tensor) -> np.ndarray:
    """The bytes, as words of 64 bits where they fill them."""
    as_bytes = np.ascontiguousarray(signs.numpy())
    return as_bytes if as_bytes.shape[1] % 8 else as_bytes.view(np.uint64)


def _num_apart(query: np.ndarray, page: np.ndarray) -> np.ndarray:
    """uint16[Q, N]: in how many bits each vector of a query differs from each of a page."""
    apart = np.zeros((len(query), len(page)), np.uint16)
    for mine, theirs in zip(query.T, page.T, strict=True):  # a word of all vectors at a time
        apart += _num_ones(mine[:, None] ^ np.ascontiguousarray(theirs))
    return apart


def _num_ones(words: np.ndarray) -> np.ndarray:
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(words)
    return _ONES[words[..., None].view(np.uint8)].sum(axis=-1, dtype=np.uint8)
