"""Fewer vectors of a page: the most alike are replaced by their mean.

Axes: N vectors of a page, D dimensions.
Source: colpali-engine compression/token_pooling/hierarchical_token_pooling.py; nearest-neighbour
chains for Ward's criterion: Murtagh, A survey of recent advances in hierarchical clustering
algorithms (1983).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paligemma.errors import ConfigError

POOLINGS = ("colpali", "ward")
MAX_POOLED = 8192  # vectors of a page; the distances of all pairs are in memory
_MAX_FACTOR = 1024


def pool(values: Tensor, factor: int, how: str = "colpali") -> Tensor:
    """About N / factor vectors in the place of N, each the mean of a cluster, of length 1.

    Clusters are merged by Ward's criterion, two at a time, until N // factor are left.

    Args:
        values: float[N, D] of one page, of length 1 each.
        factor: how many vectors become one on average; 1 leaves all as they are.
        how: "ward" compares the vectors themselves; "colpali" compares, as colpali-engine does,
            their dissimilarities to all others, which gives other clusters.

    Returns:
        float32[max(N // factor, 1), D] in the order of the first vector of each cluster.

    Raises:
        ConfigError: an unknown way, a factor out of its range, or too many vectors.
    """
    if how not in POOLINGS:
        raise ConfigError(f"pooling must be one of {', '.join(POOLINGS)}, got {how!r:.100}")
    if type(factor) is not int or not 1 <= factor <= _MAX_FACTOR:
        raise ConfigError(f"the pooling factor must lie in 1..{_MAX_FACTOR}, got {factor!r:.100}")
    if values.ndim != 2 or not 1 <= len(values) <= MAX_POOLED:
        raise ConfigError(
            f"pooling takes 1 to {MAX_POOLED} vectors of one page, got the shape "
            f"{list(values.shape)}"
        )
    wide = values.detach().float().cpu()
    if factor == 1:
        return wide
    points = wide if how == "ward" else 1 - wide @ wide.T
    labels = torch.from_numpy(_ward(points.double().numpy(), max(len(wide) // factor, 1)))
    sums = torch.zeros(int(labels.max()) + 1, wide.shape[1]).index_add_(0, labels, wide)
    return torch.nn.functional.normalize(sums, dim=-1)


def _ward(points: NDArray[np.float64], num_clusters: int) -> NDArray[np.int64]:
    """The cluster of each point, numbered by first appearance."""
    merges = sorted(_merges(points))  # by the growth of variance; the chain finds them unordered
    parent = np.arange(len(points))

    def root(point: int) -> int:
        while parent[point] != point:
            parent[point] = point = parent[parent[point]]
        return point

    for _, one, other in merges[: len(points) - num_clusters]:
        low, high = sorted((root(one), root(other)))
        parent[high] = low  # the root is the first point of its cluster
    roots = np.array([root(point) for point in range(len(points))])
    return np.unique(roots, return_inverse=True)[1].reshape(-1)


def _merges(points: NDArray[np.float64]) -> list[tuple[float, int, int]]:
    """All N - 1 merges as (height, a point of one cluster, a point of the other).

    A chain leads from each cluster to its nearest neighbour, until two are each other's nearest.
    """
    squares = (points**2).sum(axis=1)
    # Squared distances of clusters; infinite to a cluster itself and to one that is merged away.
    apart = np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0.0)
    np.fill_diagonal(apart, np.inf)
    sizes = np.ones(len(points))
    merges: list[tuple[float, int, int]] = []
    chain: list[int] = []
    while len(merges) < len(points) - 1:
        if not chain:
            chain = [int(np.argmax(sizes > 0))]
        last = chain[-1]
        nearest = int(np.argmin(apart[last]))
        # The one before wins a tie, or the chain would go round in it.
        if len(chain) > 1 and apart[last, chain[-2]] <= apart[last, nearest]:
            nearest = chain[-2]
            chain = chain[:-2]
            merges.append((float(apart[last, nearest]), last, nearest))
            _join(apart, sizes, last, nearest)
        else:
            chain.append(nearest)
    return merges


def _join(apart: NDArray[np.float64], sizes: NDArray[np.float64], gone: int, kept: int) -> None:
    """Merge one cluster into another, by the formula of Lance and Williams."""
    both = apart[gone] * (sizes[gone] + sizes) + apart[kept] * (sizes[kept] + sizes)
    both = (both - apart[gone, kept] * sizes) / (sizes[gone] + sizes[kept] + sizes)
    both[~np.isfinite(apart[kept])] = np.inf
    both[[gone, kept]] = np.inf
    sizes[kept] += sizes[gone]
    sizes[gone] = 0
    apart[kept], apart[:, kept] = both, both
    apart[gone], apart[:, gone] = np.inf, np.inf
