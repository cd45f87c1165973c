"""The commands about checkpoints and about what a model sees."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_folder import DESK, EMBEDDED

from paligemma.kernels.native import describe, library

Run = Callable[..., Any]


@pytest.mark.skipif(not (EMBEDDED / "model.safetensors").is_file(), reason="not trained yet")
def test_models_are_listed_with_the_published_parameter_counts(paligemma: Run) -> None:
    rows = {row["name"]: row for row in paligemma("models", "--json").json["models"]}
    assert rows["google/paligemma-3b-pt-224"]["num_parameters"] == 2_923_335_408
    assert rows["google/paligemma2-28b-pt-896"]["num_parameters"] == 27_654_615_792
    assert rows["google/paligemma2-10b-mix-448"]["dtypes"] == ["bfloat16"]
    assert 5e6 < rows["tiny"]["num_parameters"] < 20e6
    shown = paligemma("models").out
    assert all(name in shown for name in rows)


def test_a_checkpoint_is_converted_there_and_back_bit_by_bit(
    paligemma: Run, tiny_dir: Path, tmp_path: Path
) -> None:
    npz, back = tmp_path / "npz", tmp_path / "back"
    done = paligemma("convert", tiny_dir, npz, "--layout", "npz")
    assert (done.status, done.out) == (0, "")
    assert paligemma("convert", npz, back).status == 0
    first, last = (load_file(folder / "model.safetensors") for folder in (tiny_dir, back))
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert (back / "tokenizer.model").is_file()
    assert (back / "mask_codec.safetensors").is_file()


def test_a_converted_model_is_described_and_answers_as_before(
    paligemma: Run, tmp_path: Path
) -> None:
    folders = [EMBEDDED, tmp_path / "npz", tmp_path / "back"]
    assert paligemma("convert", "tiny", folders[1], "--layout", "npz").status == 0
    assert paligemma("convert", folders[1], folders[2]).status == 0
    first, *later = (json.loads((folder / "config.json").read_text()) for folder in folders)
    assert later == [first, first]
    answers = [paligemma("detect", DESK, "star", "--model", one, "--json").json for one in folders]
    texts = [(answer["text"], answer["detections"]) for answer in answers]
    assert texts == texts[:1] * 3


def test_a_conversion_replaces_a_checkpoint_only_when_asked(
    paligemma: Run, tiny_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert paligemma("convert", tiny_dir, out).status == 0
    refused = paligemma("convert", tiny_dir, out, "--dtype", "bfloat16")
    assert refused.status == 2
    assert "holds model.safetensors" in refused.err
    assert paligemma("convert", tiny_dir, out, "--dtype", "bfloat16", "--overwrite").status == 0
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--max-shard-gb", "nan"), "no finite number"),
        (("--max-shard-gb", "inf"), "is not in the range"),
        (("--max-shard-gb", "1", "--layout", "npz"), "of the layout hf, got them with npz"),
        (("--layout", "npz", "--spelling", "current"), "of the layout hf, got them with npz"),
        (("--layout", "npz", "--pad-rows"), "of the layout hf, got them with npz"),
        (("--revision", "bfloat16"), "leave it out"),
    ],
)
def test_options_that_a_conversion_cannot_follow_are_refused(
    paligemma: Run, tiny_dir: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    refused = paligemma("convert", tiny_dir, tmp_path / "out", *options)
    assert refused.status == 2
    assert said in refused.err
    assert "Traceback" not in refused.err
    assert not (tmp_path / "out").exists()


def test_inspect_shows_pieces_masks_and_labels(paligemma: Run) -> None:
    body = paligemma("inspect", DESK, "ocr", "--suffix", "HELLO", "--json").json
    assert body["num_image_tokens"] == 49
    tokens = body["tokens"]
    assert [token["role"] for token in tokens][:2] == ["prefix", "prefix"]
    assert [token["mask_ar"] for token in tokens] == sorted(token["mask_ar"] for token in tokens)
    assert tokens[-1]["piece"] == "<eos>"
    assert tokens[-2]["label"] == tokens[-1]["token"]
    lines = paligemma("inspect", DESK, "ocr", "--suffix", "HELLO").out.splitlines()
    assert "1 picture of 112 px as 49 soft tokens" in lines[0]
    assert len(lines) == 2 + len(tokens)


def test_inspect_writes_the_attention_pattern_and_the_resized_pictures(
    paligemma: Run, tmp_path: Path
) -> None:
    assert paligemma("inspect", DESK, DESK, "ocr", "-o", tmp_path / "seen").status == 0
    names = sorted(path.name for path in (tmp_path / "seen").iterdir())
    assert names == ["attention.png", "picture_1.png", "picture_2.png"]
    with Image.open(tmp_path / "seen" / "picture_1.png") as picture:
        assert picture.size == (112, 112)


def test_inspect_works_without_a_picture_and_reports_what_it_removed(paligemma: Run) -> None:
    done = paligemma("inspect", "<image>ocr\n", "--text-len", "8")
    assert done.status == 0
    assert "note: a leading <image> was removed" in done.out
    assert "0 pictures" in done.out


def test_the_doctor_finds_nothing_wrong_with_a_sound_model(paligemma: Run, tiny_dir: Path) -> None:
    done = paligemma("doctor", tiny_dir, "--json")
    assert done.status == 0
    assert done.json["verdict"] == "ok"
    checks = {found["check"] for found in done.json["findings"]}
    assert {"files", "hashes", "config", "shapes", "statistics", "tokenizer", "forward"} <= checks
    quick = paligemma("doctor", tiny_dir, "--quick")
    assert quick.status == 0
    assert quick.out.splitlines()[-1] == "Nothing is wrong with it."
    assert "forward" not in quick.out


def test_the_doctor_says_which_kernels_are_in_use(
    paligemma: Run, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said() -> str:
        findings = paligemma("doctor", tiny_dir, "--quick", "--json").json["findings"]
        (message,) = [found["message"] for found in findings if found["check"] == "kernels"]
        return message

    assert describe() in said()
    library.cache_clear()
    monkeypatch.setenv("PALIGEMMA_KERNELS", "off")
    try:
        assert "torch's products, as $PALIGEMMA_KERNELS is off" in said()
    finally:
        library.cache_clear()


def test_the_doctor_says_what_is_wrong_and_exits_with_1(
    paligemma: Run, tiny_dir: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_dir, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = max(tensors)
    tensors[name] = torch.full_like(tensors[name], torch.nan)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    done = paligemma("doctor", folder)
    assert done.status == 1
    wrong = [line for line in done.out.splitlines() if line.startswith("error")]
    assert len(wrong) == 1
    assert "statistics" in wrong[0]
    assert done.out.splitlines()[-1] == "It will not work as it is; see the errors."
