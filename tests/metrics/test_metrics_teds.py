"""Tree edit distance of tables: the official numbers, APTED, and markup that nobody expects."""

from __future__ import annotations

import json
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.errors import DataError, MissingExtraError
from paligemma.metrics.teds import read_table, table_similarity, teds_measures, wrap_table
from paligemma.metrics.tree_distance import Postorder, tree_distance

VECTORS = [
    v
    for v in json.loads((Path(__file__).parent / "data/metric_vectors.json").read_text())["vectors"]
    if v["metric"] == "teds"
]
TABLE = wrap_table("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr></table>")


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["id"])
def test_teds_is_that_of_pubtabnet(vector: dict[str, Any]) -> None:
    pair = vector["predictions"], vector["references"]
    assert table_similarity(*pair) == pytest.approx(vector["expected"]["teds"], abs=1e-9)
    structure = table_similarity(*pair, structure_only=True)
    assert structure == pytest.approx(vector["expected"]["teds_struct"], abs=1e-9)


def test_there_are_twelve_official_numbers() -> None:
    assert len(VECTORS) == 12


# Parents in postorder: each node points at a later one, and subtrees do not interleave.
@st.composite
def _trees(draw: st.DrawFn) -> list[int]:
    size = draw(st.integers(1, 14))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    waiting: list[int] = []
    parents = [-1] * size
    for node in range(size):
        # A flat tree half of the time, as the rows of a table.
        num = len(waiting) if node == size - 1 else int(rng.integers(0, len(waiting) + 1))
        num = num if rng.random() < 0.5 or node == size - 1 else 0
        for child in waiting[len(waiting) - num :]:
            parents[child] = node
        del waiting[len(waiting) - num :]
        waiting.append(node)
    return parents


class _Node:
    def __init__(self, number: int) -> None:
        self.number = number
        self.children: list[_Node] = []


def _by_apted(a: list[int], b: list[int], cost: np.ndarray) -> float:
    apted = pytest.importorskip("apted")

    class Costs(apted.Config):
        def rename(self, node1: _Node, node2: _Node) -> float:
            return float(cost[node1.number, node2.number])

    roots = []
    for parents in (a, b):
        nodes = [_Node(n) for n in range(len(parents))]
        for child, parent in enumerate(parents[:-1]):
            nodes[parent].children.append(nodes[child])
        roots.append(nodes[-1])
    return float(apted.APTED(*roots, Costs()).compute_edit_distance())


def _by_recursion(a: list[int], b: list[int], cost: np.ndarray) -> float:
    """The definition: of the last trees of two forests, one goes, one comes, or both stay."""

    def children(parents: list[int]) -> list[tuple[int, ...]]:
        return [
            tuple(n for n, parent in enumerate(parents) if parent == node)
            for node in range(len(parents))
        ]

    below_a, below_b = children(a), children(b)

    @lru_cache(None)
    def distance(ones: tuple[int, ...], others: tuple[int, ...]) -> float:
        if not ones and not others:
            return 0.0
        ways = []
        if ones:
            ways.append(1 + distance(ones[:-1] + below_a[ones[-1]], others))
        if others:
            ways.append(1 + distance(ones, others[:-1] + below_b[others[-1]]))
        if ones and others:
            apart = distance(ones[:-1], others[:-1])
            within = distance(below_a[ones[-1]], below_b[others[-1]])
            ways.append(apart + within + float(cost[ones[-1], others[-1]]))
        return min(ways)

    return distance((len(a) - 1,), (len(b) - 1,))


@settings(max_examples=60, deadline=None)
@given(_trees(), _trees(), st.integers(0, 2**32 - 1))
def test_the_distance_is_the_least_there_is(a: list[int], b: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    cost = rng.choice([0.0, 0.25, 0.5, 1.0], (len(a), len(b)), p=[0.4, 0.1, 0.2, 0.3])
    own = tree_distance(Postorder.of(a), Postorder.of(b), cost)
    assert own == pytest.approx(_by_recursion(a, b, cost), abs=1e-9)


# Parents in postorder of sections, rows and cells: the shape of every table.
@st.composite
def _table_trees(draw: st.DrawFn) -> list[int]:
    sections = draw(st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=1, max_size=2))
    parents: list[int] = []
    tops: list[int] = []
    for rows in sections:
        ends = []
        for cells in rows:
            parents += [len(parents) + cells] * cells + [-1]
            ends.append(len(parents) - 1)
        for end in ends:
            parents[end] = len(parents)
        parents.append(-1)
        tops.append(len(parents) - 1)
    for top in tops:
        parents[top] = len(parents)
    return [*parents, -1]


@settings(max_examples=60, deadline=None)
@given(_table_trees(), _table_trees(), st.integers(0, 2**32 - 1))
def test_the_distance_of_tables_is_that_of_apted(a: list[int], b: list[int], seed: int) -> None:
    # Inner nodes are tags, equal or not; of cells the text counts.
    rng = np.random.default_rng(seed)
    inner = [np.isin(np.arange(len(tree)), tree) for tree in (a, b)]
    cost = np.abs(rng.random(len(a))[:, None] - rng.random(len(b)))
    cost[inner[0][:, None] != inner[1]] = 1.0
    cost[inner[0][:, None] & inner[1]] = 0.0
    own = tree_distance(Postorder.of(a), Postorder.of(b), cost)
    assert own == pytest.approx(_by_apted(a, b, cost), abs=1e-9)


def test_apted_does_not_find_the_least_of_every_tree() -> None:
    # Why deep trees are held against the definition. No table is of such a shape.
    a = [6, 4, 4, 4, 6, 6, 11, 10, 10, 10, 11, -1]
    b = [1, 10, 3, 10, 10, 10, 10, 10, 10, 10, -1]
    rng = np.random.default_rng(141690217)
    cost = rng.choice([0.0, 0.25, 0.5, 1.0], (len(a), len(b)), p=[0.4, 0.1, 0.2, 0.3])
    assert tree_distance(Postorder.of(a), Postorder.of(b), cost) == 8.5
    assert _by_recursion(a, b, cost) == 8.5
    assert _by_apted(a, b, cost) == 9.0


def test_tables_of_many_rows_have_the_distance_of_apted() -> None:
    def parents(rows: int, columns: int) -> list[int]:
        """table > tbody > tr > td."""
        own: list[int] = []
        for _ in range(rows):
            own += [len(own) + columns] * columns + [rows * (columns + 1)]
        return [*own, rows * (columns + 1) + 1, -1]

    a, b = parents(9, 4), parents(7, 5)
    cost = np.random.default_rng(3).random((len(a), len(b)))
    own = tree_distance(Postorder.of(a), Postorder.of(b), cost)
    assert own == pytest.approx(_by_apted(a, b, cost), abs=1e-9)


_cell = st.text(alphabet="ab c", max_size=3).map(lambda text: f"<td>{text}</td>")
_row = st.lists(_cell, min_size=1, max_size=4).map(lambda cells: f"<tr>{''.join(cells)}</tr>")
_table = st.lists(_row, min_size=1, max_size=4).map(
    lambda rows: wrap_table(f"<table>{''.join(rows)}</table>")
)


@settings(max_examples=30, deadline=None)
@given(_table, _table)
def test_similarity_is_one_for_itself_symmetric_and_never_above_one(a: str, b: str) -> None:
    assert table_similarity(a, a) == table_similarity(a, a, structure_only=True) == 1.0
    forth, back = table_similarity(a, b), table_similarity(b, a)
    assert forth == pytest.approx(back, abs=1e-9)
    assert forth <= table_similarity(a, b, structure_only=True) + 1e-9 <= 1.0 + 2e-9


def test_figures_are_means_over_tables_and_unreadable_predictions_score_nothing() -> None:
    half = TABLE.replace("<td>c</td>", "")
    figures = {m.name: m for m in teds_measures([TABLE, half, "", "<p>no</p>"], [TABLE] * 4)}
    # Six nodes, one of them missing.
    assert figures["teds"].value == pytest.approx((1 + 5 / 6) / 4)
    assert figures["s_teds"].value == pytest.approx((1 + 5 / 6) / 4)
    assert figures["unreadable"].value == 0.5
    assert figures["teds"].per_example is not None
    assert figures["teds"].per_example.tolist() == pytest.approx([1, 5 / 6, 0, 0])


def test_a_header_cell_is_no_cell_and_spaces_are_content() -> None:
    other = TABLE.replace("<td>a</td>", "<th>a</th>")
    assert table_similarity(other, TABLE) == pytest.approx(1 - 1 / 6)
    spaced = TABLE.replace("<td>a</td>", "<td> a</td>")
    assert table_similarity(spaced, TABLE) == pytest.approx(1 - 0.5 / 6)


def test_a_tiny_table_can_score_below_zero_as_in_the_original() -> None:
    # Below the roots two nodes against two, nested in one and side by side in the other: one is
    # renamed, one goes and one comes.
    true = wrap_table("<table><tr><td>a</td></tr></table>")
    found = wrap_table("<table><th></th><th></th></table>")
    assert table_similarity(found, true) == pytest.approx(1 - 3 / 2)


def test_a_letter_beyond_ascii_is_one_token() -> None:
    greek = TABLE.replace("<td>a</td>", "<td>αβ</td>")
    assert table_similarity(greek.replace("β", "δ"), greek) == pytest.approx(1 - 0.5 / 6)


@pytest.mark.parametrize(
    "markup",
    [
        '<table><tr><td colspan="two">a</td></tr></table>',
        "<table>" + "<tr><td></td></tr>" * 1600 + "</table>",
        "<table><tr>" + "<div>" * 5000,
        "<table><tr><td>" + "<b>" * 5000,
        "<table>" + "a" * 500_000,
        "\0\x01<",
        "<!-- -->",
        "   ",
        "\ud800",
    ],
)
def test_hostile_markup_is_unreadable_and_does_no_harm(markup: str) -> None:
    assert teds_measures([wrap_table(markup)], [TABLE])[0].value == 0.0
    assert read_table(markup) is None


def test_a_reference_without_a_table_is_refused() -> None:
    with pytest.raises(DataError, match="wrap_table"):
        teds_measures([TABLE], ["<table><tr><td>a</td></tr></table>"])
    with pytest.raises(DataError, match="lists of one length"):
        teds_measures([], [TABLE])


@pytest.mark.parametrize("package", ["lxml", "rapidfuzz.distance"])
def test_a_missing_package_is_named_with_its_extra(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package.split('.')[0]}; run .*\[eval\]"):
        table_similarity(TABLE, TABLE.replace("<td>a", "<td>b"))
