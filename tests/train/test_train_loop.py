"""The loop: a run that stops and goes on is the run that never stopped."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_training import OPTIM, RandomBatches, TextObjective, digest, small_model

from paligemma.batch import Batch
from paligemma.errors import CheckpointError, ConfigError
from paligemma.model import PaliGemmaModel
from paligemma.train.checkpoint import checkpoints
from paligemma.train.loop import METRICS_FILE, LoopOptions, train

OPTIONS = LoopOptions(total_steps=6, log_every=3, save_every=3, num_workers=0, progress=False)


class PowerCutError(Exception):
    """Stands for a kill: nothing of the loop's own gets to run."""


@dataclass(frozen=True, kw_only=True)
class FailingSource:
    """Batches until one step, at which something happens instead."""

    source: RandomBatches
    step: int
    signal: int | None = None

    def batch(self, step: int) -> Batch:
        if step == self.step:
            if self.signal is None:
                raise PowerCutError
            os.kill(os.getpid(), self.signal)
        return self.source.batch(step)


def run(folder: Path, source: Any = None, **changes: Any) -> tuple[PaliGemmaModel, dict[str, Any]]:
    """Train a fresh small model into `folder`, from its newest checkpoint if it has one."""
    options = replace(OPTIONS, **changes)
    model = small_model()
    last = train(model, TextObjective(), source or RandomBatches(), OPTIM, options, folder)
    return model, last


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Lines without what a clock put there."""
    lines = map(json.loads, (folder / METRICS_FILE).read_text().splitlines())
    clocked = {"seconds", "steps_per_s", "data_s", "time", "rss_mb"}
    return [{k: v for k, v in line.items() if k not in clocked} for line in lines]


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[float, list[dict[str, Any]], Path]:
    """Digest and metrics of six steps in one go."""
    folder = tmp_path_factory.mktemp("whole")
    model, _ = run(folder)
    return digest(model), metrics(folder), folder


def test_the_model_learns_and_says_so_every_three_steps(whole) -> None:
    first, last = whole[1]
    assert (first["step"], last["step"]) == (3, 6)
    assert last["loss"] < first["loss"]
    assert last["text"] < first["text"]
    assert {"head", "grad_norm", "param_norm", "schedule"} <= last.keys()
    assert digest(small_model()) != whole[0]
    assert names(whole[2]) == ["step_0000003", "step_0000006"]


def test_a_run_killed_between_checkpoints_ends_as_if_nothing_had_happened(
    whole, tmp_path: Path
) -> None:
    with pytest.raises(PowerCutError):
        run(tmp_path, FailingSource(source=RandomBatches(), step=5))
    assert names(tmp_path) == ["step_0000003"]
    model, _ = run(tmp_path)
    assert digest(model) == whole[0]
    assert metrics(tmp_path) == whole[1]


def test_metrics_of_repeated_steps_and_a_line_cut_in_half_are_dropped(
    whole, tmp_path: Path
) -> None:
    with pytest.raises(PowerCutError):
        # Lines at 1..5, the newest checkpoint at 3.
        run(tmp_path, FailingSource(source=RandomBatches(), step=5), log_every=1)
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 6, "lo')
    run(tmp_path, log_every=1)
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    mean = sum(line["loss"] for line in lines[3:]) / 3
    assert mean == pytest.approx(whole[1][1]["loss"], abs=2e-5)


def test_a_line_of_metrics_averages_the_steps_before_and_after_a_cut(whole, tmp_path: Path) -> None:
    with pytest.raises(PowerCutError):
        # A line every five steps, a checkpoint every three: the cut falls into a line.
        run(tmp_path / "cut", FailingSource(source=RandomBatches(), step=4), log_every=5)
    run(tmp_path / "cut", log_every=5)
    run(tmp_path / "whole", log_every=5)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_step_writes_a_checkpoint_and_gives_the_handlers_back(
    whole, tmp_path: Path, number: int
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, FailingSource(source=RandomBatches(), step=3, signal=number))
    assert names(tmp_path) == ["step_0000003", "step_0000004"]
    assert signal.getsignal(number) is before
    model, _ = run(tmp_path)
    assert digest(model) == whole[0]


def test_a_signal_that_the_caller_ignores_does_not_end_a_training(whole, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        model, _ = run(
            tmp_path, FailingSource(source=RandomBatches(), step=3, signal=signal.SIGHUP)
        )
    finally:
        signal.signal(signal.SIGHUP, before)
    assert digest(model) == whole[0]


def test_metrics_are_not_written_through_a_link(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / METRICS_FILE).symlink_to(precious)
    with pytest.raises(ConfigError, match="is a link to another file; move it away"):
        run(tmp_path / "run")
    assert precious.read_text() == "mine"


def test_handlers_are_given_back_when_the_data_fails(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(PowerCutError):
        run(tmp_path, FailingSource(source=RandomBatches(), step=0))
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_finished_run_returns_its_last_line_and_trains_no_further(whole) -> None:
    digest_of_six, lines, folder = whole
    model, last = run(folder)
    assert digest(model) == digest_of_six
    assert last["loss"] == lines[-1]["loss"]
    assert not model.training


def test_a_run_may_stop_before_its_schedule_does_and_go_on_later(whole, tmp_path: Path) -> None:
    _, last = run(tmp_path, stop_at=4)
    assert last["step"] == 4
    assert names(tmp_path) == ["step_0000003", "step_0000004"]
    model, _ = run(tmp_path)
    assert digest(model) == whole[0]


def test_batches_made_by_another_process_train_the_same_model(whole, tmp_path: Path) -> None:
    model, _ = run(tmp_path, num_workers=1, total_steps=6)
    assert digest(model) == whole[0]


@pytest.mark.parametrize(
    ("optim", "total_steps", "changed"),
    [(replace(OPTIM, lr=2e-3), 6, "optim"), (OPTIM, 9, "total_steps")],
)
def test_a_run_with_another_configuration_is_refused(
    whole, optim, total_steps: int, changed: str
) -> None:
    model = small_model()
    options = replace(OPTIONS, total_steps=total_steps)
    with pytest.raises(CheckpointError, match=f"but {changed} changed; use another output folder"):
        train(model, TextObjective(), RandomBatches(), optim, options, whole[2])
    assert digest(model) == digest(small_model())


def test_two_trainings_at_once_in_one_folder_are_refused(whole, tmp_path: Path) -> None:
    class Second(RandomBatches):
        """Begins another training in the middle of the first."""

        def batch(self, step: int) -> Batch:
            if step == 2:
                with pytest.raises(ConfigError, match="another process is writing to"):
                    run(tmp_path)
            return super().batch(step)

    model, _ = run(tmp_path, Second())
    assert (digest(model), metrics(tmp_path)) == whole[:2]


def test_a_run_with_other_data_is_refused(tmp_path: Path) -> None:
    model = small_model()
    options = replace(OPTIONS, total_steps=1)
    arguments = (model, TextObjective(), RandomBatches(), OPTIM, options, tmp_path)
    train(*arguments, settings={"seed": 1, "stage": {"scenes": (1, 2)}})
    train(*arguments, settings={"seed": 1, "stage": {"scenes": (1, 2)}})
    with pytest.raises(CheckpointError, match="but seed changed"):
        train(*arguments, settings={"seed": 2, "stage": {"scenes": (1, 2)}})


def test_training_leaves_torch_s_random_numbers_to_the_caller(tmp_path: Path) -> None:
    model = small_model()
    objective = TextObjective()
    torch.manual_seed(7)
    options = replace(OPTIONS, total_steps=1)
    train(model, objective, RandomBatches(), OPTIM, options, tmp_path)
    first = digest(model)
    model, objective = small_model(), TextObjective()
    torch.manual_seed(8)
    train(model, objective, RandomBatches(), OPTIM, options, tmp_path / "again")
    assert digest(model) == first
