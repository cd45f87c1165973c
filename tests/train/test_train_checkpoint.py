"""Training state on disk: whole or not there, and refused when it does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from toy_training import OPTIM, TextObjective, digest, small_model

from paligemma.errors import CheckpointError
from paligemma.model import PaliGemmaModel
from paligemma.train import checkpoint, stored
from paligemma.train.checkpoint import (
    TrainState,
    checkpoints,
    load_checkpoint,
    resume,
    save_checkpoint,
)
from paligemma.train.optim import Optimizer

META = {"optim": {"lr": 1e-3}, "total_steps": 6}


def state_of(model: PaliGemmaModel) -> TrainState:
    objective = TextObjective()
    optimizer = Optimizer(
        model,
        OPTIM,
        total_steps=6,
        extra_parameters=dict(objective.named_parameters()),
        extra_schedule=OPTIM.schedule[0][1],
    )
    return TrainState(model=model, objective=objective, optimizer=optimizer)


def advance(state: TrainState, num_steps: int = 1) -> None:
    """Updates with gradients that depend on the step alone."""
    for _ in range(num_steps):
        generator = torch.Generator().manual_seed(state.optimizer.steps_done)
        for parameter in (*state.model.parameters(), *state.objective.parameters()):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        state.optimizer.step()


@pytest.fixture
def trained() -> TrainState:
    state = state_of(small_model())
    advance(state, 3)
    return state


def test_weights_moments_and_step_count_come_back(trained: TrainState, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, trained, META)
    assert path.name == "step_0000003"
    fresh = state_of(small_model(seed=1))
    load_checkpoint(path, fresh, META)
    assert fresh.optimizer.steps_done == 3
    for state in (trained, fresh):
        advance(state)
    # Equal after one more update: so the moments are equal too.
    assert digest(fresh.model) == digest(trained.model)
    assert digest(fresh.objective) == digest(trained.objective)


def test_only_the_newest_two_are_kept_and_the_order_is_by_step(
    trained: TrainState, tmp_path: Path
) -> None:
    for _ in range(3):
        save_checkpoint(tmp_path, trained, META)
        advance(trained, 4)
    # Renamed, not copied: nothing else is left.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_0000007", "step_0000011"]
    assert [path.name for path in checkpoints(tmp_path)] == ["step_0000007", "step_0000011"]


def test_a_checkpoint_without_room_is_one_sentence_and_the_one_before_stays(
    trained: TrainState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, trained, META)
    before = [path.name for path in tmp_path.iterdir()]

    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(stored, "save_file", full)
    with pytest.raises(CheckpointError, match=rf"No space left.*goes on from {before[0]}"):
        save_checkpoint(tmp_path, trained, META)
    assert [path.name for path in tmp_path.iterdir()] == before


def test_a_folder_half_written_is_no_checkpoint(
    trained: TrainState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = save_checkpoint(tmp_path, trained, META)
    advance(trained)

    def cut(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(stored, "save_file", cut)
        with pytest.raises(CheckpointError, match="no space left"):
            save_checkpoint(tmp_path, trained, META)
    assert list(tmp_path.iterdir()) == checkpoints(tmp_path) == [complete]
    # A kill leaves its unfinished folder, which the next attempt at this step removes.
    (tmp_path / ".step_0000004.0123" / "model.safetensors").mkdir(parents=True)
    assert [save_checkpoint(tmp_path, trained, META)] == checkpoints(tmp_path)[1:]
    assert sorted(tmp_path.iterdir()) == checkpoints(tmp_path)


def test_damaged_checkpoints_that_were_passed_over_displace_no_whole_one(
    trained: TrainState, tmp_path: Path
) -> None:
    for step in (90, 91):
        (tmp_path / f"step_{step:07d}").mkdir()
    fresh = state_of(small_model())
    assert resume(tmp_path, fresh, META) is None
    save_checkpoint(tmp_path, trained, META)
    assert resume(tmp_path, fresh, META) == {}
    assert fresh.optimizer.steps_done == 3


def test_a_deletion_that_a_kill_cut_is_finished_by_the_run_that_goes_on(
    trained: TrainState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        save_checkpoint(tmp_path, trained, META)
        advance(trained)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_tidy", lambda *_: None)
        save_checkpoint(tmp_path, trained, META)
    (tmp_path / ".step_0000002.old").mkdir()
    assert resume(tmp_path, state_of(small_model()), META) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_0000004", "step_0000005"]


def test_other_files_beside_checkpoints_are_none(tmp_path: Path) -> None:
    for name in ("step_12", "step_0000003.old", "metrics.jsonl", "model"):
        (tmp_path / name).mkdir()
    assert checkpoints(tmp_path) == []
    assert checkpoints(tmp_path / "nowhere") == []


@pytest.mark.parametrize("name", ["model", "objective", "optimizer"])
def test_a_truncated_file_is_named_with_the_way_back(
    trained: TrainState, tmp_path: Path, name: str
) -> None:
    path = save_checkpoint(tmp_path, trained, META)
    file = path / f"{name}.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(
        CheckpointError, match=r"step_0000003 cannot be read .*; delete it to start"
    ):
        load_checkpoint(path, trained, META)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"run": {}}', '{"counters": 1}'])
def test_a_damaged_description_is_refused(trained: TrainState, tmp_path: Path, text: str) -> None:
    path = save_checkpoint(tmp_path, trained, META)
    (path / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path, trained, META)


def test_a_missing_file_is_refused(trained: TrainState, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, trained, META)
    (path / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path, trained, META)


def test_every_changed_setting_is_named(trained: TrainState, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, trained, META)
    with pytest.raises(CheckpointError, match="but optim, seed changed; use another output folder"):
        load_checkpoint(path, trained, {"optim": {"lr": 1.0}, "total_steps": 6, "seed": 3})
    assert json.loads((path / "state.json").read_text())["run"] == META


def test_weights_of_another_model_are_refused(trained: TrainState, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, trained, META)
    other = small_model()
    wider = replace(other.config.text, mlp_dim=40)
    state = state_of(PaliGemmaModel(replace(other.config, text=wider)))
    with pytest.raises(CheckpointError, match=r"another model: text.*mlp.gate.weight"):
        load_checkpoint(path, state, META)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_with_a_warning(
    trained: TrainState, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(tmp_path, trained, META, beside={"count": 3})
    advance(trained)
    path = save_checkpoint(tmp_path, trained, META, beside={"count": 4}) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # A bit of a weight, which nothing but the hash would notice.
    path.write_bytes(content)
    fresh = state_of(small_model(seed=1))
    assert resume(tmp_path, fresh, META) == {"count": 3}
    assert fresh.optimizer.steps_done == 3
    assert "model.safetensors is not as it was written" in caplog.text
    assert "goes on from the one before" in caplog.text


def test_without_a_whole_checkpoint_nothing_is_resumed(trained: TrainState, tmp_path: Path) -> None:
    assert resume(tmp_path, trained, META) is None
    path = save_checkpoint(tmp_path, trained, META)
    (path / "state.json").write_text("{")
    assert resume(tmp_path, trained, META) is None


@pytest.mark.parametrize(
    "change", [{"beside": None}, {"counters": []}, {"run": "x"}, {"sha256": 3}], ids=str
)
def test_a_state_with_values_of_another_kind_is_damaged(
    trained: TrainState, tmp_path: Path, change: dict[str, object]
) -> None:
    path = save_checkpoint(tmp_path, trained, META) / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert resume(tmp_path, trained, META) is None
    path.write_text("[" * 100_000)
    assert resume(tmp_path, trained, META) is None
