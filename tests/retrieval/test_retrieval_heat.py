"""Heat maps of words over pages, with vectors made by hand."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from paligemma.errors import ConfigError
from paligemma.retrieval.heat import (
    contrasts,
    draw_heat,
    heat_range,
    heat_rgba,
    heat_url,
    similarity_maps,
    word_scores,
    words_of,
)
from paligemma.retrieval.scores import max_sim
from paligemma.retrieval.vectors import Vectors

PIECES = ("", "how", "\u2581much", " did", "\u2581re", "venue", "\u2581grow", "?", "", "")
D = 16


def query_of(pieces: tuple[str, ...]) -> Vectors:
    """A query whose tokens are axes of their own."""
    return Vectors(values=torch.eye(D)[: len(pieces)], grid=None, pieces=pieces)


def page_of(hot: dict[tuple[int, int], int], rows: int = 3, columns: int = 4) -> Vectors:
    """A page whose patches lie on the last axis, apart from some that are like a token."""
    values = torch.zeros(rows * columns + 2, D)
    values[:, -1] = 1.0
    for (row, column), token in hot.items():
        values[row * columns + column] = torch.eye(D)[token]
    return Vectors(values=values, grid=(rows, columns), pieces=())


def test_pieces_become_the_words_that_were_written_and_added_tokens_become_none() -> None:
    words = words_of(query_of(PIECES))
    assert [word.text for word in words] == ["how", "much", "did", "revenue", "grow?"]
    assert [word.tokens for word in words] == [(1,), (2,), (3,), (4, 5), (6, 7)]


def test_scripts_without_spaces_have_a_word_for_each_piece() -> None:
    words = words_of(query_of(("売上", "高", "\u2581of", "\u25812024", "年", "\n")))
    assert [word.text for word in words] == ["売上", "高", "of", "2024", "年"]


def test_a_map_is_the_mean_over_the_tokens_of_a_word_in_the_order_of_the_patches() -> None:
    maps = similarity_maps(query_of(PIECES), page_of({(0, 1): 4, (2, 3): 5, (1, 0): 1}))
    assert maps.shape == (5, 3, 4)
    revenue = torch.zeros(3, 4)
    revenue[0, 1] = revenue[2, 3] = 0.5
    assert torch.equal(maps[3], revenue)
    assert maps[0, 1, 0] == 1.0
    assert maps[1].abs().max() == 0.0


def test_scores_of_words_and_added_tokens_are_the_score_of_the_page() -> None:
    drawn = torch.Generator().manual_seed(3)
    values = normalize(torch.randn(len(PIECES), D, generator=drawn), dim=-1)
    query = Vectors(values=values, grid=None, pieces=PIECES)
    page = Vectors(
        values=normalize(torch.randn(14, D, generator=drawn), dim=-1), grid=(3, 4), pieces=()
    )
    by_word = word_scores(query, page)
    added = [number for number, piece in enumerate(PIECES) if not piece]
    rest = float((values[added] @ page.values.T).amax(1).sum())
    whole = float(max_sim(values, [page.values])[0])
    assert sum(by_word) + rest == pytest.approx(whole, abs=1e-5)


def test_what_a_word_is_like_everywhere_is_taken_off_over_all_pages() -> None:
    query = query_of(PIECES)
    maps = [similarity_maps(query, page_of({(0, 1): 1})), similarity_maps(query, page_of({}))]
    lifted = [one + torch.arange(5.0)[:, None, None] for one in maps]
    for plain, one in zip(maps, contrasts(lifted), strict=True):
        torch.testing.assert_close(one, plain)  # the middle of each map is 0
    assert contrasts([]) == []


def test_one_scale_for_all_pages_keeps_words_that_are_nowhere_cool() -> None:
    query = query_of(PIECES)
    maps = [similarity_maps(query, page_of({(0, 1): 1})), similarity_maps(query, page_of({}))]
    low, high = heat_range(maps)
    assert (low, high) == (0.0, 1.0)
    assert heat_rgba(maps[0][0], (low, high))[0, 1].tolist() == [213, 94, 0, 178]
    assert not heat_rgba(maps[1][0], (low, high))[..., 3].any()
    assert heat_range([]) == (0.0, 1.0)


@pytest.mark.parametrize("size", [(8, 6), (400, 300), (300, 400)])
def test_heat_lies_on_its_patch_whatever_the_shape_of_the_page(size: tuple[int, int]) -> None:
    heat = similarity_maps(query_of(PIECES), page_of({(2, 3): 1}))[0]
    drawn = np.asarray(draw_heat(Image.new("RGB", size, "white"), heat)).astype(int)
    changed = 255 - drawn[..., 2]
    assert drawn.shape == (size[1], size[0], 3)
    y, x = np.unravel_index(changed.argmax(), changed.shape)
    assert (y * 3 // size[1], x * 4 // size[0]) == (2, 3)
    assert not changed[: size[1] // 3].any()


def test_a_map_as_an_address_has_a_pixel_for_each_patch() -> None:
    heat = similarity_maps(query_of(PIECES), page_of({(1, 2): 1}))[0]
    kind, _, data = heat_url(heat, (0.0, 1.0)).partition(",")
    assert kind == "data:image/png;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (picture.mode, picture.size) == ("RGBA", (4, 3))
    assert picture.getpixel((2, 1)) == (213, 94, 0, 178)


@pytest.mark.parametrize(
    "heat", [torch.zeros(2, 3, 4), torch.zeros(0, 4), torch.full((3, 4), torch.nan)]
)
def test_what_is_no_map_is_refused(heat: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="heat is one map"):
        draw_heat(Image.new("RGB", (8, 8)), heat)


def test_a_query_is_no_page_and_another_models_page_is_refused() -> None:
    query = query_of(PIECES)
    with pytest.raises(ConfigError, match="got a query in its place"):
        similarity_maps(query, query)
    other = Vectors(values=torch.eye(8), grid=(2, 4), pieces=())
    with pytest.raises(ConfigError, match="vectors of 16 and 8 numbers"):
        word_scores(query, other)
