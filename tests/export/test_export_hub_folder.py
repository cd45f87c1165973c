"""`paligemma export --to hub`: what transformers makes of the folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from tiny_folder import DESK, EMBEDDED, VOCAB

from paligemma import PaliGemma
from paligemma.cli import main
from paligemma.config import release_config
from paligemma.errors import TokenizerError
from paligemma.export.card import card_text
from paligemma.export.tokenizer_json import tokenizer_json
from paligemma.one_writer import one_writer
from paligemma.processing.sentencepiece_model import train_tokenizer
from paligemma.processing.tokenizer import load_tokenizer

# Its own deprecations are not ours to mend.
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")

Run = Callable[..., tuple[int, str, str]]
PROMPT = "answer en what color is the star?"


@pytest.fixture
def hub_folder(small: Path, tmp_path: Path, program: Run) -> Path:
    status, _, err = program("export", small, tmp_path / "hub", "--to", "hub")
    assert status == 0, err
    return tmp_path / "hub"


def theirs(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, dtype="float32", attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    return AutoProcessor.from_pretrained(folder), model.eval()


def test_transformers_opens_it_and_answers_with_the_same_ids(small: Path, hub_folder: Path) -> None:
    processor, model = theirs(hub_folder)
    picture = Image.open(DESK).convert("RGB")
    asked = processor(images=picture, text=f"<image>{PROMPT}", return_tensors="pt")
    ours = PaliGemma.from_pretrained(small, kv_cache_dtype="float32")
    row = ours.processor.prompt_row(PROMPT)
    assert asked["input_ids"][0].tolist() == [VOCAB.size] * 4 + list(row.tokens)
    asked.pop("labels", None)
    told = model.generate(**asked, max_new_tokens=12)[0, asked["input_ids"].shape[1] :]
    answer = ours.generate(DESK, PROMPT, max_new_tokens=12).text
    assert processor.decode(told, skip_special_tokens=True) == answer
    assert len(answer) > 5


def test_the_folder_is_complete_and_described(hub_folder: Path) -> None:
    names = {path.name for path in hub_folder.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    }
    card = ModelCard.load(hub_folder / "README.md").data
    assert (card.library_name, card.pipeline_tag) == ("transformers", "image-text-to-text")
    assert (card.license, card.base_model) == (None, None)
    settings = json.loads((hub_folder / "generation_config.json").read_text())
    assert (settings["eos_token_id"], settings["do_sample"]) == (1, False)


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("google/paligemma2-3b-mix-224", "google/paligemma2-3b-mix-224"),
        ("google/paligemma2-3b-mix-224@main", "google/paligemma2-3b-mix-224"),
        ("pt_3b_224", "google/paligemma2-3b-pt-224"),
        ("runs/cards/merged", None),
    ],
)
def test_a_card_states_the_terms_of_released_weights_and_of_what_was_made_of_them(
    name: str, base: str | None
) -> None:
    config = release_config("gemma2_2b", 336)
    card = ModelCard(card_text(name=name, config=config, kind="hub")).data
    assert (card.license, card.base_model) == ("gemma", base)


def test_we_read_it_back_and_from_its_tokenizer_json_alone(small: Path, hub_folder: Path) -> None:
    first = PaliGemma.from_pretrained(small).generate(DESK, PROMPT, max_new_tokens=12).text
    (hub_folder / "tokenizer.model").unlink()
    model = PaliGemma.from_pretrained(hub_folder)
    assert model.generate(DESK, PROMPT, max_new_tokens=12).text == first


def test_only_weights_are_safetensors_and_the_mask_codec_is_found_beside_them(
    tmp_path: Path, program: Run
) -> None:
    assert program("export", "tiny", tmp_path / "out", "--to", "hub")[0] == 0
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]
    masks = [
        PaliGemma.from_pretrained(name).segment(DESK, "heart")[0].mask
        for name in ("tiny", tmp_path / "out")
    ]
    assert masks[0].sum() > 100
    np.testing.assert_array_equal(*masks)


def test_a_dtype_is_that_of_the_weights(small: Path, tmp_path: Path, program: Run) -> None:
    from safetensors.torch import load_file

    done = program("export", small, tmp_path / "out", "--to", "hub", "--dtype", "bfloat16")
    assert done[0] == 0, done[2]
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {one.dtype for one in weights.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "text",
    [
        "caption en",
        "find the dog  and\ncat 12",
        "detect star ; digit<loc0001><seg002>",
        "  ünïcode?? ▁x",
        "what color is it?\n\n",
        "a" * 50 + "  the then there",
        "",
    ],
)
def test_a_written_tokenizer_json_gives_the_ids_of_the_sentencepiece_model(text: str) -> None:
    import tokenizers

    content = tokenizer_json((EMBEDDED / "tokenizer.model").read_bytes(), image_id=VOCAB.size)
    written = tokenizers.Tokenizer.from_str(json.dumps(content))
    own = load_tokenizer(EMBEDDED)
    assert written.encode(text, add_special_tokens=False).ids == own.encode(text)


def test_unknown_characters_are_bytes_where_the_sentencepiece_model_has_them(
    tmp_path: Path,
) -> None:
    import tokenizers

    lines = ["a red circle on a table", "detect star ; digit", "what color is the star?"] * 20
    path = train_tokenizer(
        lines, vocab_size=420, out_path=tmp_path / "tokenizer.model", byte_fallback=True
    )
    own = load_tokenizer(path)
    content = tokenizer_json(path.read_bytes(), image_id=own.vocab.size)
    written = tokenizers.Tokenizer.from_str(json.dumps(content))
    for text in ("a red star\n", "ünï 猫 on a table", "\ttab", "🎈"):
        ids = own.encode(text)
        assert written.encode(text, add_special_tokens=False).ids == ids
        assert written.decode(ids) == text


@pytest.mark.parametrize("cut", [0.3, 0.9])
def test_a_damaged_sentencepiece_model_ends_in_a_sentence(cut: float) -> None:
    whole = (EMBEDDED / "tokenizer.model").read_bytes()
    damaged = bytes([whole[0] ^ 7]) + whole[1 : int(len(whole) * cut)]
    with pytest.raises(TokenizerError, match="must be a SentencePiece model"):
        tokenizer_json(damaged, image_id=VOCAB.size)


@pytest.mark.parametrize("name", [".", "dangling", "link", "pipe"])
def test_a_place_that_is_taken_is_refused_before_the_work(
    name: str, tmp_path: Path, program: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "real").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "pipe")
    place = name if name == "." else tmp_path / name
    status, _, err = program("export", "tiny", place, "--to", "hub")
    assert status == 2
    assert "an export goes to a folder that is not there yet" in err


def test_what_a_killed_export_left_is_removed_by_the_next_to_its_place(
    small: Path, tmp_path: Path, program: Run
) -> None:
    digits = "0123456789abcdef" * 2
    for name in (f".out.{digits}", f".other.{digits}"):
        (tmp_path / name / "onnx").mkdir(parents=True)
        (tmp_path / name / "onnx" / "graph.onnx").write_bytes(b"half")
    (tmp_path / ".out.writer").write_text("process 1 on another, since 2001-01-01 00:00:00")
    status, _, err = program("export", small, tmp_path / "out", "--to", "hub")
    assert status == 0, err
    assert {path.name for path in tmp_path.iterdir()} == {"out", f".other.{digits}"}


def test_a_second_export_to_the_same_place_is_refused_before_the_work(
    small: Path, tmp_path: Path, program: Run
) -> None:
    with one_writer(tmp_path, "out"):
        status, _, err = program("export", small, tmp_path / "out", "--to", "hub")
    assert status == 2
    assert f"another process is writing to {tmp_path / 'out'}: process {os.getpid()}" in err
    assert list(tmp_path.iterdir()) == []
    name = "ö" * 125  # 250 bytes, nearly as many as file systems allow
    assert program("export", small, tmp_path / name, "--to", "hub")[0] == 0


def test_a_mounted_disk_is_refused_and_a_place_that_is_taken_meanwhile_named(
    small: Path, tmp_path: Path, program: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(os.path, "ismount", lambda path: Path(path) == out)
        status, _, err = program("export", small, out, "--to", "hub")
    assert status == 2
    assert "is where a disk is mounted; name a folder in it" in err

    def taken(folder: Path, **fields: object) -> None:
        (out / "mine.txt").write_text("mine")

    monkeypatch.setattr("paligemma.export.hub_folder.write_card", taken)
    status, _, err = program("export", small, out, "--to", "hub")
    assert status == 2
    assert "appeared meanwhile" in err
    assert {path.name for path in tmp_path.rglob("*")} == {"out", "mine.txt"}


@pytest.mark.parametrize(
    ("words", "free"),
    [
        ("Wire format was corrupt", 0),
        ("No space left on device (os error 28)", 1 << 30),  # of safetensors
        ("Wire format was corrupt", 1 << 30),
    ],
)
def test_whatever_fails_on_a_full_disk_is_a_sentence(
    words: str,
    free: int,
    small: Path,
    tmp_path: Path,
    program: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def reads_half_a_file(*_: object) -> None:
        raise ValueError(words)

    monkeypatch.setattr("paligemma.export.hub_folder.write_side_files", reads_half_a_file)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    asked = ("export", small, tmp_path / "out", "--to", "hub")
    if free and "space" not in words:  # a fault of the program, which is no disk's
        with pytest.raises(ValueError, match="Wire format"):
            main([str(one) for one in asked])
    else:
        status, _, err = program(*asked)
        assert status == 1
        assert "out' needs more room than its disk has; make room" in err
    assert list(tmp_path.iterdir()) == []
