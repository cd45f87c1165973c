"""No value of an option gives a traceback or takes long before it is refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile_options import sampled
from tiny_folder import DESK

from paligemma.config import MAX_IMAGE_SIZE_PX
from paligemma.errors import ConfigError
from paligemma.pipeline.loading import LoadOptions
from paligemma.pipeline.options import AnswerOptions, ObjectOptions
from paligemma.pipeline.paligemma import PaliGemma

Run = Callable[..., Any]

# What a command needs beside its options; the others refuse before any work.
ARGUMENTS: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("caption", "read"), (DESK,)),
    **dict.fromkeys(("run", "generate", "inspect"), (DESK, "ocr")),
    **dict.fromkeys(("answer", "detect", "segment"), (DESK, "star")),
}


@pytest.mark.parametrize(
    ("words", "hostile"), sampled(seed=8, num=60), ids=lambda value: " ".join(value)[:40]
)
def test_a_hostile_option_is_refused_in_a_sentence_or_has_a_meaning(
    paligemma: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    hostile: tuple[str, str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if words[:2] in (("train", "tiny"), ("train", "codec"), ("train", "tokenizer")) or (
        words in (("eval", "scenes"), ("serve",), ("mcp",))
    ):
        words = (*words, "--no-such-option")  # what parses would train, measure or serve for hours
    bound = () if words[0] not in ARGUMENTS or words[0] == "inspect" else ("--max-new-tokens", "2")
    if hostile[0] == "--max-new-tokens":
        bound = ()
    began = time.monotonic()
    done = paligemma(*words, *ARGUMENTS.get(words[0], ()), *bound, *hostile)
    assert done.status in (0, 1, 2)
    assert "Traceback" not in done.err
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--attn-softcap", "1e300"), "attn_softcap must be positive"),
        (("--final-softcap", "1e-300"), "final_softcap must be positive"),
        (("--sliding-window", str(10**30)), "sliding_window must be positive"),
        (("--device", "hpu"), "the device must be one that torch finds here"),
        (("--device", ""), "the device must be one that torch finds here"),
        (("--threshold", "nan"), "nan is not in the range"),
        (("--seed", str(10**30)), "the seed must lie in"),
        (("--image-size", str(10**30)), "is not in the range"),
        (("--temperature", "inf"), "temperature must lie in"),
        (("--max-new-tokens", str(10**30)), "--max-new-tokens must lie in"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_options_without_sense_are_refused_by_name(
    paligemma: Run, options: tuple[str, str], said: str
) -> None:
    done = paligemma("detect", DESK, "star", *options)
    assert (done.status, done.out) == (2, "")
    assert said in done.err


def test_a_conversion_has_bounds_for_the_size_of_a_shard_and_the_length_of_a_name(
    paligemma: Run, tiny_dir: Path, tmp_path: Path
) -> None:
    done = paligemma("convert", tiny_dir, tmp_path / "out", "--max-shard-gb", "1e300")
    assert (done.status, "is not in the range" in done.err) == (2, True)
    done = paligemma("convert", tiny_dir, tmp_path / ("x" * 300))
    assert done.status in (1, 2)
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        {"image_size_px": 28.0},
        {"image_size_px": True},
        {"image_size_px": MAX_IMAGE_SIZE_PX + 1},
        {"max_pixels": 1e6},
        {"sliding_window": 7.5},
        {"attn_softcap": "50"},
        {"final_softcap": float("nan")},
        {"attn_softcap": 1e300},
    ],
    ids=str,
)
def test_load_options_take_numbers_of_their_kind(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        LoadOptions(**options)


def test_whole_numbers_of_numpy_and_torch_are_numbers(tiny_dir: Path) -> None:
    pg = PaliGemma.from_pretrained(tiny_dir, image_size_px=np.int64(112))
    plain = pg.read(DESK, seed=3, temperature=1.0, max_new_tokens=4)
    same = pg.read(DESK, seed=np.int64(3), temperature=np.float32(1), max_new_tokens=np.int32(4))
    assert same.text == plain.text
    assert ObjectOptions(threshold=np.float64(0.5)).threshold == 0.5
    for seed in (torch.tensor(3), "3", 3.0, None, True):
        with pytest.raises(ConfigError, match="seed must be a whole number"):
            AnswerOptions(seed=seed)
