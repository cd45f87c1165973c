"""Loading by name: what belongs to a model, the mode it runs in, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_folder import DESK, EMBEDDED, write_random_tiny

from paligemma import AnswerOptions, PaliGemma
from paligemma.errors import (
    CheckpointError,
    ConfigError,
    ModelNotFoundError,
    PaliGemmaError,
    TokenizerError,
)
from paligemma.generate import Greedy, LocationGreedy, Temperature
from paligemma.pipeline.loading import LoadOptions, load_processor
from paligemma.processing.sentencepiece_model import train_tokenizer


def test_a_float16_file_runs_in_float32_and_rounds_keys_and_values_as_the_original_does(
    tiny_dir: Path,
) -> None:
    pg = PaliGemma.from_pretrained(tiny_dir)
    assert pg.settings.mode == "exact"
    assert {p.dtype for p in pg.model.parameters()} == {torch.float32}
    assert pg.settings.kv_cache_dtype == "bfloat16"
    theirs = PaliGemma.from_pretrained(tiny_dir, conventions="transformers")
    assert theirs.settings.kv_cache_dtype == "float32"


def test_a_bfloat16_file_runs_in_bfloat16_unless_told_otherwise(tmp_path: Path) -> None:
    folder = write_random_tiny(tmp_path / "model", dtype="bfloat16")
    pg = PaliGemma.from_pretrained(folder)
    assert pg.settings.mode == "bf16"
    assert {p.dtype for p in pg.model.parameters()} == {torch.bfloat16}
    exact = PaliGemma.from_pretrained(folder, mode="exact")
    assert {p.dtype for p in exact.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("mode", "tolerance"), [("mixed", 0.1), ("bf16", 0.2)])
def test_the_faster_modes_stay_near_the_exact_one(
    tiny_dir: Path, random_tiny: PaliGemma, mode: str, tolerance: float
) -> None:
    pg = PaliGemma.from_pretrained(tiny_dir, mode=mode)
    stored = torch.bfloat16 if mode == "bf16" else torch.float32
    assert {p.dtype for p in pg.model.parameters()} == {stored}
    found = pg.read(DESK, max_new_tokens=1).token_logprobs
    exact = random_tiny.read(DESK, max_new_tokens=1).token_logprobs
    assert found != exact
    np.testing.assert_allclose(found, exact, atol=tolerance)


def test_the_mode_does_not_leak_into_code_between_the_pieces_of_a_stream(tiny_dir: Path) -> None:
    pg = PaliGemma.from_pretrained(tiny_dir, mode="mixed")
    for _ in pg.stream(DESK, "ocr", max_new_tokens=2):
        assert not torch.is_autocast_enabled("cpu")


def test_npz_and_safetensors_of_one_model_answer_alike(
    tmp_path: Path, tiny_dir: Path, random_tiny: PaliGemma
) -> None:
    folder = write_random_tiny(tmp_path / "model", layout="npz")
    pg = PaliGemma.from_pretrained(folder, kv_cache_dtype="float32")
    found, other = (model.read(DESK, max_new_tokens=3) for model in (pg, random_tiny))
    assert found.token_logprobs == other.token_logprobs


def test_another_resolution_reads_larger_pictures(tiny_dir: Path) -> None:
    pg = PaliGemma.from_pretrained(tiny_dir, image_size_px=224)
    assert pg.processor.image_size_px == 224
    assert pg.encode_image(DESK).soft_tokens.shape == (1, 196, 256)


def test_a_processor_is_loaded_without_weights(tiny_dir: Path) -> None:
    processor, config = load_processor(tiny_dir, LoadOptions(image_size_px=64))
    assert processor.image_size_px == config.vision.image_size_px == 64


def test_the_stated_mask_codec_comes_before_the_one_beside_the_model_and_the_environment(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = tmp_path / "stated.safetensors"
    shutil.copyfile(tiny_dir / "mask_codec.safetensors", stated)
    alone = shutil.copytree(tiny_dir, tmp_path / "alone")
    (alone / "mask_codec.safetensors").unlink()

    assert PaliGemma.from_pretrained(alone).mask_codec is None
    monkeypatch.setenv("PALIGEMMA_MASK_CODEC", str(stated))
    assert PaliGemma.from_pretrained(alone)._mask_codec == stated
    beside = tiny_dir / "mask_codec.safetensors"
    assert PaliGemma.from_pretrained(tiny_dir)._mask_codec == beside
    assert PaliGemma.from_pretrained(tiny_dir, mask_codec=stated)._mask_codec == stated


@pytest.mark.parametrize(
    ("options", "error", "rule"),
    [
        ({"mode": "float32"}, ConfigError, "mode must be one of exact, mixed, bf16"),
        ({"device": "toaster"}, ConfigError, "device must be one that torch finds"),
        ({"device": "meta"}, ConfigError, "device must be one that computes"),
        ({"image_size_px": 100}, ConfigError, "got 100 and 16; the nearest are 96 and 112"),
        ({"image_size_px": 5}, ConfigError, "got 5 and 16; the nearest is 16"),
        ({"image_size_px": 10**6}, ConfigError, "image_size_px must lie in 1..4096"),
        ({"resize_method": "nearest"}, ConfigError, "resize method must be one of"),
        ({"kv_cache_dtype": "int4"}, ConfigError, "kv_cache_dtype must be one of"),
        (
            {"kv_cache_dtype": "float16"},
            ConfigError,
            "one of bfloat16, float32, int8, got 'float16'",
        ),
        ({"revision": "bfloat16"}, ConfigError, "a branch of a model on the hub.*leave it out"),
        ({"mask_codec": "missing.npz"}, CheckpointError, "no 'missing.npz'"),
        ({"tokenizer": "missing.model"}, TokenizerError, "missing.model"),
    ],
)
def test_options_out_of_their_range_are_refused(
    tiny_dir: Path, options: dict[str, Any], error: type[PaliGemmaError], rule: str
) -> None:
    with pytest.raises(error, match=rule):
        PaliGemma.from_pretrained(tiny_dir, **options)


def test_a_name_that_is_no_model_is_answered_with_what_may_be_meant() -> None:
    with pytest.raises(ModelNotFoundError, match="did you mean paligemma2-3b-mix-448"):
        PaliGemma.from_pretrained("paligema2-3b-mix-448")


def test_a_model_without_tokenizer_says_how_to_get_one(tiny_dir: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(tiny_dir, tmp_path / "alone")
    (alone / "tokenizer.model").unlink()
    with pytest.raises(TokenizerError, match="copy the published file there or pass it"):
        PaliGemma.from_pretrained(alone)
    assert PaliGemma.from_pretrained(alone, tokenizer=EMBEDDED / "tokenizer.model").vocab.eos == 1


def test_a_tokenizer_with_other_ids_is_refused(tiny_dir: Path, tmp_path: Path) -> None:
    other = train_tokenizer(["a small text"] * 9, vocab_size=290, out_path=tmp_path / "other.model")
    with pytest.raises(
        TokenizerError, match=r"must give \w+ the id \d+ that the model was trained"
    ):
        PaliGemma.from_pretrained(tiny_dir, tokenizer=other)


def test_public_names_are_imported_when_used_and_unknown_ones_are_not() -> None:
    code = (
        "import sys, paligemma; assert 'torch' not in sys.modules; "
        "assert 'PaliGemma' in dir(paligemma); paligemma.PaliGemmaError; "
        "assert 'torch' not in sys.modules; print(hasattr(paligemma, 'nothing'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_model_may_ask_to_weigh_locations_together(tmp_path: Path) -> None:
    folder = write_random_tiny(tmp_path / "model")
    assert not PaliGemma.from_pretrained(folder).settings.weigh_locations
    path = folder / "config.json"
    body = json.loads(path.read_text())
    body["paligemma"]["weigh_locations"] = True
    path.write_text(json.dumps(body))
    pg = PaliGemma.from_pretrained(folder)
    assert pg.settings.weigh_locations
    chosen = [
        AnswerOptions(**options).decoder(pg.settings, pg.vocab, 8).sampler  # type: ignore[union-attr]
        for options in ({}, {"weigh_locations": False}, {"temperature": 0.5})
    ]
    weighed = LocationGreedy(pg.vocab.loc0, pg.vocab.seg0)
    assert chosen == [weighed, Greedy(), Temperature(0.5)]

    # Its wish is for places: words of an answer are never outweighed by all locations together.
    def sampler_of(prompt: str, **options: Any) -> object:
        return pg.question(prompt, **options).requests[0].decoder.sampler  # type: ignore[union-attr]

    assert sampler_of("detect star") == sampler_of("segment star") == weighed
    assert sampler_of("answer en what color is the star?") == sampler_of("ocr") == Greedy()
    assert sampler_of("ocr", weigh_locations=True) == weighed
