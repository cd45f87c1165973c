"""Found pages as one page: in order, each with the heat of every word of the query.

It is one file without a script that asks for nothing; a word is chosen by a radio button, which
rules of style read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from torch import Tensor

from paligemma.outputs.html import Html, el, joined, page
from paligemma.retrieval.heat import (
    contrasts,
    data_url,
    heat_range,
    heat_url,
    similarity_maps,
    word_scores,
    words_of,
)

if TYPE_CHECKING:
    from paligemma.retrieval.index import Hit
    from paligemma.retrieval.vectors import Vectors

MAX_WORDS = 40  # whose heat is shown; a longer query is shown whole
_STYLE = """
.words{display:flex;flex-wrap:wrap;gap:.4rem;margin:1rem 0 0;padding:.6rem 0;border:0;
position:sticky;top:0;background:var(--paper);z-index:1}
.words legend{float:left;padding:.3rem .5rem .3rem 0;color:var(--quiet);font-size:.88rem}
.words label{position:relative;padding:.25rem .75rem;border:1px solid var(--line);
border-radius:2rem;background:var(--card);cursor:pointer}
.words input{position:absolute;inset:0;margin:0;opacity:0;cursor:pointer}
.words label:has(:checked){border-color:var(--ours);background:var(--soft)}
.words label:has(:focus-visible){outline:2px solid var(--ours);outline-offset:2px}
.seen{position:relative;line-height:0;background:var(--fill)}
.seen img{display:block;width:100%;height:auto}
.seen .heat{position:absolute;inset:0;height:100%;opacity:0;background:none}
.where{padding:.8rem 1.15rem 0;display:flex;gap:.6rem;align-items:baseline}
.where b{overflow-wrap:anywhere;font-weight:600}
.where .score{margin-left:auto;font-variant-numeric:tabular-nums;color:var(--quiet)}
.found{display:flex;flex-wrap:wrap;gap:.1rem .9rem;padding:.2rem 1.15rem .9rem;font-size:.82rem;
color:var(--quiet);font-variant-numeric:tabular-nums}
.ramp{display:flex;align-items:center;gap:.5rem;font-size:.82rem;color:var(--quiet)}
.ramp i{width:7rem;height:.6rem;border-radius:.3rem;border:1px solid var(--line);
background:linear-gradient(90deg,#fff,#fff7a8 35%,#efc05e 70%,#de7a32)}
.answer{font-size:1.2rem;font-weight:600}
@media print{.words{position:static}}
"""


@dataclass(frozen=True, kw_only=True)
class PageAnswer:
    """What a model read on a page.

    Attributes:
        text: its answer.
        hit: number of the page among the hits, from 0.
    """

    text: str
    hit: int = 0


def results_page(
    query: str,
    hits: Sequence[Hit],
    *,
    words: Vectors | None = None,
    vectors: Mapping[str, Vectors] | None = None,
    answers: Sequence[PageAnswer] = (),
    about: str = "",
) -> str:
    """The page of a search, whole.

    Args:
        query: as it was asked.
        hits: the best first.
        words: the query's vectors; with those of pages they make heat maps.
        vectors: of pages by id; pages without any are shown without heat.
        answers: what was read on pages, if they were asked.
        about: index and model in a few words.
    """
    # Vectors that lie on no grid have no place on the picture.
    vectors = {one: kept for one, kept in (vectors or {}).items() if kept.grid is not None}
    maps = _maps(hits, words, vectors or {})
    scale = heat_range(list(maps.values()))
    names = [] if words is None else [word.text for word in words_of(words)][:MAX_WORDS]
    number = f"{len(hits):,} page{'s' * (len(hits) != 1)}"
    cards = [
        _card(rank, hit, names, maps.get(hit.id), scale, _scores(hit, words, vectors or {}))
        for rank, hit in enumerate(hits, start=1)
    ]
    return page(
        f"{query[:100]}: pages found",
        el(
            "header",
            el("h1", query),
            el("p", f"{number} found{about and f' in {about}'}", class_="quiet"),
            class_="lead",
        ),
        _answers(answers, hits),
        _chooser(names) if maps else None,
        el("div", *cards, class_="cards two")
        if hits
        else el("p", "The index has no page for this query.", class_="card empty"),
        _explanation() if maps else None,
        style=_STYLE + _rules(len(names)),
    )


def _maps(
    hits: Sequence[Hit], words: Vectors | None, vectors: Mapping[str, Vectors]
) -> dict[str, Tensor]:
    if words is None:
        return {}
    ids = [hit.id for hit in hits if hit.id in vectors]
    maps = contrasts([similarity_maps(words, vectors[one]) for one in ids])
    return {page_id: one for page_id, one in zip(ids, maps, strict=True) if len(one)}


def _scores(hit: Hit, words: Vectors | None, vectors: Mapping[str, Vectors]) -> list[float]:
    return word_scores(words, vectors[hit.id]) if words and hit.id in vectors else []


def _rules(num_words: int) -> str:
    chosen = [f"main:has(#w{k}:checked) .w{k}" for k in range(num_words + 1)]
    return ",".join(chosen) + "{opacity:1}"


def _chooser(names: Sequence[str]) -> Html:
    """Radio buttons: the hottest word of each patch, each word, and the pages alone."""

    def choice(number: int, text: str, *, is_checked: bool = False) -> Html:
        box = {"type": "radio", "name_": "word", "id_": f"w{number}"}
        return el("label", el("input", **box, checked="" if is_checked else None), text)

    return el(
        "fieldset",
        el("legend", "Heat of"),
        choice(0, "any word", is_checked=True),
        *(choice(number, name) for number, name in enumerate(names, start=1)),
        choice(len(names) + 1, "nothing"),
        class_="words",
    )


def _explanation() -> Html:
    return el(
        "p",
        el("i"),
        "How much more a patch is like the word than most are; one scale for all words and pages. "
        "Below a page: what each word adds to its score.",
        class_="ramp",
    )


def _card(
    rank: int,
    hit: Hit,
    names: Sequence[str],
    maps: Tensor | None,
    scale: tuple[float, float],
    scores: Sequence[float],
) -> Html:
    shown: list[Html] = []
    if hit.thumbnail:
        shown.append(
            el(
                "img",
                src=data_url(hit.thumbnail),
                alt=f"page {hit.page} of {PurePath(hit.path).name}",
            )
        )
    if maps is not None:
        layers = [maps.amax(0), *maps[: len(names)]]
        shown += [
            el("img", src=heat_url(one, scale), alt="", class_=f"heat w{number}")
            for number, one in enumerate(layers)
        ]
    found = [el("span", f"{name} {score:.2f}") for name, score in zip(names, scores, strict=False)]
    return el(
        "article",
        el("div", *shown, class_="seen") if shown else el("div", "no picture", class_="empty"),
        el(
            "div",
            el("span", f"{rank}.", class_="quiet"),
            el("b", place_words(hit), title=hit.path),
            el("span", f"{hit.score:.2f}", class_="score", title="late-interaction score"),
            class_="where",
        ),
        el("div", *found, class_="found"),
        class_="card tile",
        id_=f"hit-{rank}",
    )


def _answers(answers: Sequence[PageAnswer], hits: Sequence[Hit]) -> Html | None:
    if not answers:
        return None
    lines = [
        el(
            "p",
            el("span", one.text, class_="answer"),
            joined(" from ", el("a", place_words(hits[one.hit]), href=f"#hit-{one.hit + 1}")),
        )
        for one in answers
    ]
    return el("section", *lines, class_="card")


def place_words(hit: Hit) -> str:
    """File and page of a hit, for readers."""
    return f"{PurePath(hit.path).name}, page {hit.page}"
