"""Drawn pages and the queries that they answer."""

from __future__ import annotations

import re

import numpy as np
import pytest

from paligemma.errors import DataError
from paligemma.scenes import COLORS, SHAPES
from paligemma.scenes.pages import draw_page, draw_query

SEEDS = range(40)


def test_equal_seeds_give_equal_pages_and_the_splits_differ() -> None:
    for seed in range(6):
        first, again, other = draw_page(seed), draw_page(seed), draw_page(seed, split="heldout")
        assert np.array_equal(first.image, again.image)
        assert (first.query, first.words) == (again.query, again.words)
        assert not np.array_equal(first.image, other.image)


def test_half_of_the_pages_are_writing_and_every_query_names_what_its_page_shows() -> None:
    written = [page for page in map(draw_page, SEEDS) if len(page.words) > 2]
    assert 12 <= len(written) <= 28
    figure = re.compile(rf"an? ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})")
    asking = {"a", "page", "about", "with", "where", "does", "it", "say", "find", "and"}
    for page in written:
        words = re.findall(r"[A-Za-z]+|\d+", figure.sub("", page.query))
        named = [word for word in words if word not in asking]
        assert named, page.query
        assert {word.upper() for word in named} <= set(page.words), page.query


def test_a_picture_is_asked_for_by_objects_that_it_holds() -> None:
    scenes = [page for page in map(draw_page, SEEDS) if page.scene is not None]
    for seed, page in enumerate(scenes):
        assert page.scene is not None
        shown = {(one.color, one.label) for one in page.scene.objects}
        for query in (page.query, draw_query(page, np.random.default_rng(seed))):
            named = re.findall(rf"({'|'.join(COLORS)}) (\w+)", query)
            assert min(len(page.scene.objects), 3) <= len(named) <= 4
            assert set(named) <= shown
    assert len(scenes) > 10


def test_pages_are_drawn_at_any_size() -> None:
    for size_px in (128, 448):
        pages = [draw_page(seed, size_px=size_px) for seed in range(8)]
        assert {page.image.shape for page in pages} == {(size_px, size_px, 3)}
        assert all(page.image.std() > 5 for page in pages)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": -1}, "seed of a page must be 0 or more"),
        ({"seed": 0, "size_px": 64}, "128..2048 px a side"),
        ({"seed": 0, "split": "test"}, "split must be one of"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        draw_page(**options)  # type: ignore[arg-type]
