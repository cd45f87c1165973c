"""Metrics shown elsewhere: every line, and an extra named where it is missing."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from paligemma.cli import main
from paligemma.tuning.finetune import finetune


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What each of the three was given; stand-ins with their names and methods."""
    calls: list[tuple[Any, ...]] = []
    for name in ("trackio", "wandb"):
        fake: Any = types.ModuleType(name)
        fake.init = lambda of=name, **o: calls.append((of, "init", o["project"], o["name"]))
        fake.log = lambda numbers, step, of=name: calls.append((of, step, numbers))
        fake.finish = lambda of=name: calls.append((of, "finish"))
        monkeypatch.setitem(sys.modules, name, fake)

    class SummaryWriter:
        def __init__(self, folder: Path) -> None:
            calls.append(("tensorboard", folder.name))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append(("tensorboard", step, {name: value}))

        def close(self) -> None:
            calls.append(("tensorboard", "finish"))

    board: Any = types.ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    return calls


@pytest.mark.usefixtures("quick_looks")
def test_every_line_is_shown_in_all_that_are_named(
    drawn_model: Path, two_colours: Path, tmp_path: Path, shown: list[tuple[Any, ...]]
) -> None:
    names = ("tensorboard", "trackio", "wandb")
    run = finetune(
        str(drawn_model), data=two_colours, output=tmp_path / "run", progress=False, num_workers=0,
        steps=2, batch_size=2, log_to=names,
    )  # fmt: skip
    for name in names:
        own = [one for one in shown if one[0] == name]
        assert own[-1] == (name, "finish")
        steps = [one for one in own if isinstance(one[1], int)]
        losses = [one[2]["loss"] for one in steps if "loss" in one[2]]
        assert losses == [line["loss"] for line in run.metrics]
        assert any("held_out/loss" in one[2] for one in steps)


def test_a_missing_package_is_named_with_its_extra_before_anything_is_read(
    two_colours: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "trackio", None)
    for name, words in (("trackio", "paligemma[trackio]"), ("mlflow", "one of tensorboard")):
        with pytest.raises(SystemExit) as stopped:
            main(
                ["train", "--data", str(two_colours), "--output", str(tmp_path / "run"),
                 "--log-to", name]
            )  # fmt: skip
        assert stopped.value.code == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
