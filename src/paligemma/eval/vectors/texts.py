"""Vectors of answers: VQA, exact match, documents, counts, letters, yes and no, similarity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paligemma.eval.vectors import Check, Vector
from paligemma.metrics.answers import (
    exact_match_measures,
    rsvqa_bin_answer,
    rsvqa_measures,
    scienceqa_measures,
    tallyqa_measures,
)
from paligemma.metrics.documents import (
    anls,
    anls_measures,
    comma_orderings,
    relaxed_accuracy_measures,
)
from paligemma.metrics.embedding import cosine_similarity
from paligemma.metrics.judgements import nes_measures, sentence_verdict
from paligemma.metrics.measure import Measure
from paligemma.metrics.molecules import molecule_measures
from paligemma.metrics.music import omr_measures
from paligemma.metrics.radgraph import LEVELS, cxr_report_metric, radgraph_f1
from paligemma.metrics.speed import cpu_table, relative_quality
from paligemma.metrics.vqa import (
    normalize_answer,
    soft_accuracy_measures,
    vqa_measures,
)
from paligemma.metrics.yes_no import mmvp_measures, pope_measures

# What the vectors call the figures of `pope_measures`.
_POPE = {"bigvision_acc": "accuracy", "bigvision_valid_fraction": "valid"} | {
    f"official_{theirs}": f"official_{ours}"
    for theirs, ours in (
        ("acc", "accuracy"),
        ("precision", "precision"),
        ("recall", "recall"),
        ("f1", "f1"),
        ("yes_ratio", "yes_ratio"),
    )
}


def by_name(measures: Sequence[Measure]) -> dict[str, float]:
    """Name -> value."""
    return {one.name: one.value for one in measures}


def per_example(measure: Measure) -> list[float]:
    """What each example adds."""
    return [] if measure.per_example is None else measure.per_example.tolist()


def params(vector: Vector) -> dict[str, Any]:
    """The vector's options; none is none."""
    return vector.get("params") or {}


def _vqa_normalize(vector: Vector) -> str:
    return normalize_answer(vector["predictions"])


def _vqa_accuracy(vector: Vector) -> dict[str, float]:
    return by_name(vqa_measures([vector["predictions"]], [vector["references"]]))


def _vqa_corpus(vector: Vector) -> dict[str, Any]:
    rows = vector["references"]
    answers, types = [row["answers"] for row in rows], [row["answer_type"] for row in rows]
    overall, *each = vqa_measures(vector["predictions"], answers, types)
    found: dict[str, Any] = {"per_question": per_example(overall), "overall": overall.value}
    return found | {one.name.replace("accuracy/", "acc/"): one.value for one in each}


def _vqa_soft(vector: Vector) -> dict[str, float]:
    lower = params(vector).get("to_lower", False)
    prediction, references = vector["predictions"], vector["references"]
    accuracy, any_match = soft_accuracy_measures([prediction], [references], lower=lower)
    similarity = anls(prediction, references, lower=lower)
    return {"acc": accuracy.value, "acc_any": any_match.value, "anls": similarity}


def _exact_match(vector: Vector) -> dict[str, float]:
    lower = params(vector).get("to_lower", False)
    (found,) = exact_match_measures(vector["predictions"], vector["references"], lower=lower)
    return {"acc": found.value, "accuracy": found.value}


def _aokvqa_da(vector: Vector) -> dict[str, float]:
    rows = vector["references"]
    answers = [row["direct_answers"] for row in rows]
    difficult = [bool(row.get("difficult", False)) for row in rows]
    found = soft_accuracy_measures(vector["predictions"], answers, drop=difficult)
    return {"accuracy_percent": 100 * found[0].value}


def _aokvqa_mc(vector: Vector) -> dict[str, float]:
    rows = vector["references"]
    right = [row["choices"][row["idx"]] for row in rows]
    (found,) = exact_match_measures(vector["predictions"], right)
    return {"accuracy_percent": 100 * found.value}


def _anls(vector: Vector) -> dict[str, float]:
    prediction, references = vector["predictions"], vector["references"]
    return {
        "big_vision_to_lower": anls(prediction, references, variant="big_vision"),
        "rrc_style": anls(prediction, references, variant="server_like"),
        "pypi_anls": anls(prediction, references, variant="pypi"),
    }


def _permutations(vector: Vector) -> list[str]:
    return [order for answer in vector["references"] for order in comma_orderings(answer)]


def _relaxed(vector: Vector) -> dict[str, float]:
    relaxed, strict = relaxed_accuracy_measures([vector["predictions"]], [vector["references"]])
    return {"relaxed": relaxed.value, "strict": strict.value}


def _tallyqa(vector: Vector) -> dict[str, float]:
    found = tallyqa_measures(
        vector["predictions"], vector["references"], params(vector).get("issimple")
    )
    shares = {one.name.replace("accuracy", "acc"): one.value for one in found}
    counts = {one.name.replace("accuracy", "num"): one.num_used or 0 for one in found}
    return shares | counts


def _rsvqa(vector: Vector) -> dict[str, float]:
    predictions, references = vector["predictions"], vector["references"]
    types = params(vector)["question_types"]
    values = by_name(rsvqa_measures(predictions, references, types))
    similarity = anls_measures(predictions, [[one] for one in references])[0].value
    found = {"acc_any": values["accuracy"], "anls": similarity, "num": float(len(predictions))}
    found |= {f"acc_{name}": values[f"accuracy/{name}"] for name in set(types)}
    found["acc_avg"] = values["mean_accuracy"]
    # The evaluator writes this key twice where all three types are there.
    emitted = [values.get(f"mean_accuracy/{name}") for name in ("nonum", "comp+presence")]
    names = ("acc_avg_nonum", "acc_avg_nonum__second_emission")
    return found | dict(zip(names, [one for one in emitted if one is not None], strict=False))


def _rsvqa_bin(vector: Vector) -> str:
    options = params(vector)
    return rsvqa_bin_answer(
        vector["references"], options["question_type"], resolution=options["variant"]
    )


def _scienceqa(vector: Vector) -> dict[str, float]:
    accuracy, unparsed = scienceqa_measures(vector["predictions"], vector["references"])
    return {"acc": accuracy.value, "parsefail": unparsed.value}


def _pope(vector: Vector) -> dict[str, float]:
    values = by_name(pope_measures(vector["predictions"], vector["references"]))
    return {theirs: values[ours] for theirs, ours in _POPE.items() if ours in values}


def _mmvp(vector: Vector) -> dict[str, float]:
    is_right = vector["predictions"]
    values = by_name(mmvp_measures(is_right, [str(n // 2) for n in range(len(is_right))]))
    return {"individual": values["accuracy"], "paired": values["paired_accuracy"]}


def _molecules(vector: Vector) -> dict[str, Any]:
    found = molecule_measures(vector["predictions"], vector["references"])
    values = by_name(found)
    return {
        "canon_smiles": values["full_match"],
        "canon_smiles_with_cistrans": values["full_match_cis_trans"],
        "graph_ignore_chirality": values["graph_match"],
        "pred_valid": values["valid"],
        "per_item": [bool(one) for one in per_example(found[0])],
    }


def _music(vector: Vector) -> dict[str, float]:
    predictions, references = vector["predictions"], vector["references"]
    values = by_name(omr_measures(predictions, references))
    older = by_name(omr_measures(predictions, references, cer="publication_era"))
    rates = values | {"cer_publication_era": older["cer"]}
    return {name: 100 * rate for name, rate in rates.items()}


def _nes(vector: Vector) -> dict[str, float]:
    judgements = vector["predictions"]
    verdicts = [sentence_verdict(labels) for image in judgements for labels in image]
    num_wrong, num_entailed = verdicts.count("non_entailed"), verdicts.count("entailed")
    return {
        "non_entailment": num_wrong,
        "assessed": num_wrong + num_entailed,
        "nes_percent": 100 * nes_measures(judgements)[0].value,
        "nes_percent_over_all_sentences": 100
        * nes_measures(judgements, nothing="counted")[0].value,
    }


def _radgraph(vector: Vector) -> dict[str, Any]:
    prediction, reference = vector["predictions"], vector["references"]
    entity, relation = cxr_report_metric(prediction, reference)
    combined = (entity + relation) / 2
    metric = {"entity_f1": entity, "relation_f1": relation, "combined": combined}
    levels: dict[str, Any] = {level: radgraph_f1(prediction, reference, level) for level in LEVELS}
    return levels | {"cxr_report_metric": metric}


def _cosine(vector: Vector) -> list[float]:
    return cosine_similarity(vector["predictions"], vector["references"]).tolist()


def _cpu_table(vector: Vector) -> dict[str, float]:
    return cpu_table(**vector["predictions"])


def _relative_quality(vector: Vector) -> dict[str, float]:
    scores = vector["predictions"]
    return {"relative_percent": relative_quality(scores["f32"], scores["quantised"])}


CHECKS: dict[str, Check] = {
    "vqa_normalize": _vqa_normalize,
    "vqa_accuracy": _vqa_accuracy,
    "vqa_accuracy_corpus": _vqa_corpus,
    "vqa_soft_no_loo": _vqa_soft,
    "exact_match": _exact_match,
    "vsr_accuracy": _exact_match,
    "aokvqa_da": _aokvqa_da,
    "aokvqa_mc": _aokvqa_mc,
    "anls": _anls,
    "infovqa_val_permutations": _permutations,
    "relaxed_accuracy": _relaxed,
    "tallyqa": _tallyqa,
    "rsvqa": _rsvqa,
    "rsvqa_bin_answer": _rsvqa_bin,
    "scienceqa": _scienceqa,
    "pope": _pope,
    "mmvp_paired_accuracy": _mmvp,
    "molecule_exact_match": _molecules,
    "omr_error_rates": _music,
    "nes": _nes,
    "radgraph_f1": _radgraph,
    "cosine_similarity": _cosine,
    "cpu_table": _cpu_table,
    "relative_quality": _relative_quality,
}
