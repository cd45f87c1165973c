"""A run as one page: figures beside published ones, slices, calibration, the worst examples."""

import json
import math
from collections.abc import Sequence

from paligemma.errors import DataError
from paligemma.eval import page_parts as parts
from paligemma.eval.calibration import Reliability, reliability
from paligemma.eval.charts import (
    bar,
    histogram,
    interval_chart,
    legend,
    reliability_diagram,
    scale_end,
)
from paligemma.eval.example_scores import confidence, example_scores, worst
from paligemma.eval.figures import Figure
from paligemma.eval.outcomes import has_objects, object_outcomes, text_outcomes, true_objects
from paligemma.eval.report import Report, notes
from paligemma.eval.scored import Scored
from paligemma.outputs.html import Html, el, joined, page

_NUM_WORST = 12
_MAX_CARDS = 6


def report_page(report: Report, *, pictures: parts.OpenPictures | None = None) -> str:
    """The page of a run, one file that asks for nothing."""
    config = report.scored.config
    title = f"{report.scored.task.title} ({config.split})"
    whole = [one for one in report.figures if "/" not in one.measure] or list(report.figures)
    return page(
        f"{title}: {config.model}",
        el(
            "header",
            el("h1", title),
            el("p", el("b", config.model or "a model"), f", {report.extent}", class_="quiet"),
            class_="lead",
        ),
        el("div", *map(_card, whole[:_MAX_CARDS]), class_="cards"),
        _legend(whole[:_MAX_CARDS]),
        parts.notes_list(notes(report)),
        _figures_table(whole) if len(whole) > _MAX_CARDS else None,
        _slices(report),
        _charts(report.scored),
        _worst_examples(report.scored, pictures),
        _repeat(report),
    )


def _card(one: Figure) -> Html:
    """One figure with its interval and what was published."""
    published = one.published[0].value if one.published else None
    words = f"95 % interval {parts.interval_words(one.low, one.high)}, {one.num:,} examples"
    if math.isnan(one.low):
        words = f"{one.num:,} examples; no interval"
    better = " (lower is better)" if one.is_error else None
    return parts.card(
        el("div", parts.name_words(one.measure), better, class_="quiet"),
        parts.figure_words(one.value, one.low, one.high),
        interval_chart(one.value, one.low, one.high, published),
        el("p", words, class_="quiet"),
        None if published is None else _published_words(one, published),
    )


def _legend(figures: Sequence[Figure]) -> Html:
    marks = [("ours", "score"), ("span", "95 % interval")]
    if any(one.published for one in figures):
        marks.append(("theirs", "published"))
    return legend(*marks)


def _published_words(one: Figure, published: float) -> Html:
    difference = one.value - published
    good = difference <= 0 if one.is_error else difference >= 0
    inside = {True: ", inside the interval", False: ", outside the interval", None: ""}
    return el(
        "p",
        f"published {published:g}: ",
        el(
            "b",
            parts.figure_words(difference, one.low, one.high, "+"),
            class_="up" if good else "down",
        ),
        inside[one.holds_published],
    )


def _figures_table(figures: Sequence[Figure]) -> Html:
    is_compared = any(one.published for one in figures)
    compared = ("published", "difference") if is_compared else ()
    rows = []
    for one in figures:
        cells = [
            el("td", parts.name_words(one.measure)),
            parts.figure_words(one.value, one.low, one.high),
            parts.interval_words(one.low, one.high),
        ]
        if is_compared:
            difference = one.difference
            cells.append(f"{one.published[0].value:g}" if one.published else "")
            cells.append(
                "" if difference is None else parts.figure_words(difference, one.low, one.high, "+")
            )
        rows.append(parts.table_row(*cells, f"{one.num:,}"))
    head = parts.table_row("", "score", "95 % interval", *compared, "examples", name="th")
    return parts.section("All figures", parts.table(head, rows))


def _slices(report: Report) -> Html | None:
    """Slices that the scorer reports, by measure; then the headline by each slice of examples."""
    sections: dict[str, list[tuple[str, Figure]]] = {}
    for one in report.figures:
        if "/" in one.measure:
            measure, _, group = one.measure.partition("/")
            sections.setdefault(measure, []).append((group, one))
    for one in report.slices:
        sections.setdefault(f"{one.measure} by {one.by}", []).append((one.group or "(none)", one))
    if not sections:
        return None
    rows = []
    for title, found in sections.items():
        top = scale_end([one.value for _, one in found] + [one.high for _, one in found])
        rows.append(el("tr", el("td", title, colspan=5.0), class_="by"))
        rows += [
            parts.table_row(
                name,
                el("td", bar(one.value, one.low, one.high, top), class_="bar"),
                parts.figure_words(one.value, one.low, one.high),
                el("td", parts.interval_words(one.low, one.high), class_="roomy"),
                f"{one.num:,}",
            )
            for name, one in found
        ]
    interval = el("th", "95 % interval", class_="roomy")
    head = parts.table_row("", "", "score", interval, "examples", name="th")
    return parts.section("Scores by group", parts.table(head, rows))


def _charts(scored: Scored) -> Html:
    figures = []
    found = run_reliability(scored)
    if found is not None:
        words = (
            f"Confidence and what came of it, {found.num:,} "
            f"{'boxes' if has_objects(scored) else 'answers'} in {len(found.bins)} bins. Bars end "
            f"on the dashed line where confidences are honest. Expected calibration error "
            f"{found.ece:.3f}, Brier score {found.brier:.3f}."
        )
        figures.append(
            el(
                "figure",
                reliability_diagram(found),
                legend(("span", "share that was right"), ("gap", "distance from the confidence")),
                el("figcaption", words),
                class_="card",
            )
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
    return parts.section(
        "Confidence and length of answers", el("div", *figures, class_="cards wide")
    )


def run_reliability(scored: Scored) -> Reliability | None:
    """Of boxes, else of answers in words; None where no confidence or no truth is known."""
    try:
        found = object_outcomes(scored) if has_objects(scored) else text_outcomes(scored)
    except DataError:
        return None
    return reliability(found.confidence, found.is_hit)


def _worst_examples(scored: Scored, open_pictures: parts.OpenPictures | None) -> Html | None:
    scores = example_scores(scored)
    if scores is None:
        return None
    wrong = [k for k in worst(scored, scores, len(scored.examples)) if not scores.is_right(k)]
    positions = wrong[:_NUM_WORST]
    if not positions:
        return None
    read = open_pictures([scored.examples[k].id for k in positions]) if open_pictures else None
    words = (
        f"{len(positions):,} of {len(wrong):,} answers that are not wholly right; of equally bad "
    )
    words += "ones, those the model was surest of."
    if scores.threshold:
        words += f" Boxes below {scores.threshold:.2f}, where F1 is best, are left out."
    tiles = []
    for k in positions:
        example, answer = scored.examples[k], parts.shown_answer(scored, k, scores)
        answers = {"answer": parts.answer_words(answer)}
        if sure := confidence(answer):
            answers["confidence"] = f"{sure:.3f}"
        if answer.error:
            answers["error"] = answer.error
        tag = f"{scores.name} {scores.values[k]:.3g}"
        pictures = [parts.example_picture(example, answer, read)]
        tiles.append(parts.tile(example, tag, pictures, answers, said="answer"))
    return parts.section(
        "The worst answers",
        el("p", words, class_="quiet"),
        el("div", *tiles, class_=f"cards {'two' if has_objects(scored) else 'tiles'}"),
    )


def _repeat(report: Report) -> Html:
    config = report.scored.config
    versions = ", ".join(f"{k} {v}" for k, v in config.environment.items() if v)
    return joined(
        parts.commands("Command", config.command),
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
