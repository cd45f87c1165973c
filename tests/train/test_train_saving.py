"""Checkpoints that are written while the next steps run: the same ones, one at a time."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from toy_training import OPTIM, RandomBatches, TextObjective, digest, small_model

from paligemma.batch import Batch
from paligemma.errors import CheckpointError
from paligemma.train import saving, stored
from paligemma.train.checkpoint import Snapshot, checkpoints
from paligemma.train.loop import LoopOptions, train

OPTIONS = LoopOptions(total_steps=6, log_every=4, save_every=3, num_workers=0, progress=False)
# Averages are changed in place, as parameters and moments are.
AVERAGED = replace(OPTIM, average=0.5)
# Longer than any step of these trainings, so that it is never waited out.
LONG_S = 60.0


@dataclass(frozen=True, kw_only=True)
class ToldBatches(RandomBatches):
    """Batches that tell how many updates are done when they are asked for."""

    tell: Callable[[int], object]

    def batch(self, step: int) -> Batch:
        self.tell(step)
        return super().batch(step)


def run(folder: Path, tell: Callable[[int], object] = lambda _: None, **changes: Any) -> float:
    model, options = small_model(), replace(OPTIONS, **changes)
    train(model, TextObjective(), ToldBatches(tell=tell), AVERAGED, options, folder)
    return digest(model)


def before_writing(monkeypatch: pytest.MonkeyPatch, work: Callable[[int], object]) -> None:
    write = saving.write_snapshot

    def told(folder: Path, taken: Snapshot, *rest: Any) -> Path:
        work(taken.step)
        return write(folder, taken, *rest)

    monkeypatch.setattr(saving, "write_snapshot", told)


def content(path: Path) -> dict[str, Any]:
    """Everything in a checkpoint but what a clock put there."""
    files = path.glob("*.safetensors")
    found: dict[str, Any] = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    state = json.loads((path / "state.json").read_text())
    return found | state | {"beside": {name: state["beside"][name] for name in ("sums", "count")}}


def test_a_checkpoint_holds_its_own_step_whatever_is_learnt_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_steps_later, written_at = threading.Event(), []

    def tell(step: int) -> None:
        if step == 5:
            written_at.append(checkpoints(tmp_path / "beside"))
            two_steps_later.set()

    expected = run(tmp_path / "inline", saves_in_background=False)
    before_writing(monkeypatch, lambda step: step > 3 or two_steps_later.wait(LONG_S))
    assert run(tmp_path / "beside", tell) == expected
    assert written_at == [[]]
    pairs = [checkpoints(tmp_path / name) for name in ("inline", "beside")]
    assert [path.name for path in pairs[1]] == ["step_0000003", "step_0000006"]
    assert [content(path) for path in pairs[0]] == [content(path) for path in pairs[1]]


def test_a_save_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()
    seen = []

    def work(step: int) -> None:
        seen.append((step, [path.name for path in checkpoints(tmp_path)]))
        if step == 1:
            asked.wait(0.2)

    before_writing(monkeypatch, work)
    run(tmp_path, save_every=1, total_steps=3)
    assert seen == [(1, []), (2, ["step_0000001"]), (3, ["step_0000001", "step_0000002"])]


def test_a_disk_that_fills_up_is_said_at_the_next_step_and_older_checkpoints_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file, failed = stored.save_file, threading.Event()

    def full(tensors: Any, path: Path) -> None:
        if "step_0000004" not in str(path):
            return save_file(tensors, path)
        failed.set()
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    def tell(step: int) -> None:
        steps.append(step)
        if step == 5:
            assert failed.wait(LONG_S)

    steps: list[int] = []
    monkeypatch.setattr(stored, "save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left.*room, and .* from step_0000002"):
        run(tmp_path, tell, save_every=2, total_steps=9)
    assert steps[-1] in (4, 5)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_0000002"]
    monkeypatch.setattr(stored, "save_file", save_file)
    assert run(tmp_path, save_every=2, total_steps=9) == run(tmp_path / "whole", total_steps=9)


def test_the_last_checkpoint_that_cannot_be_written_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stored, "save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*the run begins anew"):
        run(tmp_path, save_every=6)


@pytest.mark.parametrize("stop", ["signal", "error"])
def test_a_run_that_ends_early_still_finishes_the_checkpoint_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    ends = threading.Event()

    def tell(step: int) -> None:
        if step == 4:
            ends.set()
            if stop == "error":
                raise ValueError("a row is broken")
            os.kill(os.getpid(), signal.SIGTERM)

    before_writing(monkeypatch, lambda step: step > 3 or ends.wait(LONG_S))
    with pytest.raises(ValueError if stop == "error" else KeyboardInterrupt):
        run(tmp_path, tell)
    names = ["step_0000003", *(["step_0000005"] if stop == "signal" else [])]
    assert [path.name for path in checkpoints(tmp_path)] == names
    assert run(tmp_path) == run(tmp_path / "whole")


def test_a_training_leaves_no_thread_of_its_own_that_writes(tmp_path: Path) -> None:
    run(tmp_path, total_steps=1)
    assert not [one for one in threading.enumerate() if one.name.startswith("checkpoint")]
