"""The page of a search: one file, whose heat maps a browser shows without a script."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html import unescape

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from paligemma.retrieval.items import Hit
from paligemma.retrieval.results_page import MAX_WORDS, PageAnswer, results_page
from paligemma.retrieval.vectors import Vectors

D = 24


def vectors_of(seed: int, number: int, **about: object) -> Vectors:
    drawn = torch.Generator().manual_seed(seed)
    values = normalize(torch.randn(number, D, generator=drawn), dim=-1)
    return Vectors(values=values, **about)  # type: ignore[arg-type]


def hit_of(number: int, path: str = "/reports/annual.pdf") -> Hit:
    memory = io.BytesIO()
    Image.new("RGB", (30, 40), (200, 220, 240)).save(memory, "JPEG")
    page_id = f"{number:064x}:{number}"
    return Hit(
        id=page_id,
        score=9.5 - number,
        path=path,
        page=number,
        size=(300, 400),
        thumbnail=memory.getvalue(),
        payload={},
    )


def query_of(*pieces: str) -> Vectors:
    return vectors_of(1, len(pieces), grid=None, pieces=pieces)


def test_each_page_has_a_layer_for_each_word_and_a_rule_that_shows_it() -> None:
    hits = [hit_of(1), hit_of(2)]
    words = query_of("revenue", " growth", "")
    vectors = {hit.id: vectors_of(hit.page, 14, grid=(3, 4)) for hit in hits}
    html = results_page(
        "revenue growth", hits, words=words, vectors=vectors, about="library, 9 pages"
    )
    assert "2 pages found in library, 9 pages<" in html
    assert html.count('<img src="data:image/jpeg') == 2
    for number in range(3):  # any word, and each of the two
        assert html.count(f'class="heat w{number}"') == 2
        assert f"main:has(#w{number}:checked) .w{number}" in html
        assert html.count(f'id="w{number}"') == 1
    assert html.count("checked>") + html.count('checked=""') == 1
    labels = re.findall(r"<label><input[^>]*>([^<]*)</label>", html)
    assert labels == ["any word", "revenue", "growth", "nothing"]
    assert "annual.pdf, page 1" in html
    assert 'alt="page 1 of annual.pdf"' in html
    assert "Below a page: what each word adds to its score." in html
    assert "8.50" in html


def test_a_page_asks_for_nothing_and_holds_what_anyone_wrote_as_text() -> None:
    evil = "<script>alert(1)</script>"
    hits = [hit_of(1, path=f"/x/{evil}.pdf")]
    words = query_of(evil)
    vectors = {hits[0].id: vectors_of(3, 14, grid=(3, 4))}
    answers = [PageAnswer(text=evil, hit=0)]
    html = results_page(evil, hits, words=words, vectors=vectors, answers=answers, about=evil)
    assert "<script" not in html
    assert "default-src 'none'" in unescape(html)
    assert not re.search(r"(?:src|href)=\"(?!data:image/|#hit-)", html)


def test_an_answer_names_the_page_it_was_read_on() -> None:
    html = results_page("q", [hit_of(1), hit_of(2)], answers=[PageAnswer(text="12 %", hit=1)])
    assert re.search(r'12 %</span> from <a href="#hit-2">annual.pdf, page 2</a>', html)


def test_pages_without_vectors_or_thumbnails_are_shown_without_heat() -> None:
    bare = hit_of(2)
    object.__setattr__(bare, "thumbnail", b"")
    words = query_of("revenue")
    hits = [hit_of(1), bare, hit_of(3)]
    vectors = {
        hits[0].id: vectors_of(1, 14, grid=(3, 4)),
        hits[2].id: replace(vectors_of(2, 14, grid=(3, 4)), grid=None),
    }
    html = results_page("revenue", hits, words=words, vectors=vectors)
    assert html.count('class="heat w1"') == 1
    assert html.count("no picture") == 1
    assert "has no page for this query" in results_page("revenue", [])


@pytest.mark.parametrize("number", [MAX_WORDS, MAX_WORDS + 30])
def test_a_long_query_has_bounded_layers(number: int) -> None:
    hit, words = hit_of(1), query_of(*[f" w{k}" for k in range(number)])
    html = results_page(
        "long", [hit], words=words, vectors={hit.id: vectors_of(2, 14, grid=(3, 4))}
    )
    assert html.count('class="heat ') == MAX_WORDS + 1
