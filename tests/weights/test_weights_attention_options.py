"""Caps and window by name, and conventions for a file that states none."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from tiny_folder import write_random_tiny

from paligemma import PaliGemma
from paligemma.config import PaliGemmaConfig, release_config
from paligemma.errors import ConfigError
from paligemma.pipeline.loading import LoadOptions
from paligemma.weights.big_vision import BigVisionReader
from paligemma.weights.load import AttentionOptions, read_config
from paligemma.weights.model_files import Checkpoint


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_tiny(tmp_path_factory.mktemp("models") / "random-tiny")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (50.0, None, None)),
        ({"attn_softcap": 0}, (None, None, None)),
        ({"attn_softcap": 30, "sliding_window": 7}, (30, None, 7)),
        ({"final_softcap": 20.5}, (50.0, None, None)),
    ],
)
def test_what_is_named_is_set_and_nothing_else(
    tiny_dir: Path, options: dict[str, Any], expected: tuple[object, ...]
) -> None:
    text = PaliGemma.from_pretrained(tiny_dir, **options).config.text
    found = (text.attn_softcap, text.final_softcap, text.sliding_window)
    assert found == (expected[0], options.get("final_softcap"), expected[2])


def test_options_out_of_range_are_refused_before_anything_is_read() -> None:
    for bad in ({"attn_softcap": -1}, {"final_softcap": math.inf}, {"sliding_window": -4}):
        with pytest.raises(ConfigError, match="must be positive, or 0 for off"):
            LoadOptions(**bad)
    with pytest.raises(ConfigError, match="big_vision, transformers, got 'mine'"):
        LoadOptions(conventions="mine")  # type: ignore[arg-type]


class _Recognised(BigVisionReader):
    """A file of which only the shapes are known."""

    def __init__(self, config: PaliGemmaConfig) -> None:
        self.found = config

    def infer_config(self) -> PaliGemmaConfig:
        return self.found


@pytest.mark.parametrize("generation", [1, 2])
def test_conventions_hold_for_an_npz_without_a_config(generation: int) -> None:
    config = release_config("gemma_2b" if generation == 1 else "gemma2_2b", 224)
    checkpoint = Checkpoint(
        name="x.npz",
        folder=Path(),
        layout="npz",
        weights=(Path("x.npz"),),
        config=None,
        tokenizer=None,
        mask_codec=None,
    )
    ours, _ = read_config(checkpoint, _Recognised(config))
    assert ours == config
    theirs, _ = read_config(checkpoint, _Recognised(config), "transformers")
    caps = (theirs.text.attn_softcap, theirs.text.final_softcap, theirs.text.sliding_window)
    assert caps == ((None, None, None) if generation == 1 else (50.0, 30.0, 4096))
    named, _ = read_config(
        checkpoint, _Recognised(config), "transformers", AttentionOptions(sliding_window=0)
    )
    assert named.text.sliding_window is None
