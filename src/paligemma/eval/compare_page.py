"""Two runs as one page: differences with intervals, and both answers beside each other."""

import math

from paligemma.eval import page_parts as parts
from paligemma.eval.compare import Comparison, Difference, sign_words, verdict
from paligemma.outputs.html import Html, el, joined, page

_NUM_EXAMPLES = 12


def compare_page(found: Comparison, *, pictures: parts.OpenPictures | None = None) -> str:
    """The page of a comparison, one file that asks for nothing."""
    first, second = found.first.config, found.second.config
    title = f"{found.first.task.title} ({first.split})"
    won, lost = (found.largest(_NUM_EXAMPLES, won=won) for won in (True, False))
    read = pictures([found.first.examples[k].id for k in won + lost]) if pictures else None
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
        el("div", *map(_card, found.differences[:3]), _counts(found), class_="cards"),
        _table(found),
        parts.notes_list(found.notes),
        _examples("Where the second gains most", found, won, read),
        _examples("Where the second loses most", found, lost, read),
        parts.commands("Commands", first.command, second.command),
    )


def _card(one: Difference) -> Html:
    interval = f"95 % interval {parts.interval_words(one.low, one.high, '+')}"
    if math.isnan(one.low):
        interval = "no interval"
    return parts.card(
        el("div", parts.name_words(one.measure), ", second minus first", class_="quiet"),
        el("span", _words(one, one.value, "+"), class_=_class(one)),
        el("p", f"{_words(one, one.first)} to {_words(one, one.second)}"),
        el("p", f"{interval}, {one.num:,} examples", class_="quiet"),
    )


def _words(one: Difference, value: float, sign: str = "") -> str:
    return parts.figure_words(value, one.low, one.high, sign)


def _class(one: Difference) -> str | None:
    """Colour of a difference whose interval leaves zero out."""
    return ("up" if one.is_better else "down") if one.is_clear else None


def _counts(found: Comparison) -> Html | None:
    counts = found.counts
    if not counts:
        return None
    return el(
        "div",
        el("div", "examples, seen from the second", class_="quiet"),
        el(
            "dl",
            *(joined(el("dt", name), el("dd", f"{n:,}")) for name, n in counts.items()),
            class_="counts",
        ),
        class_="card",
    )


def _table(found: Comparison) -> Html:
    rows = [
        parts.table_row(
            el("td", parts.name_words(one.measure)),
            _words(one, one.first),
            _words(one, one.second),
            el("td", _words(one, one.value, "+"), class_=_class(one)),
            parts.interval_words(one.low, one.high, "+"),
            el("td", sign_words(one), class_="roomy"),
            el("td", f"{one.num:,}", class_="roomy"),
        )
        for one in found.differences
    ]
    names = ("", "first", "second", "difference", "95 % interval")
    roomy = (el("th", name, class_="roomy") for name in ("same sign", "examples"))
    return parts.section(
        "All figures",
        parts.table(parts.table_row(*names, *roomy, name="th"), rows),
        el("p", "Coloured where the interval leaves zero out.", class_="quiet"),
        el(
            "p",
            "Same sign: share of resampled example sets on which the difference points the same "
            "way.",
            class_="quiet roomy",
        ),
    )


def _examples(
    title: str, found: Comparison, positions: list[int], pictures: parts.Pictures | None
) -> Html | None:
    if not positions or found.gains is None:
        return None
    tiles = [_tile(found, k, float(found.gains[k]), pictures) for k in positions]
    return parts.section(title, el("div", *tiles, class_="cards tiles"))


def _tile(found: Comparison, position: int, gain: float, pictures: parts.Pictures | None) -> Html:
    example = found.first.examples[position]
    scores = found.scores or (None, None)
    answers = [
        parts.shown_answer(scored, position, of_run)
        for scored, of_run in zip((found.first, found.second), scores, strict=True)
    ]
    # Both answers where they hold boxes, else the picture once.
    named = zip(("first", "second"), answers, strict=True)
    shown = [(name, one) for name, one in named if one.objects] or [("first", answers[0])]
    return parts.tile(
        example,
        f"{gain:+.3g}",
        [parts.example_picture(example, one, pictures, whose=name) for name, one in shown],
        {"first": parts.answer_words(answers[0]), "second": parts.answer_words(answers[1])},
        said="second",
        class_=f"card tile {'won' if gain > 0 else 'lost'}",
    )
