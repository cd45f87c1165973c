"""GriTS: the official numbers, a slow and obvious alignment, and difflib itself."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.errors import DataError
from paligemma.metrics.grits import (
    TableCell,
    grits_con,
    grits_measures,
    grits_top,
    read_cells,
)

VECTORS = [
    v
    for v in json.loads((Path(__file__).parent / "data/metric_vectors.json").read_text())["vectors"]
    if v["metric"] == "grits"
]
TABLE = "<table><tr><td>ab</td><td>c</td></tr><tr><td>d</td><td>e</td></tr></table>"


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["id"])
def test_grits_is_that_of_table_transformer(vector: dict[str, Any]) -> None:
    figures = {
        m.name: m.value for m in grits_measures([vector["predictions"]], [vector["references"]])
    }
    for name, value in vector["expected"].items():
        kind = name.rsplit("_", 1)[1]
        part = name.split("_")[1] if name.count("_") == 2 else ""
        own = figures[f"grits_{kind}" + (f"_{part}" if part else "")]
        assert own == pytest.approx(value, abs=1e-9), name


def test_there_are_eight_official_numbers() -> None:
    assert len(VECTORS) == 8


def _slow_likeness(a: str, b: str) -> float:
    if not a and not b:
        return 1.0
    blocks = SequenceMatcher(None, a, b).get_matching_blocks()
    return 2 * sum(block.size for block in blocks) / (len(a) + len(b))


def _slow_align(
    num: int, other: int, reward: Callable[[int, int], float]
) -> tuple[float, list[tuple[int, int]]]:
    """Score and pairs of one alignment, by the definition; ties as the original breaks them."""
    score = np.zeros((num + 1, other + 1))
    for n, m in itertools.product(range(1, num + 1), range(1, other + 1)):
        both = score[n - 1, m - 1] + reward(n - 1, m - 1)
        score[n, m] = max(both, score[n - 1, m], score[n, m - 1])
    pairs = []
    n, m = num, other
    while n and m:
        if score[n, m] == score[n - 1, m - 1] + reward(n - 1, m - 1):
            n, m = n - 1, m - 1
            pairs.append((n, m))
        elif score[n, m] == score[n - 1, m]:
            n -= 1
        else:
            m -= 1
    return float(score[-1, -1]), pairs[::-1]


def _slow_f1(true: list[list[str]], found: list[list[str]]) -> float:
    height, width = len(true), len(true[0])
    other_height, other_width = len(found), len(found[0])

    def alike(r: int, c: int, p: int, q: int) -> float:
        return _slow_likeness(true[r][c], found[p][q])

    _, rows = _slow_align(
        height,
        other_height,
        lambda r, p: _slow_align(width, other_width, lambda c, q: alike(r, c, p, q))[0],
    )
    _, columns = _slow_align(
        width,
        other_width,
        lambda c, q: _slow_align(height, other_height, lambda r, p: alike(r, c, p, q))[0],
    )
    total = sum(alike(r, c, p, q) for r, p in rows for c, q in columns)
    return 2 * total / (height * width + other_height * other_width)


@st.composite
def _grids(draw: st.DrawFn) -> list[list[str]]:
    height, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    cell = st.text(alphabet="ab1", max_size=4)
    row = st.lists(cell, min_size=width, max_size=width)
    return draw(st.lists(row, min_size=height, max_size=height))


def _markup(grid: list[list[str]]) -> str:
    rows = ("<tr>" + "".join(f"<td>{text}</td>" for text in row) + "</tr>" for row in grid)
    return f"<table>{''.join(rows)}</table>"


@settings(max_examples=30, deadline=None)
@given(_grids(), _grids())
def test_con_is_the_slow_definition(true: list[list[str]], found: list[list[str]]) -> None:
    own = grits_measures([_markup(found)], [_markup(true)])
    con = next(m.value for m in own if m.name == "grits_con")
    assert con == pytest.approx(_slow_f1(true, found), abs=1e-9)
    assert all(0.0 <= m.value <= 1.0 + 1e-12 for m in own)


@settings(max_examples=30, deadline=None)
@given(_grids())
def test_a_table_is_like_itself(grid: list[list[str]]) -> None:
    figures = grits_measures([_markup(grid)], [_markup(grid)])
    assert [m.value for m in figures] == [1.0] * 6 + [0.0]


@settings(max_examples=30, deadline=None)
@given(st.text(alphabet="abc ", max_size=30), st.text(alphabet="abc ", max_size=260))
def test_likeness_of_texts_is_that_of_difflib(a: str, b: str) -> None:
    score = grits_con([TableCell(row=0, column=0, text=b)], [TableCell(row=0, column=0, text=a)])
    assert score.precision == pytest.approx(_slow_likeness(a, b), abs=1e-12)


def test_long_texts_pass_over_frequent_letters_as_difflib_does() -> None:
    true, found = "abc" * 30 + "x", "cab" * 90
    assert _slow_likeness(true, found) == 0.0
    cells = [[TableCell(row=0, column=0, text=text)] for text in (found, true)]
    assert grits_con(cells[0], cells[1]).f1 == 0.0


def test_boxes_of_different_spans_share_the_box_around_both() -> None:
    wide = read_cells('<table><tr><td colspan="2"/></tr><tr><td/><td/></tr></table>')
    tall = read_cells('<table><tr><td rowspan="2"/><td/></tr><tr><td/></tr></table>')
    assert wide is not None
    assert tall is not None
    assert [(c.row, c.column, c.row_span, c.column_span) for c in tall] == [
        (0, 0, 2, 1),
        (0, 1, 1, 1),
        (1, 1, 1, 1),
    ]
    # [0, 0, 2, 1] against [0, 0, 1, 2] is 1/4, and the other corner is right.
    assert 0.25 < grits_top(wide, tall).f1 < 1.0


def test_places_that_a_row_lacks_are_empty_cells() -> None:
    short, full = (
        "<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>",
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td></td></tr></table>"),
    )
    assert [m.value for m in grits_measures([short], [full])][:6] == [1.0] * 6


@pytest.mark.parametrize(
    "markup",
    [
        "",
        "<table><tr><td>a & b</td></tr></table>",
        "<table><tr><td>a<br></td></tr></table>",
        '<table><tr><td colspan="0">a</td></tr></table>',
        '<table><tr><td rowspan="x">a</td></tr></table>',
        '<table><tr><td colspan="1000000000">a</td></tr></table>',
        '<table><tr><td rowspan="3000">a</td></tr><tr><td colspan="9"/></tr></table>',
        '<!DOCTYPE t [<!ENTITY a "aaaa">]><table><tr><td>&a;</td></tr></table>',
        "<table>" + "<tr><td/></tr>" * 6000 + "</table>",
        "<a>" * 100_000,
        "\0",
        "\ud800",
    ],
)
def test_ill_formed_and_boundless_markup_scores_nothing(markup: str) -> None:
    figures = {m.name: m.value for m in grits_measures([markup, TABLE], [TABLE, TABLE])}
    assert figures["grits_top"] == figures["grits_con"] == figures["ill_formed"] == 0.5


def test_a_prediction_without_cells_is_precise_and_finds_nothing() -> None:
    figures = {m.name: m.value for m in grits_measures(["<table/>"], [TABLE])}
    assert figures["grits_con"] == figures["grits_con_recall"] == figures["ill_formed"] == 0.0
    assert figures["grits_con_precision"] == 1.0


def test_references_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(DataError, match="escape &"):
        grits_measures([TABLE], ["<table><tr><td>&</td></tr></table>"])
    with pytest.raises(DataError, match="lists of one length"):
        grits_measures([TABLE], [])
