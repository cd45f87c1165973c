"""Tables by tree edit distance: TEDS, and S-TEDS without the contents of cells.

Source: ibm-aur-nlp/PubTabNet `src/metric.py` (Zhong et al., arXiv:1911.10683, section 5), whose
rules are kept: markup must be wrapped in `<html><body>`, `th` is another tag than `td`, spaces
are content, inline tags count as nodes even where contents do not, and since the root is no node
of the count, a tiny table can score below 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paligemma.errors import DataError
from paligemma.metrics.extras import missing_extra
from paligemma.metrics.measure import Measure, mean_measure
from paligemma.metrics.pairs import require_same_length
from paligemma.metrics.tree_distance import Postorder, tree_distance

MAX_NODES = 3000
MAX_DEPTH = 200
MAX_TABLE_CHARACTERS = 400_000
_LETTER = 0x10000  # first of the letters that tokens are written with, beyond all surrogates


def teds_measures(predictions: Sequence[str], references: Sequence[str]) -> list[Measure]:
    """Compute the mean similarity of tables.

    Args:
        predictions: HTML documents; see `wrap_table` for bare tables. One that is empty, holds no
            table, has a span that is no number, more than 3000 nodes or 200 levels scores 0.

    Returns:
        "teds", "s_teds", and "unreadable", the share of predictions that hold no table.

    Raises:
        DataError: lengths differ, or a reference holds no table.
        MissingExtraError: lxml or rapidfuzz is not installed.
    """
    require_same_length("TEDS", predictions=predictions, references=references)
    scores = np.zeros((len(references), 2))
    is_unreadable = np.zeros(len(references), bool)
    for row, (found, truth) in enumerate(zip(predictions, references, strict=True)):
        wanted = read_table(truth)
        if wanted is None or not wanted.num_nodes:
            raise DataError(
                f"reference {row} must hold html/body/table with rows and at most {MAX_NODES} "
                f"nodes, got {truth[:60]!r}; use wrap_table for a bare table"
            )
        table = read_table(found)
        is_unreadable[row] = table is None
        if table is not None:
            scores[row] = (
                _similarity(table, wanted, has_contents=True),
                _similarity(table, wanted, has_contents=False),
            )
    return [
        mean_measure("teds", scores[:, 0]),
        mean_measure("s_teds", scores[:, 1]),
        mean_measure("unreadable", is_unreadable, is_error=True),
    ]


def table_similarity(prediction: str, reference: str, *, structure_only: bool = False) -> float:
    """Compute 1 minus the edit distance over the larger number of nodes; 0 without a table."""
    found, wanted = read_table(prediction), read_table(reference)
    if found is None or wanted is None:
        return 0.0
    return _similarity(found, wanted, has_contents=not structure_only)


def wrap_table(markup: str) -> str:
    """Wrap a bare `<table>` in the document in which the original looks for it."""
    return f"<html><body>{markup}</body></html>"


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class TableNode:
    """One node of a table's tree; cells have no children.

    Attributes:
        label: tag, column span and row span; the spans are None except for `td`.
        content: inline tags and characters of a `td`, one token each.
    """

    label: tuple[str, int | None, int | None]
    content: tuple[str, ...] = ()
    children: list[TableNode] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, eq=False)
class TableTree:
    """A table: its root, and how many elements lie below it, inline tags included."""

    root: TableNode
    num_nodes: int


def read_table(markup: str) -> TableTree | None:
    """Read the first table directly below html/body; None without one within the bounds."""
    try:
        from lxml import etree, html
    except ImportError as error:
        raise missing_extra("lxml", "eval", "TEDS") from error
    if not markup or len(markup) > MAX_TABLE_CHARACTERS:
        return None
    parser = html.HTMLParser(
        remove_comments=True, remove_pis=True, no_network=True, encoding="utf-8"
    )
    try:
        # Bytes, since the parser would take the encoding of a text from its meta tags.
        document = html.fromstring(markup.encode("utf-8", "replace"), parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError, ValueError):
        return None
    tables = document.xpath("body/table")
    if not tables:
        return None
    num_nodes = int(tables[0].xpath("count(.//*)"))
    if num_nodes > MAX_NODES:
        return None
    try:
        return TableTree(root=_node(tables[0]), num_nodes=num_nodes)
    except ValueError:  # a span that is no number, or absurd nesting
        return None


def _node(element: Any, depth: int = 0) -> TableNode:
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    if element.tag == "td":
        spans = (int(element.attrib.get(name, "1")) for name in ("colspan", "rowspan"))
        tokens: list[str] = []
        _add_tokens(element, tokens, depth)
        return TableNode(label=(element.tag, *spans), content=tuple(tokens[1:-1]))
    children = [_node(child, depth + 1) for child in element]
    return TableNode(label=(element.tag, None, None), children=children)


def _add_tokens(element: Any, tokens: list[str], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    tokens.append(f"<{element.tag}>")
    tokens.extend(element.text or "")
    for child in element:
        _add_tokens(child, tokens, depth + 1)
    if element.tag != "unk":
        tokens.append(f"</{element.tag}>")
    if element.tag != "td":
        tokens.extend(element.tail or "")


def _similarity(found: TableTree, wanted: TableTree, *, has_contents: bool) -> float:
    num_nodes = max(found.num_nodes, wanted.num_nodes)
    if not num_nodes or _is_equal(found.root, wanted.root, has_contents):
        return 1.0
    return 1.0 - _distance(found.root, wanted.root, has_contents) / num_nodes


def _is_equal(a: TableNode, b: TableNode, has_contents: bool) -> bool:
    if a.label != b.label or len(a.children) != len(b.children):
        return False
    if has_contents and a.content != b.content:
        return False
    pairs = zip(a.children, b.children, strict=True)
    return all(_is_equal(one, other, has_contents) for one, other in pairs)


def _distance(a: TableNode, b: TableNode, has_contents: bool) -> float:
    found, wanted = _postorder(a), _postorder(b)
    labels: dict[tuple[str, int | None, int | None], int] = {}
    codes = [
        np.array([labels.setdefault(node.label, len(labels)) for node, _ in nodes])
        for nodes in (found, wanted)
    ]
    cost = (codes[0][:, None] != codes[1]).astype(np.float64)
    if has_contents:
        contents = ([node.content for node, _ in nodes] for nodes in (found, wanted))
        cost = np.maximum(cost, _content_distance(*contents))
    one, other = (Postorder.of([parent for _, parent in nodes]) for nodes in (found, wanted))
    return tree_distance(one, other, cost)


def _postorder(root: TableNode) -> list[tuple[TableNode, int]]:
    """List nodes in postorder, each with the number of its parent, -1 for the root."""
    nodes: list[TableNode] = []
    parents: list[int] = []

    def visit(node: TableNode) -> int:
        children = [visit(child) for child in node.children]
        nodes.append(node)
        parents.append(-1)
        for child in children:
            parents[child] = len(nodes) - 1
        return len(nodes) - 1

    visit(root)
    return list(zip(nodes, parents, strict=True))


def _content_distance(a: list[tuple[str, ...]], b: list[tuple[str, ...]]) -> np.ndarray:
    """Compute edit distances over the longer length, 0 for two empty contents: float64[A, B]."""
    try:
        from rapidfuzz.distance import Levenshtein
        from rapidfuzz.process import cdist
    except ImportError as error:
        raise missing_extra("rapidfuzz", "eval", "TEDS") from error
    tokens: dict[str, int] = {}
    texts = []
    for contents in (a, b):
        words = [
            "".join(chr(_LETTER + tokens.setdefault(token, len(tokens))) for token in content)
            for content in contents
        ]
        texts.append(np.unique(np.array(words, object), return_inverse=True))
    (words_a, of_a), (words_b, of_b) = texts
    alike = cdist(
        words_a.tolist(),
        words_b.tolist(),
        scorer=Levenshtein.normalized_distance,
        dtype=np.float64,
    )
    return alike[of_a[:, None], of_b]
