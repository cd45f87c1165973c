"""Edit distance of ordered trees, fast for the flat ones that tables are.

Insertion and deletion cost 1, renaming at most 1. Zhang and Shasha's recursion (SIAM Journal on
Computing 18, 1989) over postorder numbers, a row of the forest table at a time; a single node has
a closed form, and subtrees of depth one, the rows of a table, are all compared at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class Postorder:
    """Shape of a tree over the postorder numbers of its nodes.

    Attributes:
        first: int64[N], first leaf below each node, or the node itself.
        roots: inner nodes that have an earlier sibling, and the root, ascending.
        num_leaves: number of leaves of those `roots` that have nothing but leaves below.
    """

    first: np.ndarray
    roots: list[int]
    num_leaves: dict[int, int]

    @classmethod
    def of(cls, parents: Sequence[int]) -> Postorder:
        """Compute the shape of a tree.

        Args:
            parents: postorder number of each node's parent, in postorder; -1 for the root.
        """
        num = len(parents)
        first = np.arange(num)
        depth = np.zeros(num, np.int64)
        for node, parent in enumerate(parents):
            if parent >= 0:
                first[parent] = min(first[parent], first[node])
                depth[parent] = max(depth[parent], depth[node] + 1)
        # Of the nodes that share a first leaf, the topmost one stands for all.
        top = {int(leaf): node for node, leaf in enumerate(first)}
        roots = sorted(node for node in top.values() if depth[node])
        flat = {node: node - int(first[node]) for node in roots if depth[node] == 1}
        return cls(first=first, roots=roots, num_leaves=flat)


def tree_distance(a: Postorder, b: Postorder, cost: np.ndarray) -> float:
    """Compute the least cost of turning one tree into the other.

    Args:
        cost: float64[N, M] in [0, 1], cost of renaming a node.
    """
    distance = np.zeros_like(cost)
    _single_nodes(a, b, cost, distance)
    _single_nodes(b, a, cost.T, distance.T)
    _flat_trees(a, b, cost, distance)
    for i in a.roots:
        for j in b.roots:
            if i in a.num_leaves and j in b.num_leaves:
                continue
            if i - a.first[i] <= j - b.first[j]:
                _forests(a.first, i, b.first, j, cost, distance)
            else:
                _forests(b.first, j, a.first, i, cost.T, distance.T)
    return float(distance[-1, -1])


def _single_nodes(a: Postorder, b: Postorder, cost: np.ndarray, distance: np.ndarray) -> None:
    """Compare leaves of a with subtrees of b: one node is renamed, the others are inserted."""
    leaves = np.flatnonzero(a.first == np.arange(len(a.first)))
    own = cost[leaves]
    for j, low in enumerate(b.first.tolist()):
        distance[leaves, j] = j - low + own[:, low : j + 1].min(axis=1)


def _flat_trees(a: Postorder, b: Postorder, cost: np.ndarray, distance: np.ndarray) -> None:
    """Compare roots with only leaves below, all roots of one number of leaves at once."""
    for num in sorted(set(a.num_leaves.values())):
        rows = np.array([i for i, n in a.num_leaves.items() if n == num])[:, None]
        for other in sorted(set(b.num_leaves.values())):
            columns = np.array([j for j, n in b.num_leaves.items() if n == other])
            ones = np.ones((len(rows), len(columns)))
            # The strings of leaves, as one edits words: [other + 1] rows of [rows, columns].
            above = [y * ones for y in range(other + 1)]
            for x in range(num):
                current = [(x + 1) * ones]
                for y in range(other):
                    both = above[y] + cost[rows - num + x, columns - other + y]
                    current.append(np.minimum(both, np.minimum(above[y + 1], current[y]) + 1))
                above = current
            # Otherwise a root becomes a leaf, and all other leaves are deleted or inserted.
            to_leaf = np.min([cost[rows, columns - other + y] for y in range(other)], axis=0)
            from_leaf = np.min([cost[rows - num + x, columns] for x in range(num)], axis=0)
            lone = num + other + np.minimum(to_leaf, from_leaf)
            distance[rows, columns] = np.minimum(above[-1] + cost[rows, columns], lone)


def _forests(
    first_a: np.ndarray, i: int, first_b: np.ndarray, j: int, cost: np.ndarray, distance: np.ndarray
) -> None:
    """Fill `distance` from Zhang and Shasha's table of the forests below i and j."""
    low_a, low_b = int(first_a[i]), int(first_b[j])
    columns = slice(low_b, j + 1)
    width = j - low_b + 1
    steps = np.arange(width + 1.0)
    # Row and column 0 are the empty forest; node x has row x - low_a + 1.
    table = np.empty((i - low_a + 2, width + 1))
    table[0] = steps
    before = first_b[columns] - low_b
    is_whole = before == 0
    for x in range(low_a, i + 1):
        row = x - low_a + 1
        start = int(first_a[x]) - low_a
        best = table[start][before] + distance[x, columns]
        if start == 0:  # both forests are trees where the column's is one, too
            best[is_whole] = (table[row - 1, :-1] + cost[x, columns])[is_whole]
        best = np.minimum(best, table[row - 1, 1:] + 1)
        # Insertions run along the row: the least of what came before, one more for each step.
        table[row, 0] = row
        table[row, 1:] = best
        table[row] = np.minimum.accumulate(table[row] - steps) + steps
        if start == 0:
            distance[x, columns][is_whole] = table[row, 1:][is_whole]
