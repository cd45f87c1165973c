"""A run as one page: figures beside published ones, slices, calibration, the worst examples."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from paligemma.errors import DataError, PaliGemmaError
from paligemma.eval.calibration import Reliability, reliability
from paligemma.eval.charts import (
    bar,
    histogram,
    interval_chart,
    reliability_diagram,
    scale_end,
)
from paligemma.eval.example_scores import ExampleScores, example_scores
from paligemma.eval.html import Html, el, joined, page
from paligemma.eval.outcomes import has_objects, object_outcomes, text_outcomes, true_objects
from paligemma.eval.page_pictures import no_picture, object_tiles, picture_tile
from paligemma.eval.report import Report, Row, confidence, notes, worst
from paligemma.eval.scored import Scored, reference_words
from paligemma.example import Example, FoundObject, Prediction
from paligemma.outputs.boxes import decode_boxes
from paligemma.tasks.structure.words import WordFormat, parse_words

NUM_WORST = 12
_MAX_CARDS = 6
_MAX_CHARS = 1500

# Example id -> the pictures of the example, uint8[H, W, 3] each.
Pictures = Callable[[str], Sequence[np.ndarray]]


def report_page(report: Report, *, pictures: Pictures | None = None) -> str:
    """The page of a run, one file that asks for nothing.

    Args:
        report: of the run.
        pictures: reads an example's pictures again; None leaves them out.
    """
    scored = report.scored
    config = scored.config
    title = f"{scored.task.title} ({config.split})"
    whole = [one for one in report.rows if "/" not in one.measure] or list(report.rows)
    return page(
        f"{title}: {config.model}",
        _lead(report, title),
        el("div", *map(_card, whole[:_MAX_CARDS]), class_="cards"),
        _notes(report),
        _figures_table(whole) if len(whole) > _MAX_CARDS else None,
        _slices(report),
        _charts(scored),
        _worst_examples(scored, pictures),
        _repeat(report),
    )


def _lead(report: Report, title: str) -> Html:
    scored = report.scored
    sampling = ", ".join(
        f"{name} {value}" for name, value in scored.config.sampling.items() if value is not None
    )
    num = f"{len(scored.examples):,} of {scored.num_asked:,} examples"
    return el(
        "header",
        el("h1", title),
        el(
            "p",
            el("b", scored.config.model or "a model"),
            f", {num}{f' ({sampling})' if sampling else ''}",
            class_="quiet",
        ),
        class_="lead",
    )


def _card(one: Row) -> Html:
    """One figure, large, with its interval and what was published."""
    published = one.published[0].value if one.published else None
    return el(
        "div",
        el("div", one.measure, " (lower is better)" if one.is_error else None, class_="quiet"),
        el("div", _figure(one.value), class_="big"),
        interval_chart(one.value, one.low, one.high, published),
        el("p", _interval_words(one), class_="quiet"),
        None if published is None else _published_words(one, published),
        class_="card head",
    )


def _interval_words(one: Row) -> str:
    number = f"{one.num:,} examples"
    if math.isnan(one.low):
        return f"{number}; no interval"
    return f"95 % interval {one.low:.2f} to {one.high:.2f}, {number}"


def _published_words(one: Row, published: float) -> Html:
    difference = one.value - published
    good = difference <= 0 if one.is_error else difference >= 0
    inside = {True: ", inside the interval", False: ", outside the interval", None: ""}
    return el(
        "p",
        f"published {published:g}: ",
        el("b", f"{difference:+.2f}", class_="up" if good else "down"),
        inside[one.holds_published],
    )


def _notes(report: Report) -> Html:
    return el("ul", *(el("li", line) for line in notes(report)), class_="quiet notes")


def _figures_table(rows: Sequence[Row]) -> Html:
    is_compared = any(one.published for one in rows)
    head = ["", "score", "95 % interval", "examples"]
    if is_compared:
        head[3:3] = ["published", "difference"]
    body = []
    for one in rows:
        cells = [one.measure, _figure(one.value), _bounds(one)]
        if is_compared:
            difference = one.difference
            cells.append(f"{one.published[0].value:g}" if one.published else "")
            cells.append("" if difference is None else f"{difference:+.2f}")
        body.append(el("tr", *(el("td", cell) for cell in [*cells, f"{one.num:,}"])))
    table = el("table", el("tr", *(el("th", name) for name in head)), *body)
    return joined(el("h2", "All figures"), el("div", table, class_="card scroll"))


def _slices(report: Report) -> Html | None:
    """Slices that the scorer reports, by measure; then the headline by each slice of examples."""
    sections: dict[str, list[tuple[str, Row]]] = {}
    for one in report.rows:
        if "/" in one.measure:
            measure, _, group = one.measure.partition("/")
            sections.setdefault(measure, []).append((group, one))
    for one in report.slices:
        sections.setdefault(f"{one.measure} by {one.by}", []).append((one.group or "(none)", one))
    if not sections:
        return None
    body = []
    for title, found in sections.items():
        top = scale_end([one.value for _, one in found] + [one.high for _, one in found])
        body.append(el("tr", el("td", title, colspan=5.0), class_="by"))
        body += [_slice_row(name, one, top) for name, one in found]
    head = el(
        "tr",
        *(el("th", name) for name in ("", "", "score")),
        el("th", "95 % interval", class_="roomy"),
        el("th", "examples"),
    )
    table = el("table", head, *body)
    return joined(el("h2", "Where it is good and bad"), el("div", table, class_="card scroll tall"))


def _slice_row(name: str, one: Row, top: float) -> Html:
    return el(
        "tr",
        el("td", name),
        el("td", bar(one.value, one.low, one.high, top), class_="bar"),
        el("td", _figure(one.value)),
        el("td", _bounds(one), class_="roomy"),
        el("td", f"{one.num:,}"),
    )


def _charts(scored: Scored) -> Html:
    figures = []
    found = run_reliability(scored)
    if found is not None:
        words = (
            f"Confidence and what came of it, {found.num:,} "
            f"{'boxes' if has_objects(scored) else 'answers'} in {len(found.bins)} bins. Bars that "
            f"end on the dashed line are honest. Expected calibration error {found.ece:.3f}, "
            f"Brier score {found.brier:.3f}."
        )
        figures.append(
            el("figure", reliability_diagram(found), el("figcaption", words), class_="card")
        )
    unit = "boxes" if has_objects(scored) else "words"
    if unit == "words":
        lengths = [len(one.text.split()) for one in scored.predictions]
    else:
        pairs = zip(scored.examples, scored.predictions, strict=True)
        lengths = [len(a.objects) for e, a in pairs if true_objects(e.references) is not None]
    empty = sum(n == 0 for n in lengths)
    caption = f"How many {unit} answers have; {empty:,} of {len(lengths):,} have none."
    figures.append(el("figure", histogram(lengths, unit), el("figcaption", caption), class_="card"))
    return joined(el("h2", "Confidence and length"), el("div", *figures, class_="cards wide"))


def run_reliability(scored: Scored) -> Reliability | None:
    """Of boxes, else of answers in words; None where no confidence or no truth is known."""
    try:
        found = object_outcomes(scored) if has_objects(scored) else text_outcomes(scored)
    except DataError:
        return None
    return reliability(found.confidence, found.is_hit)


def _worst_examples(scored: Scored, pictures: Pictures | None) -> Html | None:
    scores = example_scores(scored)
    positions = worst(scored, scores, NUM_WORST)
    if scores is None or not positions:
        return None
    words = "Of equally bad ones, those the model was surest of."
    if scores.threshold:
        words += f" Boxes below {scores.threshold:.2f}, where F1 is best, are left out."
    return joined(
        el("h2", "The worst examples"),
        el("p", words, class_="quiet"),
        el(
            "div",
            *(_tile(scored, k, scores, pictures) for k in positions),
            class_=f"cards {'two' if has_objects(scored) else 'tiles'}",
        ),
    )


def _tile(scored: Scored, position: int, scores: ExampleScores, pictures: Pictures | None) -> Html:
    example, answer = scored.examples[position], shown_answer(scored, position, scores)
    sure = confidence(answer)
    tag = f"{scores.name} {scores.values[position]:.3g}"
    return el(
        "article",
        example_picture(example, answer, pictures),
        el("div", el("span", tag, class_="tag"), example.id, class_="id quiet"),
        el(
            "dl",
            *_pair("prompt", example.prefix),
            *_pair("reference", truth_words(example)),
            *_pair("answer", answer_words(answer), "said"),
            *(_pair("confidence", f"{sure:.3f}") if sure else ()),
            *(_pair("error", answer.error) if answer.error else ()),
        ),
        class_="card tile",
    )


def shown_answer(scored: Scored, position: int, scores: ExampleScores | None) -> Prediction:
    """The answer as it is shown: boxes that count, and the words that a text says with boxes."""
    example, answer = scored.examples[position], scored.predictions[position]
    if answer.objects:
        least = 0.0 if scores is None else scores.threshold
        kept = [one for one in answer.objects if one.score is None or one.score >= least]
        return replace(answer, objects=tuple(kept))
    known = example.references if isinstance(example.references, dict) else {}
    if not {"words", "style"} <= set(known):
        return answer
    words = parse_words(answer.text, WordFormat(**known["style"]))
    found = [
        FoundObject(label=word, box_yxyx=tuple(decode_boxes(bins).tolist())) for word, bins in words
    ]
    return replace(answer, objects=tuple(found))


def example_picture(example: Example, answer: Prediction, pictures: Pictures | None) -> Html | None:
    """An example's pictures with what was found; None where pictures are not wanted."""
    if pictures is None:
        return None
    try:
        shown = pictures(example.id)
        if not shown:
            return no_picture("no picture")
        truth = true_objects(example.references)
        if len(shown) == 1 and (answer.objects or truth):
            return object_tiles(shown[0], truth or [], answer.objects)
        return picture_tile(shown, example.mark_box_yxyx)
    except (PaliGemmaError, OSError) as error:
        return no_picture(f"the picture cannot be shown: {str(error)[:200]}")


def truth_words(example: Example) -> str:
    """References for people; of objects their labels with how many there are."""
    truth = true_objects(example.references)
    if truth is None:
        return reference_words(example.references)
    return _labels([one.label for one in truth])


def answer_words(answer: Prediction) -> str:
    """What was said; of objects their labels with how many were found."""
    if answer.objects:
        return _labels([one.label for one in answer.objects])
    return answer.text or "(empty)"


def _labels(labels: Sequence[str]) -> str:
    times = Counter(one or "object" for one in labels)
    return ", ".join(f"{n} {name}" for name, n in times.most_common()) or "nothing"


def _pair(name: str, value: str, class_: str | None = None) -> tuple[Html, Html]:
    short = value if len(value) <= _MAX_CHARS else value[:_MAX_CHARS] + " ..."
    return el("dt", name), el("dd", short, class_=class_)


def _repeat(report: Report) -> Html:
    config = report.scored.config
    versions = ", ".join(f"{k} {v}" for k, v in config.environment.items() if v)
    return joined(
        el("h2", "To repeat it"),
        el("div", el("pre", config.command or "(no command was noted)"), class_="card"),
        el(
            "p",
            f"Settings {config.key}; examples {report.ids_hash}, the hash of "
            f"{len(report.scored.examples):,} ids in order{f'; {versions}' if versions else ''}.",
            class_="quiet",
        ),
        el(
            "details",
            el("summary", "Every setting"),
            el("pre", json.dumps(config.to_json(), indent=1, ensure_ascii=False)),
        ),
    )


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _bounds(one: Row) -> str:
    return "" if math.isnan(one.low) else f"{one.low:.2f} to {one.high:.2f}"
