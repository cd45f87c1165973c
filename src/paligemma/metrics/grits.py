"""Tables by grid: GriTS of structure (Top) and text (Con).

Two grids are aligned row by row and column by column; what remains of both is compared cell by
cell. Source: microsoft/table-transformer `src/grits.py` (Smock et al., arXiv:2203.12555). It stops
where a row is short of cells; here such places hold an empty cell of one row and column.

Axes: R rows and C columns of the true grid, P rows and Q columns of the predicted one.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from paligemma.errors import DataError
from paligemma.metrics.measure import Measure, mean_measure
from paligemma.metrics.pairs import require_same_length

MAX_POSITIONS = 5000
MAX_GRID_CHARACTERS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class TableCell:
    """One cell of a table.

    Attributes:
        row, column: position of its first row and column, from 0.
        row_span, column_span: rows and columns that it covers, at least 1.
    """

    row: int
    column: int
    row_span: int = 1
    column_span: int = 1
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class GridScore:
    """Likeness of two grids, each figure in [0, 1]."""

    f1: float
    precision: float
    recall: float


def grits_measures(predictions: Sequence[str], references: Sequence[str]) -> list[Measure]:
    """Compute the mean GriTS of tables.

    Args:
        predictions: `<table>...</table>` as well-formed XML. A table that is ill-formed, has a
            span below 1 or more than 5000 grid positions scores 0.

    Returns:
        "grits_top", "grits_con", each followed by its precision and recall
        ("grits_top_precision"); last "ill_formed", the share of such predictions.

    Raises:
        DataError: lengths differ, or a reference cannot be read.
    """
    require_same_length("GriTS", predictions=predictions, references=references)
    kinds = {"top": grits_top, "con": grits_con}
    scores = np.zeros((len(references), len(kinds), 3))
    is_ill_formed = np.zeros(len(references), bool)
    for row, (found, truth) in enumerate(zip(predictions, references, strict=True)):
        wanted, cells = read_cells(truth), read_cells(found)
        if not wanted:
            raise DataError(
                f"reference {row} must be a well-formed table with cells and at most "
                f"{MAX_POSITIONS} grid positions, got {truth[:60]!r}; escape & and close all tags"
            )
        is_ill_formed[row] = cells is None
        for k, score in enumerate(kinds.values() if cells is not None else ()):
            one = score(cells or [], wanted)
            scores[row, k] = one.f1, one.precision, one.recall
    measures = [
        mean_measure(f"grits_{name}{part}", scores[:, k, n])
        for k, name in enumerate(kinds)
        for n, part in enumerate(("", "_precision", "_recall"))
    ]
    return [*measures, mean_measure("ill_formed", is_ill_formed, is_error=True)]


def read_cells(markup: str) -> list[TableCell] | None:
    """Read the cells of a table in the order of its markup; `th` counts as `td`.

    Returns:
        None where the markup is no well-formed XML, declares entities, has a span below 1, or
        leaves the bounds.
    """
    if len(markup) > MAX_GRID_CHARACTERS or "<!DOCTYPE" in markup:
        return None
    try:
        root = ElementTree.fromstring(markup)
        return _cells(root)
    except (ElementTree.ParseError, ValueError):
        return None


def _cells(root: ElementTree.Element) -> list[TableCell]:
    cells: list[TableCell] = []
    taken: dict[int, set[int]] = {}
    row, num_positions = -1, 0
    for element in root.iter():
        row += element.tag == "tr"
        if element.tag not in ("td", "th"):
            continue
        width, height = (int(element.get(name, "1")) for name in ("colspan", "rowspan"))
        num_positions += width * height
        if min(width, height) < 1 or num_positions > MAX_POSITIONS:
            raise ValueError("a span leaves its bounds")
        top = max(row, 0)
        own = taken.setdefault(top, set())
        column = next(c for c in range(len(own) + 1) if c not in own)
        for y in range(top, top + height):
            taken.setdefault(y, set()).update(range(column, column + width))
        cells.append(
            TableCell(
                row=top,
                column=column,
                row_span=height,
                column_span=width,
                text=" ".join(element.itertext()),
            )
        )
    _grid_shape(cells)
    return cells


def grits_top(found: Sequence[TableCell], wanted: Sequence[TableCell]) -> GridScore:
    """Compare structure: how far each position's cell reaches in each direction."""
    return _grid_score(_enclosed(_reach(wanted), _reach(found)))


def grits_con(found: Sequence[TableCell], wanted: Sequence[TableCell]) -> GridScore:
    """Compare text: the share of characters in difflib's matching blocks."""
    texts = [np.array(["", *(cell.text for cell in cells)], object) for cells in (wanted, found)]
    numbers = [_owner(cells) + 1 for cells in (wanted, found)]
    rows, codes = zip(*(np.unique(text, return_inverse=True) for text in texts), strict=True)
    alike = _text_likeness(rows[0].tolist(), rows[1].tolist())
    true, predicted = (code[number] for code, number in zip(codes, numbers, strict=True))
    return _grid_score(alike[true[:, :, None, None], predicted[None, None]])


def _grid_shape(cells: Sequence[TableCell]) -> tuple[int, int]:
    height = max((cell.row + cell.row_span for cell in cells), default=0)
    width = max((cell.column + cell.column_span for cell in cells), default=0)
    if height * width > MAX_POSITIONS:
        raise ValueError("the grid is too large")
    return height, width


def _owner(cells: Sequence[TableCell]) -> np.ndarray:
    """Find the cell that covers each position, the last of several: int64[R, C], -1 for none."""
    owner = np.full(_grid_shape(cells), -1, np.int64)
    for number, cell in enumerate(cells):
        bottom, right = cell.row + cell.row_span, cell.column + cell.column_span
        owner[cell.row : bottom, cell.column : right] = number
    return owner


def _reach(cells: Sequence[TableCell]) -> np.ndarray:
    """Compute float64[R, C, 4]: first column and row, and those after the last, from here."""
    owner = _owner(cells)
    rows, columns = np.indices(owner.shape)
    corners = np.array(
        [(0, 0, 0, 0)]
        + [(c.column, c.row, c.column + c.column_span, c.row + c.row_span) for c in cells],
        np.float64,
    )
    here = np.stack([columns, rows, columns, rows], axis=-1)
    return np.where(owner[..., None] >= 0, corners[owner + 1] - here, (0.0, 0, 1, 1))


def _enclosed(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Divide common area by that of the box around both: float64[R, C, P, Q]; 0 for NaN."""
    a, b = true[:, :, None, None], predicted[None, None]
    inner = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    outer = np.maximum(a[..., 2:], b[..., 2:]) - np.minimum(a[..., :2], b[..., :2])
    common, whole = np.clip(inner, 0, None).prod(-1), outer.prod(-1)
    return np.divide(common, whole, out=np.zeros_like(whole), where=whole > 0)


def _text_likeness(true: Sequence[str], predicted: Sequence[str]) -> np.ndarray:
    """Compute the ratio of difflib, float64[len(true), len(predicted)] in [0, 1]."""
    out = np.zeros((len(true), len(predicted)))
    letters = [set(text) for text in true]
    for q, other in enumerate(predicted):
        matcher = SequenceMatcher(None, "", other)  # indexes `other` once for all true texts
        for r, text in enumerate(true):
            if text == other:
                out[r, q] = 1.0
            elif not letters[r].isdisjoint(other):
                matcher.set_seq1(text)
                out[r, q] = matcher.ratio()
    return out


def _grid_score(rewards: np.ndarray) -> GridScore:
    """Align rows, then columns, and add up the cells of both: float64[R, C, P, Q] -> scores."""
    num_true, num_found = rewards.shape[0] * rewards.shape[1], rewards.shape[2] * rewards.shape[3]
    by_column = np.ascontiguousarray(rewards.transpose(1, 0, 3, 2))
    rows = _align(_inner_scores(rewards))
    columns = _align(_inner_scores(by_column))
    total = 0.0
    for r, p in rows:
        for c, q in columns:
            total += float(rewards[r, c, p, q])
    precision = total / num_found if num_found else 1.0
    recall = total / num_true if num_true else 1.0
    both = precision + recall
    return GridScore(
        f1=2 * precision * recall / both if both else 0.0, precision=precision, recall=recall
    )


def _inner_scores(rewards: np.ndarray) -> np.ndarray:
    """Compute the worth of aligning rows with rows: float64[R, C, P, Q] -> [R, P]."""
    height, width, other_height, other_width = rewards.shape
    above = np.zeros((other_width + 1, height, other_height))
    for c in range(width):
        current = np.zeros_like(above)
        for q in range(other_width):
            both = above[q] + rewards[:, c, :, q]
            current[q + 1] = np.maximum(np.maximum(both, above[q + 1]), current[q])
        above = current
    return above[-1]


def _align(rewards: np.ndarray) -> list[tuple[int, int]]:
    """Find the pairs of the best alignment of two sequences in order: float64[N, M] -> [(n, m)].

    Where ways are equally good, a pair goes before skipping one of the first sequence, and that
    before skipping one of the second.
    """
    num, other = rewards.shape
    worth = rewards.tolist()
    scores = [[0.0] * (other + 1) for _ in range(num + 1)]
    for n in range(num):
        for m in range(other):
            scores[n + 1][m + 1] = max(
                scores[n][m] + worth[n][m], scores[n][m + 1], scores[n + 1][m]
            )
    pairs = []
    n, m = num, other
    while n and m:
        if scores[n - 1][m - 1] + worth[n - 1][m - 1] == scores[n][m]:
            n, m = n - 1, m - 1
            pairs.append((n, m))
        elif scores[n - 1][m] == scores[n][m]:
            n -= 1
        else:
            m -= 1
    return pairs[::-1]
