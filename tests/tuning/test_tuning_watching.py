"""Looks at held-out rows during a run: they change nothing, keep the best and may end it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paligemma.adapt.lora import LoraConfig
from paligemma.cli import main
from paligemma.errors import ConfigError
from paligemma.tuning.finetune import finetune
from paligemma.tuning.recipe import Recipe
from paligemma.tuning.result import FinetuneRun
from paligemma.tuning.watching import Look

LORA = LoraConfig(rank=4, alpha=8, parts=("decoder", "projector"))


def taught(model: Path, data: Path, output: Path, **options: Any) -> FinetuneRun:
    stated = {"lora": LORA, "steps": 6, "batch_size": 2, "lr": 1e-3, **options}
    return finetune(str(model), data=data, output=output, progress=False, num_workers=0, **stated)


def looks(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "train" / "validation.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses(folder: Path) -> list[float]:
    lines = (folder / "train" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def test_a_watched_run_ends_bit_for_bit_as_one_that_is_not(
    drawn_model: Path, two_colours: Path, tmp_path: Path
) -> None:
    for name, every in (("watched", 2), ("alone", None)):
        taught(drawn_model, two_colours, tmp_path / name, eval_every=every, dropout=0.2)
    watched, alone = tmp_path / "watched", tmp_path / "alone"
    assert [one["step"] for one in looks(watched)] == [0, 2, 4, 6]
    assert [one["step"] for one in looks(alone)] == [0, 6]
    assert weights(watched / "adapter") == weights(alone / "adapter")
    assert losses(watched) == losses(alone)
    assert looks(watched)[-1] == looks(alone)[-1]


def test_a_look_has_the_figures_and_the_loss_and_how_far_the_model_moved(
    drawn_model: Path, two_colours: Path, tmp_path: Path
) -> None:
    run = taught(drawn_model, two_colours, tmp_path / "run", steps=40, lr=3e-3, eval_every=0.5)
    first, middle, last = looks(run.folder)
    assert (first["step"], middle["step"], last["step"]) == (0, 20, 40)
    assert first["moved"] == 0 < middle["moved"]
    assert last["loss"] < first["loss"]
    assert last["headline"] == "answer_accuracy"
    (figure,) = (one for one in run.figures if one.name == "answer_accuracy")
    assert figure.after == last["figures"]["answer_accuracy"]
    kept = sorted(path.name for path in (run.folder / "answers").iterdir())
    assert {"step_0000000.jsonl", "step_0000040.jsonl"} <= set(kept)
    assert len(kept) <= 3


@pytest.mark.parametrize("lora", [LORA, None])
@pytest.mark.usefixtures("quick_looks")
def test_the_best_look_is_what_is_kept_where_that_is_asked(
    lora: LoraConfig | None, drawn_model: Path, two_colours: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(Look, "badness", property(lambda self: abs(self.step - 4)))
    run = taught(drawn_model, two_colours, tmp_path / "run", lora=lora, eval_every=2, keep="best")
    assert [path.name for path in (run.folder / "best").iterdir()] == ["step_0000004"]
    report = json.loads((run.folder / "report.json").read_text())
    assert report["kept"] == {"step": 4, "rule": "best"}
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    kept = (run.result / name).read_bytes()
    assert kept == (run.folder / "best" / "step_0000004" / name).read_bytes()
    short = taught(drawn_model, two_colours, tmp_path / "short", lora=lora, eval_every=None)
    assert kept != (short.result / name).read_bytes()


@pytest.mark.usefixtures("quick_looks")
def test_patience_ends_a_run_and_the_same_call_does_not_go_on_with_it(
    drawn_model: Path, two_colours: Path, tmp_path: Path
) -> None:
    options = {"steps": 40, "lr": 1e-9, "eval_every": 2, "patience": 2}
    run = taught(drawn_model, two_colours, tmp_path / "run", **options)
    assert [one["step"] for one in looks(run.folder)] == [0, 2, 4, 6]
    before = weights(run.result), losses(run.folder)
    again = taught(drawn_model, two_colours, tmp_path / "run", **options)
    assert (weights(again.result), losses(run.folder)) == before
    report = json.loads((run.folder / "report.json").read_text())
    assert report["kept"] == {"step": 2, "rule": "best"}


@pytest.mark.usefixtures("quick_looks")
def test_the_command_shows_the_parts_before_and_each_look_during_a_run(
    drawn_model: Path, two_colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(
            ["train", "--data", str(two_colours), "--model", str(drawn_model), "--steps", "2",
             "--batch-size", "2", "--eval-every", "1", "--output", str(tmp_path / "run")]
        )  # fmt: skip
    assert not stopped.value.code
    said = capsys.readouterr().err
    assert "part" in said
    assert said.index("decoder.attention  adapter") < said.index("step 1: held-out")
    assert "step 2: held-out answer_accuracy" in said


@pytest.mark.parametrize(
    "options", [{"eval_every": 1.5}, {"eval_every": -1.0}, {"patience": 0}, {"keep": "newest"}]
)
def test_options_of_watching_without_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Recipe(**options)
