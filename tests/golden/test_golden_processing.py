"""Preprocessing and token layout against the original's own numbers: exact, pixel by pixel."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from golden_set import load_arrays

from paligemma.processing.processor import inference_row, training_row
from paligemma.processing.resize import resize, resize_float, to_unit_range
from paligemma.vocab import Vocab

METHODS = {"0": "bilinear", "1": "bilinear-antialias"}


def resized_images(golden_dir: Path, kind: str) -> list[tuple[np.ndarray, str, np.ndarray]]:
    """Image, whether antialiased ("0" or "1") and what the original made of it."""
    arrays = load_arrays(golden_dir / "preprocess.npz")
    matches = [re.fullmatch(rf"{kind}_(\d+)_aa([01])", key) for key in arrays]
    found = [(arrays[f"image{m[1]}"], m[2], arrays[m[0]]) for m in matches if m]
    assert {antialias for _, antialias, _ in found} == {"0", "1"}
    return found


def test_resized_pixels_are_those_of_the_original(golden_dir: Path) -> None:
    for image, antialias, original in resized_images(golden_dir, "resized"):
        assert np.array_equal(resize(image, len(original), METHODS[antialias]), original)


def test_resizing_before_truncation_is_that_of_the_original(golden_dir: Path) -> None:
    for image, antialias, original in resized_images(golden_dir, "float"):
        for pixels in (image, image.astype(np.float32)):
            resized = resize_float(pixels, len(original), antialias=antialias == "1")
            assert resized.dtype == np.float32
            assert np.array_equal(resized, original)


def test_the_unit_range_is_that_of_the_original(golden_dir: Path) -> None:
    for image, antialias, original in resized_images(golden_dir, "range"):
        resized = resize(image, len(original), METHODS[antialias])
        assert np.array_equal(to_unit_range(resized), original)


def test_video_frames_are_those_of_the_original(golden_dir: Path) -> None:
    arrays = load_arrays(golden_dir / "preprocess.npz")
    original = arrays["video_image"]
    resized = resize_float(arrays["video_decoded"], len(original), antialias=False)
    assert np.array_equal(to_unit_range(resized), original)


def test_the_token_layout_is_that_of_the_original(golden_dir: Path) -> None:
    golden = json.loads((golden_dir / "text.json").read_text())
    (sep,) = golden["sep"]
    ids = [sep, *(token for case in golden["cases"] for token in case["prefix"] + case["suffix"])]
    special = {name: golden[name] for name in ("pad", "eos", "bos")}
    vocab = Vocab(size=max(ids) + 1, sep=sep, loc0=-1, seg0=-1, **special)
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
