"""The embedded data is what its sources say, and handwriting is split cleanly."""

from __future__ import annotations

import string
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from paligemma.scenes import SceneOptions
from paligemma.scenes.assets import CAP_HEIGHT_EM, FONTS, PHOTOS, digit_indices, digits, font, photo
from paligemma.scenes.draw import draw_scene
from paligemma.scenes.objects import draw_digit
from paligemma.scenes.things import sprite_file
from paligemma.scenes.words import WORDS


def test_the_embedded_handwriting_is_the_one_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    theirs = datasets.load_digits()
    images, labels = digits()
    assert images.shape == (1797, 8, 8)
    assert np.array_equal(images, theirs.images.astype(np.uint8))
    assert np.array_equal(labels, theirs.target)


def test_training_and_heldout_handwriting_are_disjoint_and_complete():
    train, heldout = digit_indices("train"), digit_indices("heldout")
    assert len(train) == 1437
    assert len(heldout) == 360
    assert not set(train) & set(heldout)
    assert set(train) | set(heldout) == set(range(1797))
    # No pixel-identical twin on the other side either.
    images = digits()[0]
    assert not {images[k].tobytes() for k in train} & {images[k].tobytes() for k in heldout}


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_scenes_draw_only_the_handwriting_of_their_split(split, monkeypatch):
    drawn = []

    def spy(index, *args, **kwargs):
        drawn.append(index)
        return draw_digit(index, *args, **kwargs)

    monkeypatch.setattr("paligemma.scenes.draw.draw_digit", spy)
    for seed in range(150):
        draw_scene(seed, SceneOptions(size_px=112, split=split))
    assert len(drawn) > 40
    assert {k % 5 == 0 for k in drawn} == {split == "heldout"}


def test_all_ten_digits_occur_in_both_splits():
    for split in ("train", "heldout"):
        assert set(digits()[1][digit_indices(split)]) == set(range(10))


@pytest.mark.parametrize("name", FONTS)
def test_every_font_has_all_printable_ascii_and_the_stated_cap_height(name):
    face = font(name, 100)
    missing = bytes(face.getmask("\u4e00"))
    for char in string.digits + string.ascii_letters + string.punctuation:
        assert face.getmask(char).getbbox() is not None, char
        assert bytes(face.getmask(char)) != missing, char
    _, top, _, bottom = face.getbbox("H", anchor="ls")
    assert abs((bottom - top) / 100 - CAP_HEIGHT_EM) <= 0.02


def test_photographs_are_colour_and_each_embedded_image_is_below_60_kb():
    for name in PHOTOS:
        assert photo(name).mode == "RGB"
        size = len((resources.files("paligemma.scenes") / "data" / f"{name}.jpg").read_bytes())
        assert size <= 60_000


def test_every_data_file_is_named_in_the_sources():
    folder = resources.files("paligemma.scenes") / "data"
    sources = (folder / "SOURCES.md").read_text()
    for entry in folder.iterdir():
        covered = entry.name in sources or (
            entry.name.endswith(".ttf") and "DejaVu*.ttf" in sources
        )
        assert covered or entry.name == "SOURCES.md", entry.name


def test_terms_of_all_data_of_others_stand_where_a_user_looks_for_them():
    folder = resources.files("paligemma.scenes") / "data"
    terms = (Path(__file__).parents[2] / "WEIGHTS_LICENSE.md").read_text()
    for entry in folder.iterdir():
        if not entry.name.endswith((".md", ".txt", ".ttf")):
            assert entry.name in terms, entry.name
    sources, notices = ((folder / n).read_text() for n in ("SOURCES.md", "LICENSE_THINGS.txt"))
    known = sprite_file()
    for style in {style for name in known.names for style in known.styles(name)}:
        assert f"`{style}/`" in sources
        assert f"{style}/*" in notices
    for notice in ("Copyright 2013 Google", "Apache License, Version 2.0", "Microsoft", "MIT"):
        assert notice in notices


def test_words_are_short_distinct_capitals():
    assert len(WORDS) >= 250
    assert len(set(WORDS)) == len(WORDS)
    assert all(2 <= len(word) <= 6 and word.isalpha() and word.isupper() for word in WORDS)
