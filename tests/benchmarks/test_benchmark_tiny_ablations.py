"""Variants of the recipe of the embedded model: one start, the same pictures, compared in pairs."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from paligemma.errors import CheckpointError
from paligemma.model.paligemma import PaliGemmaModel, init_weights
from paligemma.processing.tokenizer import Tokenizer
from paligemma.tiny.start import tiny_config
from paligemma.tiny.training import EMBEDDED

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = ROOT / "benchmarks" / "tiny_ablations.py"
    spec = importlib.util.spec_from_file_location("tiny_ablations", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "tiny_ablations", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "init_tiny", init_weights)
    small = replace(module.STAGES[1], num_scenes=2, prompts_per_scene=1)
    monkeypatch.setattr(module, "STAGES", (module.STAGES[0], small))
    later = {
        name: replace(stage, num_scenes=1, prompts_per_scene=1)
        for name, stage in module.LATER.items()
    }
    monkeypatch.setattr(module, "LATER", later)
    return module


@pytest.fixture
def tower(tmp_path: Path) -> Path:
    """What the stage tower-112 leaves: a tower that is not the one of the start."""
    model = PaliGemmaModel(tiny_config(Tokenizer.from_file(EMBEDDED / "tokenizer.model").vocab))
    init_weights(model, 7)
    step = tmp_path / "tower-112" / "step_0000001"
    step.mkdir(parents=True)
    save_file(model.state_dict(), step / "model.safetensors")
    (step / "state.json").write_text("{}")
    return step.parent


def test_each_variant_changes_what_its_name_says_and_is_measured_beside_the_first(
    script: ModuleType, tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*words: object) -> dict[str, dict[str, list[float]]]:
        rest = ("--output", tmp_path / "out", "--steps", 1, "--batches", 2, "--threads", 1, *words)
        monkeypatch.setattr(sys, "argv", ["x", "--tower", str(tower), *map(str, rest)])
        script.main()
        found: dict[str, dict[str, list[float]]] = json.loads(
            (tmp_path / "out" / "ablations.json").read_text()
        )
        return found

    variants = (script.BASE, "frozen tower", "MLP connector")
    words = ("--precision", "float32", "--variants", *variants)
    found = run(*words)
    for variant in variants:
        mean, low, high = found[variant]["loss"]
        assert low <= mean <= high
        # Untrained: about the logarithm of 1,920 pieces.
        assert 5 < mean < 12
    assert found[script.BASE]["loss_difference"] == [0, 0, 0]
    assert found["MLP connector"]["loss_difference"] != [0, 0, 0]
    weights = {
        variant: load_file(
            tmp_path
            / "out"
            / variant.replace(" ", "-").replace(",", "")
            / "step_0000001"
            / "model.safetensors"
        )
        for variant in variants
    }
    began = load_file(tower / "step_0000001" / "model.safetensors")
    assert not any(name.startswith("vision.") for name in weights["frozen tower"])
    assert "projector.2.weight" in weights["MLP connector"]
    name = "vision.pos_embedding"
    assert np.allclose(weights[script.BASE][name], began[name], atol=0.01)
    # What was trained at another precision is another variant.
    with pytest.raises(CheckpointError, match="precision changed"):
        run("--precision", "bfloat16", "--variants", script.BASE)


def test_a_tower_that_was_never_trained_is_named(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--tower", str(tmp_path), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["x", *words])
    with pytest.raises(SystemExit, match="holds no checkpoint of tower-112"):
        script.main()


@pytest.mark.parametrize("words", [("--steps", "0"), ("--batches", "-1"), ("--variants",)])
def test_numbers_and_variants_without_sense_are_refused_before_anything_is_trained(
    script: ModuleType,
    tower: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(
        sys, "argv", ["x", "--tower", str(tower), "--output", str(out), "--threads", "1", *words]
    )
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert not out.exists()


def test_stages_that_go_on_from_a_whole_model_are_measured_on_whole_pictures(
    script: ModuleType, tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = ("--output", tmp_path / "out", "--steps", 1, "--batches", 1, "--threads", 1)
    words = ["x", "--joint", str(tower), "--precision", "float32", *map(str, rest)]
    monkeypatch.setattr(sys, "argv", words)
    script.main()
    found = json.loads((tmp_path / "out" / "ablations.json").read_text())
    first, other = script.LATER
    assert found[first]["loss_difference"] == [0, 0, 0]
    assert found[other]["loss"][0] > 0
    begun = load_file(tower / "step_0000001" / "model.safetensors")
    ended = load_file(tmp_path / "out" / "stage-at-224-px" / "step_0000001" / "model.safetensors")
    name = "text.blocks.0.mlp.down.weight"
    # One update moves a weight a little; another decoder would be another in all of them.
    moved = (ended[name] - begun[name]).norm() / begun[name].norm()
    assert moved < 0.3
