"""Scores of radiology reports: F1 between the RadGraph facts of two reports.

Source: Stanford-AIMI/radgraph radgraph/rewards.py (0.1.18, which compares tokens as written except
in relations); rajpurkarlab/CXR-Report-Metric radgraph_evaluate_model.py.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any, Literal

from paligemma.errors import DataError
from paligemma.metrics.extras import missing_extra
from paligemma.metrics.measure import Measure, mean_measure
from paligemma.metrics.pairs import require_choice, require_same_length

# {"entities": {"1": {"tokens": "effusion", "label": "OBS-DP", "relations": [["modify", "2"]]}}}
Graph = Mapping[str, Any]
# "simple" compares tokens and label; "partial" also whether there is a relation; "complete" the
# relations themselves. Which of them the PaliGemma 2 report prints is not published.
GraphLevel = Literal["simple", "partial", "complete"]
LEVELS: tuple[GraphLevel, ...] = ("partial", "simple", "complete")


def graph_facts(graph: Graph, level: GraphLevel) -> set[tuple[Any, ...]]:
    """Collect the facts of one report; tokens keep their case, except in relations.

    Raises:
        DataError: the graph is ill-formed.
    """
    require_choice("the level of RadGraph F1", level, GraphLevel)
    entities = _entities(graph)
    facts: set[tuple[Any, ...]] = set()
    for tokens, label, relations in entities.values():
        if level == "simple" or not relations:
            facts.add((tokens, label))
        elif level == "partial":
            facts.add((tokens, label, True))
        else:
            facts |= {
                (tokens.lower(), label, name, entities[other][0].lower())
                for name, other in relations
            }
    return facts


def set_f1(prediction: Set[Any], reference: Set[Any]) -> float:
    """Compute the harmonic mean of precision and recall between two sets, 0 without overlap."""
    shared = len(prediction & reference)
    return 2 * shared / (len(prediction) + len(reference)) if shared else 0.0


def radgraph_f1(prediction: Graph, reference: Graph, level: GraphLevel = "partial") -> float:
    """Compute F1 of one report; a report without entities scores 0, as in the package."""
    return set_f1(graph_facts(prediction, level), graph_facts(reference, level))


def cxr_report_metric(prediction: Graph, reference: Graph) -> tuple[float, float]:
    """Compute F1 of entities and F1 of relations with their ends; the metric is their mean."""
    entity_f1 = set_f1(graph_facts(prediction, "simple"), graph_facts(reference, "simple"))
    return entity_f1, set_f1(_relation_facts(prediction), _relation_facts(reference))


def radgraph_measures(predictions: Sequence[Graph], references: Sequence[Graph]) -> list[Measure]:
    """Compute the mean RadGraph F1 over reports, at every level.

    Args:
        predictions: graph of each answer, see `Graph` and `extract_graphs`.

    Returns:
        "radgraph_partial", "radgraph_simple", "radgraph_complete", and CXR-Report-Metric's
        "radgraph_combined", "radgraph_entity", "radgraph_relation".

    Raises:
        DataError: lengths differ, nothing to score, or a graph is ill-formed.
    """
    require_same_length("RadGraph F1", predictions=predictions, references=references)
    pairs = list(zip(predictions, references, strict=True))
    measures = [
        mean_measure(
            f"radgraph_{level}", [radgraph_f1(ours, truth, level) for ours, truth in pairs]
        )
        for level in LEVELS
    ]
    both = [cxr_report_metric(ours, truth) for ours, truth in pairs]
    combined = [sum(one) / 2 for one in both]
    return [
        *measures,
        mean_measure("radgraph_combined", combined),
        mean_measure("radgraph_entity", [entity for entity, _ in both]),
        mean_measure("radgraph_relation", [relation for _, relation in both]),
    ]


def extract_graphs(reports: Sequence[str], *, model: str = "radgraph-xl") -> list[dict[str, Any]]:
    """Extract graphs by RadGraph's own model, which the package downloads on first use.

    Args:
        reports: texts of the reports; an empty text has no entities.
        model: name of the model: "radgraph", "radgraph-xl" or "modern-radgraph-xl".

    Raises:
        MissingExtraError: the package radgraph is not installed.
    """
    try:
        from radgraph import RadGraph
    except ImportError as error:
        raise missing_extra("radgraph", "reports", "finding entities in reports") from error
    written = [index for index, text in enumerate(reports) if text.strip()]
    graphs: list[dict[str, Any]] = [{"entities": {}} for _ in reports]
    if written:
        found = RadGraph(model_type=model)([reports[index] for index in written])
        for position, index in enumerate(written):
            graphs[index] = {"entities": found[str(position)]["entities"]}
    return graphs


def _relation_facts(graph: Graph) -> set[tuple[Any, ...]]:
    entities = _entities(graph)
    return {
        (tokens, label, *entities[other][:2], name)
        for tokens, label, relations in entities.values()
        for name, other in relations
    }


def _entities(graph: Graph) -> dict[str, tuple[str, str, list[tuple[str, str]]]]:
    """Read tokens, label and relations to other keys, by key."""
    try:
        entities = {
            str(key): (
                str(one["tokens"]),
                str(one["label"]),
                [(str(name), str(other)) for name, other in one["relations"]],
            )
            for key, one in graph["entities"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            "a RadGraph graph needs 'entities' with tokens, label and relations each, got "
            f"{str(graph)[:80]}; pass the package's output"
        ) from error
    for tokens, _, relations in entities.values():
        for _, other in relations:
            if other not in entities:
                raise DataError(
                    f"entity {tokens!r} has a relation to {other!r}, which the graph lacks; add it"
                )
    return entities
