"""The report of a fine-tuning: one page that asks for nothing, written when a run has ended."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from paligemma.errors import DataError
from paligemma.eval import page_parts as parts
from paligemma.eval.charts import bar, curves, legend, reliability_diagram, scale_end
from paligemma.eval.example_scores import ExampleScores, confidence, example_scores, worst
from paligemma.eval.outcomes import has_objects, true_objects
from paligemma.eval.page import run_reliability
from paligemma.eval.scored import Scored
from paligemma.example import Example, FoundObject, Prediction
from paligemma.jobs.model_answerer import found_object
from paligemma.outputs.assemble import to_detections
from paligemma.outputs.html import Html, el, page
from paligemma.outputs.parse import parse_objects
from paligemma.outputs.vqvae import MaskCodec
from paligemma.processing.image import MAX_PIXELS
from paligemma.tasks.published import PublishedScore
from paligemma.tuning.confusion import Confusion, confusion, outside_labels
from paligemma.tuning.watching import Look

logger = logging.getLogger(__name__)

_NUM_SHOWN = 6
_MAX_SKIPPED, _MAX_PUBLISHED, _MAX_FIGURES = 200, 12, 40


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """What a report is made of.

    Attributes:
        record: the content of report.json.
        metrics: the lines of metrics.jsonl.
        looks: every look at the held-out rows, that before the training first.
        before, after: the held-out rows with their answers; None where nothing was held out.
        codec: decodes masks of the examples that are shown.
        published: published figures of the task, those most alike first.
    """

    record: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    looks: Sequence[Look] = ()
    before: Scored | None = None
    after: Scored | None = None
    codec: MaskCodec | None = field(default=None, repr=False)
    published: Sequence[PublishedScore] = ()

    @cached_property
    def scores(self) -> ExampleScores | None:
        """How well each held-out row is answered after the training."""
        return None if self.after is None else example_scores(self.after)


def report_page(made: ReportInputs) -> str:
    """The page of a run."""
    record = made.record
    recipe, rows = record["recipe"], record["rows"]
    way = "an adapter of" if recipe["lora"] else "the whole of"
    kept = record["kept"]
    words = f", {way} the model, {record['steps']:,} updates on {rows['learnt']:,} rows"
    if kept is not None:
        words += f"; kept: the {kept['rule']} look, at update {kept['step']:,}"
    return page(
        f"{recipe['task']}: {recipe['model']}",
        el(
            "header",
            el("h1", f"Fine-tuning on {_folder_name(recipe['data'])}"),
            el("p", el("b", recipe["model"]), words, class_="quiet"),
            class_="lead",
        ),
        _figures(made),
        _published(made),
        _curves(made),
        _examples(made, "The worst examples", is_worst=True),
        _examples(made, "The best examples", is_worst=False),
        _confusion(made),
        _calibration(made),
        _outside(made),
        _base_tasks(record.get("base_tasks") or []),
        _parts(record["parts"]),
        _skipped(record["skipped"], rows),
        parts.section(
            "Recipe",
            el(
                "div",
                el("pre", json.dumps(recipe, indent=1, ensure_ascii=False)),
                class_="card",
            ),
        ),
    )


def _folder_name(data: str) -> str:
    """The name of the rows as it was given, and of a place such as "." that of its folder."""
    return data if Path(data).name else Path(data).absolute().name or data


def _change_rows(changes: Sequence[Mapping[str, Any]]) -> list[Html]:
    top = scale_end([one[when] for one in changes for when in ("before", "after")])
    return [
        parts.table_row(
            el("td", parts.name_words(one["name"])),
            el("td", bar(one["before"], math.nan, math.nan, top), class_="bar roomy"),
            el("td", bar(one["after"], math.nan, math.nan, top), class_="bar"),
            f"{one['before']:.1f}",
            f"{one['after']:.1f}",
            f"{one['after'] - one['before']:+.1f}",
        )
        for one in changes
    ]


_CHANGE_HEAD = ("", el("th", "before", class_="roomy"), "after", "before", "after", "change")


def _figures(made: ReportInputs) -> Html:
    changes = list(made.record["figures"])
    if not changes:
        return parts.section("Figures", el("p", "No rows were held out to measure with."))
    name = made.looks[0].headline
    first = next((one for one in changes if one["name"] == name), changes[0])
    card = parts.card(
        el("div", first["name"], " on held-out rows", class_="quiet"),
        f"{first['before']:.1f} → {first['after']:.1f}",
        el("p", f"{made.record['rows']['held_out']:,} rows", class_="quiet"),
    )
    shown = [one for one in changes if "/" not in one["name"]] + [
        one for one in changes if "/" in one["name"]
    ]
    table = parts.table(
        parts.table_row(*_CHANGE_HEAD, name="th"), _change_rows(shown[:_MAX_FIGURES])
    )
    return el("div", el("div", card, class_="cards"), parts.section("Before and after", table))


def _published(made: ReportInputs) -> Html | None:
    if not made.published:
        return None
    ours = {one["name"]: one["after"] for one in made.record["figures"]}
    rows = [
        parts.table_row(
            one.measure,
            f"{one.model} at {one.resolution or '?'} px, {one.split}",
            f"{one.value:.1f}",
            f"{ours[one.measure]:.1f}" if one.measure in ours else "-",
            f"{ours[one.measure] - one.value:+.1f}" if one.measure in ours else "-",
        )
        for one in made.published[:_MAX_PUBLISHED]
    ]
    head = parts.table_row("", "of", "published", "yours", "difference", name="th")
    note = (
        "Yours are of the held-out rows, which need not be the published split; measure with "
        f"paligemma eval {made.record['recipe']['task']} for figures that compare."
    )
    return parts.section("Beside the published", parts.table(head, rows), el("p", note))


def _curves(made: ReportInputs) -> Html | None:
    if not made.metrics:
        return None
    recipe = made.record["recipe"]
    loss = [(float(one["step"]), float(one["loss"])) for one in made.metrics]
    held_out = [(float(one.step), one.loss) for one in made.looks if one.loss is not None]
    rate = [(float(one["step"]), recipe["lr"] * float(one["schedule"])) for one in made.metrics]
    drawn = [
        (_losses(held_out), curves([("ours", loss), ("theirs", held_out)], "updates", "loss")),
        ("Learning rate.", curves([("ours", rate)], "updates", "learning rate")),
    ]
    if made.looks:
        name = made.looks[0].headline
        points = [(float(one.step), one.figures.get(name, math.nan)) for one in made.looks]
        drawn.insert(1, (f"Held-out {name}.", curves([("ours", points)], "updates", name)))
    figures = [
        el(
            "figure",
            chart,
            words if isinstance(words, Html) else el("figcaption", words),
            class_="card",
        )
        for words, chart in drawn
    ]
    return parts.section("Curves", el("div", *figures, class_="cards wide"))


def _losses(held_out: Sequence[Any]) -> str | Html:
    if not held_out:
        return "Loss of what is learnt."
    return legend(("ours", "loss of what is learnt"), ("theirs", "loss of held-out rows"))


def _examples(made: ReportInputs, title: str, *, is_worst: bool) -> Html | None:
    """The worst answers, of those that are not wholly right, or the best of the others."""
    scored, scores = made.after, made.scores
    if scored is None or scores is None:
        return None
    ranked = worst(scored, scores, len(scored.examples))
    wrong = [k for k in ranked if not scores.is_right(k)][:_NUM_SHOWN]
    best = [k for k in ranked[::-1] if k not in wrong]
    chosen = wrong if is_worst else best[: min(_NUM_SHOWN, max(len(ranked) // 2, 1))]
    tiles = []
    for k in chosen:
        example, answer = shown_pair(scored, k, scores, made.codec)
        answers = {"answer": parts.answer_words(answer)}
        if made.before is not None:
            answers["before"] = parts.answer_words(parts.shown_answer(made.before, k, None))
        if sure := confidence(answer):
            answers["confidence"] = f"{sure:.3f}"
        if answer.error:
            answers["error"] = answer.error
        drawn = parts.example_picture(example, answer, partial(_pictures, example))
        tag = f"{scores.name} {scores.values[k]:.3g}"
        tiles.append(parts.tile(example, tag, [drawn], answers, said="answer"))
    if not tiles:
        return None
    shape = "two" if has_objects(scored) else "tiles"
    return parts.section(title, el("div", *tiles, class_=f"cards {shape}"))


def _pictures(example: Example, _name: str) -> list[np.ndarray]:
    return [one.read(MAX_PIXELS) for one in example.pictures]


def shown_pair(
    scored: Scored, position: int, scores: ExampleScores | None, codec: MaskCodec | None
) -> tuple[Example, Prediction]:
    """An example and its answer as they are drawn: with the masks that only their texts hold."""
    example, answer = scored.examples[position], parts.shown_answer(scored, position, scores)
    if codec is None:
        return example, answer
    truth = true_objects(example.references)
    try:
        if truth and example.targets and not any(one.mask for one in truth):
            marked = _masked(example.targets[0], example, codec)
            if marked:
                objects = [
                    {"label": one.label, "box_yxyx": list(one.box_yxyx), "mask": one.mask}
                    for one in marked
                ]
                example = replace(example, references={**example.references, "objects": objects})
        if not any(one.mask for one in answer.objects):
            found = _masked(answer.text, example, codec)
            answer = replace(answer, objects=found) if found else answer
    except (DataError, OSError) as error:
        logger.info("masks of %s are not drawn: %s", example.id, error)
    return example, answer


def _masked(text: str, example: Example, codec: MaskCodec) -> tuple[FoundObject, ...]:
    """The objects of a text with their masks, if it holds any and is about one picture."""
    if "<seg" not in text or len(example.pictures) != 1:
        return ()
    height, width = example.pictures[0].read(MAX_PIXELS).shape[:2]
    found = to_detections(parse_objects(text), (width, height), codec=codec)
    return tuple(
        found_object(
            one,
            one.score,
            image_wh=(width, height),
            padded_wh=(width, height),
            is_decoded=True,
        )
        for one in found
        if one.is_valid
    )


def _confusion(made: ReportInputs) -> Html | None:
    found: Confusion | None = None if made.after is None else confusion(made.after)
    if found is None:
        return None
    rows = []
    for there in found.names:
        cells = [
            el(
                "td",
                f"{number:,}" if (number := found.counts.get((there, said), 0)) else "",
                class_="right" if there == said else "wrong",
            )
            for said in found.names
        ]
        rows.append(parts.table_row(there, *cells))
    head = parts.table_row("there \\ said", *found.names, name="th")
    words = "Rows are what is there, columns what was answered."
    if found.what == "objects":
        words += (
            " Objects are matched by their boxes (IoU of 0.5 or more), whatever they are called."
        )
    return parts.section(
        "What was taken for what", parts.table(head, rows), el("p", words, class_="quiet")
    )


def _calibration(made: ReportInputs) -> Html | None:
    found = None if made.after is None else run_reliability(made.after)
    if found is None:
        return None
    unit = "boxes" if made.after is not None and has_objects(made.after) else "answers"
    words = (
        f"Confidence and what came of it, {found.num:,} {unit}. Bars that end on the dashed line "
        f"are honest. Expected calibration error {found.ece:.3f}."
    )
    figure = el("figure", reliability_diagram(found), el("figcaption", words), class_="card")
    return parts.section("Confidence", el("div", figure, class_="cards wide"))


def _outside(made: ReportInputs) -> Html | None:
    found = [] if made.after is None else outside_labels(made.after)
    if not found:
        return None
    rows = [parts.table_row(label, f"{number:,}") for label, number in found]
    head = parts.table_row("label", "objects", name="th")
    return parts.section("Labels that no prompt asked for", parts.table(head, rows))


def _base_tasks(changes: Sequence[Mapping[str, Any]]) -> Html | None:
    if not changes:
        return None
    head = parts.table_row(*_CHANGE_HEAD, name="th")
    words = "What the model could do before; lower figures after mean that it forgets."
    return parts.section(
        "Base tasks", parts.table(head, _change_rows(changes)), el("p", words, class_="quiet")
    )


def _parts(rows: Sequence[Mapping[str, Any]]) -> Html:
    head = parts.table_row("part", "state", "parameters", "learning rate", name="th")
    cells = [
        parts.table_row(
            one["part"],
            one["state"],
            f"{one['parameters']:,}",
            f"{one['lr']:g}" if one["lr"] else "-",
        )
        for one in rows
    ]
    return parts.section("What was trained", parts.table(head, cells))


def _skipped(sentences: Sequence[str], rows: Mapping[str, Any]) -> Html:
    words = (
        f"{rows['learnt']:,} rows were learnt, {rows['held_out']:,} held out, "
        f"{rows['skipped']:,} left out."
    )
    shown = list(sentences[:_MAX_SKIPPED])
    if len(sentences) > len(shown):
        shown.append(f"{len(sentences) - len(shown):,} more; see report.json")
    return parts.section("Rows", el("p", words), parts.notes_list(shown))
