"""Preprocessing and token layout against the original's own numbers: exact, pixel by pixel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from paligemma.processing.processor import inference_row, training_row
from paligemma.processing.resize import resize, resize_float, to_unit_range
from paligemma.vocab import Vocab

METHODS = {0: "bilinear", 1: "bilinear-antialias"}
SIZE_PX = 56


@pytest.mark.parametrize("antialias", [0, 1])
@pytest.mark.parametrize("image", [0, 1, 2])
def test_resized_pixels_are_those_of_the_original(
    golden_dir: Path, image: int, antialias: int
) -> None:
    with np.load(golden_dir / "preprocess.npz") as golden:
        resized = resize(golden[f"image{image}"], SIZE_PX, METHODS[antialias])
        assert np.array_equal(resized, golden[f"resized_{image}_aa{antialias}"])


@pytest.mark.parametrize("antialias", [0, 1])
@pytest.mark.parametrize("image", [0, 1])
def test_resizing_before_truncation_is_that_of_the_original(
    golden_dir: Path, image: int, antialias: int
) -> None:
    with np.load(golden_dir / "preprocess.npz") as golden:
        source = golden[f"image{image}"]
        expected = golden[f"float_{image}_aa{antialias}"]
    for pixels in (source, source.astype(np.float32)):
        resized = resize_float(pixels, SIZE_PX, antialias=bool(antialias))
        assert resized.dtype == np.float32
        assert np.array_equal(resized, expected)


@pytest.mark.parametrize("antialias", [0, 1])
def test_the_unit_range_is_that_of_the_original(golden_dir: Path, antialias: int) -> None:
    with np.load(golden_dir / "preprocess.npz") as golden:
        resized = resize(golden["image0"], SIZE_PX, METHODS[antialias])
        assert np.array_equal(to_unit_range(resized), golden[f"range_0_aa{antialias}"])


def test_video_frames_are_those_of_the_original(golden_dir: Path) -> None:
    with np.load(golden_dir / "preprocess.npz") as golden:
        resized = resize_float(golden["video_decoded"], SIZE_PX, antialias=False)
        assert np.array_equal(to_unit_range(resized), golden["video_image"])


def test_the_token_layout_is_that_of_the_original(golden_dir: Path) -> None:
    golden = json.loads((golden_dir / "text.json").read_text())
    (sep,) = golden["sep"]
    vocab = Vocab(
        size=400, pad=golden["pad"], eos=golden["eos"], bos=golden["bos"], sep=sep, loc0=-1, seg0=-1
    )
    assert len(golden["cases"]) >= 20
    for case in golden["cases"]:
        prefix, suffix, text_len = case["prefix"], case["suffix"], case["text_len"]
        rows = {
            "train": training_row(prefix, suffix, vocab, text_len),
            "eval": inference_row(prefix, [], vocab, text_len),
            "eval_with_suffix": inference_row(prefix, suffix, vocab, text_len),
        }
        for name, row in rows.items():
            expected = dict(case[name])
            assert list(row.tokens) == expected.pop("text"), (name, case)
            for mask, values in expected.items():
                assert list(getattr(row, mask)) == values, (name, mask, case)
