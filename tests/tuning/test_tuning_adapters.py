"""Adapters through the command line: trained token rows, quantised bases, several on one base."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dequantised import dequantise
from PIL import Image
from tiny_folder import write_random_tiny

from paligemma import PaliGemma
from paligemma.adapt.lora import Adapter, LoraConfig
from paligemma.adapt.whole_layers import whole_layer
from paligemma.cli import main
from paligemma.kernels.linear import Linear
from paligemma.kernels.nf4 import NF4Linear
from paligemma.weights.adapter import load_adapter, save_adapter
from paligemma.weights.load import load_model

BOX = "<loc0100><loc0200><loc0500><loc0600>"
PROMPT = "detect red"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_tiny(tmp_path_factory.mktemp("base") / "model", dtype="float32")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One picture with one box; nothing is held out, so that nothing is measured."""
    folder = tmp_path_factory.mktemp("data")
    Image.fromarray(np.full((40, 60, 3), (220, 30, 30), np.uint8)).save(folder / "red.png")
    row = {"image": "red.png", "prefix": PROMPT, "suffix": f"{BOX} red"}
    (folder / "train.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def run(*words: str | Path | float) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return int(stopped.value.code or 0)


def trained(base: Path, data: Path, output: Path, *words: str | float) -> dict[str, Any]:
    """The report of a few updates."""
    code = run(
        "train", "--data", data, "--model", base, "--output", output, "--rank", 2,
        "--steps", 4, "--batch-size", 1, "--lr", 1e-2, "--quiet", *words,
    )  # fmt: skip
    assert code == 0
    found: dict[str, Any] = json.loads((output / "report.json").read_text())
    return found


def test_rows_of_locations_are_learnt_alone_kept_shown_and_merged(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = trained(base, data, tmp_path / "run", "--train-tokens", "loc,seg")
    (learnt,) = (
        one for one in report["parts"] if (one["part"], one["state"]) == ("embedding", "adapter")
    )
    model = load_model(base)
    assert learnt["parameters"] == (1024 + 128) * model.config.text.width
    capsys.readouterr()
    assert run("adapter", "inspect", tmp_path / "run") == 0
    assert "1152 token rows, of <loc> and <seg>" in capsys.readouterr().out
    assert run("adapter", "merge", tmp_path / "run", "--output", tmp_path / "merged") == 0
    merged = load_model(tmp_path / "merged")
    moved = (merged.text.embed.weight != model.text.embed.weight).any(dim=1).nonzero().flatten()
    vocab = model.config.vocab
    assert all(vocab.is_loc(one) or vocab.is_seg(one) for one in moved.tolist())
    assert {vocab.loc0 + place for place in (100, 200, 500, 600)} <= set(moved.tolist())
    live = PaliGemma.from_pretrained(base, adapter=tmp_path / "run")
    whole = PaliGemma.from_pretrained(tmp_path / "merged")
    asked = [one.generate(data / "red.png", PROMPT, max_new_tokens=6).text for one in (live, whole)]
    assert asked[0] == asked[1]


def test_a_projector_that_an_adapter_holds_whole_is_shown_kept_and_merged(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(base)
    own = whole_layer(model.projector.dense() * 2, torch.ones(model.config.text.width))
    start = replace(Adapter.new(model, LoraConfig(rank=2)), layers={"projector": own})
    first = save_adapter(start, model, tmp_path / "first", base=str(base))
    assert run("adapter", "inspect", first) == 0
    assert "replaces projector whole" in capsys.readouterr().out
    # A training that begins from it goes on beside it.
    code = run(
        "train", "--data", data, "--model", base, "--output", tmp_path / "run", "--steps", 4,
        "--batch-size", 1, "--init-from", first, "--quiet",
    )  # fmt: skip
    assert code == 0
    parts = json.loads((tmp_path / "run" / "report.json").read_text())["parts"]
    assert [one["state"] for one in parts if one["part"] == "projector"] == ["frozen"]
    learnt = load_adapter(tmp_path / "run" / "adapter", model)
    assert torch.equal(learnt.layers["projector"].weight, own.weight)
    assert any(bool(update.up.any()) for update in learnt.updates.values())
    assert run("adapter", "merge", tmp_path / "run", "--output", tmp_path / "merged") == 0
    merged = load_model(tmp_path / "merged")
    assert torch.equal(merged.projector.weight, own.weight)
    assert torch.equal(merged.projector.bias, own.bias)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--train-tokens", "locs"], "loc or seg"),
        (["--full", "--train-tokens", "loc"], "--train-tokens"),
        (["--quantize", "int3"], "nf4"),
        (["--quantize", "nf4:decoder.mpl"], "did you mean decoder.mlp"),
        (["--quantize", "nf4", "--full"], "train an adapter"),
    ],
)
def test_an_option_of_adapters_that_is_out_of_place_is_one_sentence(
    words: list[str], said: str, base: Path, data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    code = run(
        "train", "--data", data, "--model", base, "--output", tmp_path / "run", "--quiet", *words
    )
    assert code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_adapter_is_trained_on_four_bits_and_serves_the_weights_as_they_were(
    base: Path, data: Path, tmp_path: Path
) -> None:
    report = trained(base, data, tmp_path / "run", "--quantize", "nf4")
    assert report["recipe"]["quant"] == "nf4"
    counts = {(one["part"], one["state"]): one["parameters"] for one in report["parts"]}
    assert counts["decoder.mlp", "quantised"] > counts["decoder.mlp", "adapter"] > 0
    assert ("decoder.mlp", "frozen") not in counts
    assert counts["vision", "frozen"] > 0
    plain = PaliGemma.from_pretrained(base, adapter=tmp_path / "run")
    assert not any(isinstance(one, NF4Linear) for one in plain.model.modules())
    bits = PaliGemma.from_pretrained(base, adapter=tmp_path / "run", quant="nf4")
    assert isinstance(bits.model.text.blocks[0].mlp.up.base, NF4Linear)
    image = torch.zeros(1, 112, 112, 3)
    tokens = torch.arange(3, 9)[None]

    def logits() -> torch.Tensor:
        model = bits.model
        return model(model.encode_image(image), tokens, torch.zeros_like(tokens)).detach()

    adapted = logits()
    dequantise(bits.model)
    assert not any(isinstance(one, NF4Linear) for one in bits.model.modules())
    assert torch.allclose(logits(), adapted, rtol=0, atol=1e-5 * float(adapted.abs().max()))
    before = [
        update.up
        for update in load_adapter(tmp_path / "run" / "adapter", plain.model).updates.values()
    ]
    assert all(bool(up.any()) for up in before)


def test_what_an_adapter_was_trained_beside_is_shown_and_dora_on_four_bits_merges(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(base, data, tmp_path / "run", "--quantize", "nf4:decoder,vision", "--dora")
    capsys.readouterr()
    assert run("adapter", "inspect", tmp_path / "run") == 0
    assert "quantised to nf4:decoder,vision" in capsys.readouterr().out
    assert run("adapter", "merge", tmp_path / "run", "--output", tmp_path / "merged") == 0
    assert isinstance(load_model(tmp_path / "merged").text.blocks[0].mlp.up, Linear)


def test_an_adapter_that_would_not_survive_its_merge_is_not_kept(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("paligemma.tuning.keeping.merge_difference", lambda model: float("nan"))
    code = run(
        "train", "--data", data, "--model", base, "--output", tmp_path / "run", "--rank", 2,
        "--steps", 1, "--batch-size", 1, "--quiet",
    )  # fmt: skip
    assert code == 2
    assert "must answer like the adapted model" in capsys.readouterr().err
    assert not (tmp_path / "run" / "adapter").exists()
    assert list((tmp_path / "run" / "train").glob("step_*"))
