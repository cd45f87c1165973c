"""Two runs as one page: differences with intervals, and both answers beside each other."""

from __future__ import annotations

import math

from paligemma.eval.compare import Comparison, Difference, verdict
from paligemma.eval.html import Html, el, joined, page
from paligemma.eval.page import (
    Pictures,
    answer_words,
    example_picture,
    shown_answer,
    truth_words,
)
from paligemma.example import Prediction

NUM_EXAMPLES = 12


def compare_page(found: Comparison, *, pictures: Pictures | None = None) -> str:
    """The page of a comparison, one file that asks for nothing.

    Args:
        found: the comparison.
        pictures: reads an example's pictures again; None leaves them out.
    """
    first, second = found.first.config, found.second.config
    title = f"{found.first.task.title} ({first.split})"
    return page(
        f"{title}: {second.model} against {first.model}",
        el(
            "header",
            el("h1", title),
            el("p", el("b", "first "), first.model, f" ({first.key})", class_="quiet"),
            el("p", el("b", "second "), second.model, f" ({second.key})", class_="quiet"),
            el("p", f"{found.num:,} common examples; {verdict(found)}."),
            class_="lead",
        ),
        el("div", *(_card(one) for one in found.differences[:3]), *_counts(found), class_="cards"),
        _table(found),
        _notes(found),
        _examples(found, pictures, won=True),
        _examples(found, pictures, won=False),
        _repeat(found),
    )


def _card(one: Difference) -> Html:
    class_ = None
    if one.is_clear:
        class_ = "up" if one.is_better else "down"
    interval = "no interval"
    if not math.isnan(one.low):
        interval = f"95 % interval {one.low:+.2f} to {one.high:+.2f}"
    return el(
        "div",
        el("div", f"{one.measure}, second minus first", class_="quiet"),
        el("div", el("span", f"{one.value:+.2f}", class_=class_), class_="big"),
        el("p", f"{one.first:.2f} to {one.second:.2f}"),
        el("p", f"{interval}, {one.num:,} examples", class_="quiet"),
        class_="card head",
    )


def _counts(found: Comparison) -> list[Html]:
    counts = found.counts
    if not counts:
        return []
    rows = [joined(el("dt", name), el("dd", f"{n:,}")) for name, n in counts.items()]
    return [
        el(
            "div",
            el("div", "examples, seen from the second", class_="quiet"),
            el("dl", *rows, class_="counts"),
            class_="card",
        )
    ]


def _table(found: Comparison) -> Html:
    head = ("", "first", "second", "difference", "95 % interval", "same sign", "examples")
    body = []
    for one in found.differences:
        interval = "" if math.isnan(one.low) else f"{one.low:+.2f} to {one.high:+.2f}"
        share = "" if math.isnan(one.sign_share) else f"{100 * one.sign_share:.1f} %"
        class_ = None
        if one.is_clear:
            class_ = "up" if one.is_better else "down"
        body.append(
            el(
                "tr",
                el("td", one.measure),
                el("td", f"{one.first:.2f}"),
                el("td", f"{one.second:.2f}"),
                el("td", f"{one.value:+.2f}", class_=class_),
                el("td", interval),
                el("td", share),
                el("td", f"{one.num:,}"),
            )
        )
    table = el("table", el("tr", *(el("th", name) for name in head)), *body)
    return joined(
        el("h2", "All figures"),
        el("div", table, class_="card scroll"),
        el(
            "p",
            "Same sign: share of resampled example sets on which the difference points the same "
            "way. Coloured where the interval leaves zero out.",
            class_="quiet",
        ),
    )


def _notes(found: Comparison) -> Html | None:
    lines = list(found.notices)
    for number, name in ((found.num_only_first, "first"), (found.num_only_second, "second")):
        if number:
            lines.append(f"{number:,} examples that only the {name} run answered are left out")
    return el("ul", *(el("li", line) for line in lines), class_="quiet notes") if lines else None


def _examples(found: Comparison, pictures: Pictures | None, *, won: bool) -> Html | None:
    positions = found.largest(NUM_EXAMPLES, won=won)
    if not positions or found.gains is None:
        return None
    tiles = [_tile(found, k, pictures) for k in positions]
    title = "Where the second gains most" if won else "Where the second loses most"
    return joined(el("h2", title), el("div", *tiles, class_="cards tiles"))


def _tile(found: Comparison, position: int, pictures: Pictures | None) -> Html:
    example = found.first.examples[position]
    assert found.gains is not None
    gain = float(found.gains[position])
    answers = [answer_words(_answer(found, position, k)) for k in (0, 1)]
    return el(
        "article",
        *_pictures(found, position, pictures),
        el("div", el("span", f"{gain:+.3g}", class_="tag"), example.id, class_="id quiet"),
        el(
            "dl",
            el("dt", "prompt"),
            el("dd", example.prefix),
            el("dt", "reference"),
            el("dd", truth_words(example)),
            el("dt", "first"),
            el("dd", answers[0]),
            el("dt", "second"),
            el("dd", answers[1], class_="said"),
        ),
        class_=f"card tile {'won' if gain > 0 else 'lost'}",
    )


def _pictures(found: Comparison, position: int, pictures: Pictures | None) -> list[Html | None]:
    """Both answers where they hold boxes, else the picture once."""
    answers = [_answer(found, position, k) for k in (0, 1)]
    shown = [one for one in answers if one.objects] or answers[:1]
    example = found.first.examples[position]
    return [example_picture(example, one, pictures) for one in shown]


def _answer(found: Comparison, position: int, run: int) -> Prediction:
    """The answer of the first run (0) or the second (1)."""
    scored = (found.first, found.second)[run]
    return shown_answer(scored, position, found.scores[run] if found.scores else None)


def _repeat(found: Comparison) -> Html:
    commands = [one.config.command or "(not noted)" for one in (found.first, found.second)]
    return joined(
        el("h2", "To repeat both"),
        el("div", el("pre", "\n".join(commands)), class_="card"),
    )
