"""Vectors of answers: VQA, exact match, documents, counts, letters, yes and no, similarity."""

from typing import Any

from paligemma.eval.vectors import Check, Params, by_name, per_example
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
from paligemma.metrics.molecules import molecule_measures
from paligemma.metrics.music import omr_measures
from paligemma.metrics.radgraph import LEVELS, cxr_report_metric, radgraph_f1
from paligemma.metrics.speed import cpu_table, relative_quality
from paligemma.metrics.vqa import normalize_answer, soft_accuracy_measures, vqa_measures
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


def _vqa_corpus(predictions: Any, references: Any, params: Params) -> dict[str, Any]:
    answers, types = zip(*((row["answers"], row["answer_type"]) for row in references), strict=True)
    overall, *each = vqa_measures(predictions, answers, types)
    found: dict[str, Any] = {"per_question": per_example(overall), "overall": overall.value}
    return found | {one.name.replace("accuracy/", "acc/"): one.value for one in each}


def _vqa_soft(predictions: Any, references: Any, params: Params) -> dict[str, float]:
    lower = params.get("to_lower", False)
    accuracy, any_match = soft_accuracy_measures([predictions], [references], lower=lower)
    similarity = anls(predictions, references, lower=lower)
    return {"acc": accuracy.value, "acc_any": any_match.value, "anls": similarity}


def _exact_match(predictions: Any, references: Any, params: Params) -> dict[str, float]:
    lower = params.get("to_lower", False)
    (found,) = exact_match_measures(predictions, references, lower=lower)
    return {"acc": found.value, "accuracy": found.value}


def _aokvqa_da(predictions: Any, references: Any, params: Params) -> dict[str, float]:
    answers = [row["direct_answers"] for row in references]
    difficult = [bool(row.get("difficult", False)) for row in references]
    found = soft_accuracy_measures(predictions, answers, drop=difficult)
    return {"accuracy_percent": 100 * found[0].value}


def _aokvqa_mc(predictions: Any, references: Any, params: Params) -> dict[str, float]:
    right = [row["choices"][row["idx"]] for row in references]
    (found,) = exact_match_measures(predictions, right)
    return {"accuracy_percent": 100 * found.value}


def _anls(predictions: Any, references: Any, params: Params) -> dict[str, float]:
    return {
        "big_vision_to_lower": anls(predictions, references, variant="big_vision"),
        "rrc_style": anls(predictions, references, variant="server_like"),
        "pypi_anls": anls(predictions, references, variant="pypi"),
    }


def _relaxed(predictions: Any, references: Any, params: Params) -> dict[str, float]:
    relaxed, strict = relaxed_accuracy_measures([predictions], [references])
    return {"relaxed": relaxed.value, "strict": strict.value}


def _tallyqa(predictions: Any, references: Any, params: Params) -> dict[str, float]:
    found = tallyqa_measures(predictions, references, params.get("issimple"))
    shares = {one.name.replace("accuracy", "acc"): one.value for one in found}
    counts = {one.name.replace("accuracy", "num"): one.num_used or 0 for one in found}
    return shares | counts


def _rsvqa(predictions: Any, references: Any, params: Params) -> dict[str, float]:
    types = params["question_types"]
    values = by_name(rsvqa_measures(predictions, references, types))
    similarity = anls_measures(predictions, [[one] for one in references])[0].value
    found = {"acc_any": values["accuracy"], "anls": similarity, "num": float(len(predictions))}
    found |= {f"acc_{name}": values[f"accuracy/{name}"] for name in set(types)}
    found["acc_avg"] = values["mean_accuracy"]
    # The evaluator writes this key twice where all three types are there.
    emitted = [values.get(f"mean_accuracy/{name}") for name in ("nonum", "comp+presence")]
    names = ("acc_avg_nonum", "acc_avg_nonum__second_emission")
    return found | dict(zip(names, [one for one in emitted if one is not None], strict=False))


def _scienceqa(predictions: Any, references: Any, params: Params) -> dict[str, float]:
    accuracy, unparsed = scienceqa_measures(predictions, references)
    return {"acc": accuracy.value, "parsefail": unparsed.value}


def _pope(predictions: Any, references: Any, params: Params) -> dict[str, float]:
    values = by_name(pope_measures(predictions, references))
    return {theirs: values[ours] for theirs, ours in _POPE.items() if ours in values}


def _mmvp(predictions: Any, references: Any, params: Params) -> dict[str, float]:
    values = by_name(mmvp_measures(predictions, [str(n // 2) for n in range(len(predictions))]))
    return {"individual": values["accuracy"], "paired": values["paired_accuracy"]}


def _molecules(predictions: Any, references: Any, params: Params) -> dict[str, Any]:
    found = molecule_measures(predictions, references)
    values = by_name(found)
    return {
        "canon_smiles": values["full_match"],
        "canon_smiles_with_cistrans": values["full_match_cis_trans"],
        "graph_ignore_chirality": values["graph_match"],
        "pred_valid": values["valid"],
        "per_item": [bool(one) for one in per_example(found[0])],
    }


def _music(predictions: Any, references: Any, params: Params) -> dict[str, float]:
    values = by_name(omr_measures(predictions, references))
    older = by_name(omr_measures(predictions, references, cer="publication_era"))
    rates = values | {"cer_publication_era": older["cer"]}
    return {name: 100 * rate for name, rate in rates.items()}


def _nes(predictions: Any, references: Any, params: Params) -> dict[str, float]:
    verdicts = [sentence_verdict(labels) for image in predictions for labels in image]
    num_wrong, num_entailed = verdicts.count("non_entailed"), verdicts.count("entailed")
    return {
        "non_entailment": num_wrong,
        "assessed": num_wrong + num_entailed,
        "nes_percent": 100 * nes_measures(predictions)[0].value,
        "nes_percent_over_all_sentences": 100
        * nes_measures(predictions, nothing="counted")[0].value,
    }


def _radgraph(predictions: Any, references: Any, params: Params) -> dict[str, Any]:
    entity, relation = cxr_report_metric(predictions, references)
    combined = (entity + relation) / 2
    metric = {"entity_f1": entity, "relation_f1": relation, "combined": combined}
    levels: dict[str, Any] = {
        level: radgraph_f1(predictions, references, level) for level in LEVELS
    }
    return levels | {"cxr_report_metric": metric}


CHECKS: dict[str, Check] = {
    "vqa_normalize": lambda found, truth, params: normalize_answer(found),
    "vqa_accuracy": lambda found, truth, params: by_name(vqa_measures([found], [truth])),
    "vqa_accuracy_corpus": _vqa_corpus,
    "vqa_soft_no_loo": _vqa_soft,
    "exact_match": _exact_match,
    "vsr_accuracy": _exact_match,
    "aokvqa_da": _aokvqa_da,
    "aokvqa_mc": _aokvqa_mc,
    "anls": _anls,
    "infovqa_val_permutations": lambda found, truth, params: [
        order for one in truth for order in comma_orderings(one)
    ],
    "relaxed_accuracy": _relaxed,
    "tallyqa": _tallyqa,
    "rsvqa": _rsvqa,
    "rsvqa_bin_answer": lambda found, truth, params: rsvqa_bin_answer(
        truth, params["question_type"], resolution=params["variant"]
    ),
    "scienceqa": _scienceqa,
    "pope": _pope,
    "mmvp_paired_accuracy": _mmvp,
    "molecule_exact_match": _molecules,
    "omr_error_rates": _music,
    "nes": _nes,
    "radgraph_f1": _radgraph,
    "cosine_similarity": lambda found, truth, params: cosine_similarity(found, truth).tolist(),
    "cpu_table": lambda found, truth, params: cpu_table(**found),
    "relative_quality": lambda found, truth, params: {
        "relative_percent": relative_quality(found["f32"], found["quantised"])
    },
}
