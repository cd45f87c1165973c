"""RadGraph F1 on supplied graphs."""

from __future__ import annotations

import builtins
import sys
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.errors import DataError, MissingExtraError
from paligemma.metrics.radgraph import (
    cxr_report_metric,
    extract_graphs,
    graph_facts,
    radgraph_f1,
    radgraph_measures,
)

LABELS = ["OBS-DP", "OBS-DA", "OBS-U", "ANAT-DP"]


def graph(*entities: tuple[str, str, list[tuple[str, str]]]) -> dict:
    return {
        "entities": {
            str(key): {"tokens": tokens, "label": label, "relations": relations}
            for key, (tokens, label, relations) in enumerate(entities, start=1)
        }
    }


EFFUSION = graph(("Effusion", "OBS-DP", [("located_at", "2")]), ("left", "ANAT-DP", []))

GRAPHS = st.lists(
    st.tuples(st.sampled_from(["edema", "Left", "heart"]), st.sampled_from(LABELS)), max_size=4
).map(
    lambda rows: graph(
        *(
            (tokens, label, [("modify", str(len(rows)))] if index % 2 else [])
            for index, (tokens, label) in enumerate(rows)
        )
    )
)


def test_levels_hold_more_and_more_of_a_relation() -> None:
    assert graph_facts(EFFUSION, "simple") == {("Effusion", "OBS-DP"), ("left", "ANAT-DP")}
    assert graph_facts(EFFUSION, "partial") == {
        ("Effusion", "OBS-DP", True),
        ("left", "ANAT-DP"),
    }
    assert graph_facts(EFFUSION, "complete") == {
        ("effusion", "OBS-DP", "located_at", "left"),
        ("left", "ANAT-DP"),
    }


def test_case_counts_outside_relations() -> None:
    lower = graph(("effusion", "OBS-DP", [("located_at", "2")]), ("left", "ANAT-DP", []))
    assert radgraph_f1(lower, EFFUSION) == 0.5
    assert radgraph_f1(lower, EFFUSION, "complete") == 1.0


def test_a_report_without_entities_scores_zero_even_against_another() -> None:
    assert radgraph_f1(graph(), graph()) == 0.0
    assert cxr_report_metric(graph(), EFFUSION) == (0.0, 0.0)


def test_the_score_is_the_mean_over_reports_at_every_level() -> None:
    found = {one.name: one.value for one in radgraph_measures([EFFUSION, graph()], [EFFUSION] * 2)}
    assert found == {
        "radgraph_partial": 0.5,
        "radgraph_simple": 0.5,
        "radgraph_complete": 0.5,
        "radgraph_combined": 0.5,
        "radgraph_entity": 0.5,
        "radgraph_relation": 0.5,
    }


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"entities": [1]},
        {"entities": {"1": {"tokens": "a"}}},
        {"entities": {"1": {"tokens": "a", "label": "x", "relations": [["modify"]]}}},
        {"entities": {"1": {"tokens": "a", "label": "x", "relations": [["modify", "9"]]}}},
        None,
    ],
)
def test_an_ill_formed_graph_is_named(broken: dict) -> None:
    with pytest.raises(DataError, match=r"graph"):
        radgraph_f1(broken, EFFUSION)


def test_extraction_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def blocked(name: str, *rest: object) -> object:
        if name == "radgraph":
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(MissingExtraError, match=r"paligemma\[reports\]"):
        extract_graphs(["no effusion"])


def test_empty_reports_are_not_sent_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stub:
        def __init__(self, model_type: str) -> None:
            assert model_type == "radgraph-xl"

        def __call__(self, texts: list[str]) -> dict:
            return {str(k): {"text": text, **EFFUSION} for k, text in enumerate(texts)}

    module = types.ModuleType("radgraph")
    module.RadGraph = Stub  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "radgraph", module)
    assert extract_graphs(["", "left effusion"]) == [{"entities": {}}, EFFUSION]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(GRAPHS, GRAPHS), min_size=1, max_size=4))
def test_scores_are_bounded_symmetric_and_know_no_order(rows: list[tuple[dict, dict]]) -> None:
    ours, truth = [list(side) for side in zip(*rows, strict=True)]
    found = {one.name: one.value for one in radgraph_measures(ours, truth)}
    assert all(0 <= one <= 1 for one in found.values())
    swapped = {one.name: one.value for one in radgraph_measures(truth[::-1], ours[::-1])}
    assert swapped == pytest.approx(found)
    for one in truth:
        assert radgraph_f1(one, one) == (1.0 if one["entities"] else 0.0)
