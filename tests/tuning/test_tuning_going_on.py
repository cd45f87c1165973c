"""Going on with a run, extending one, and starting from its weights: three defined things."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paligemma.adapt.lora import LoraConfig
from paligemma.cli import main
from paligemma.errors import CheckpointError, ConfigError
from paligemma.tuning.finetune import finetune
from paligemma.tuning.result import FinetuneRun

pytestmark = pytest.mark.usefixtures("quick_looks")
LORA = LoraConfig(rank=4, alpha=8, parts=("projector",))


def taught(model: Path, data: Path, output: Path, **options: Any) -> FinetuneRun:
    stated = {"lora": LORA, "steps": 2, "batch_size": 2, "lr": 1e-2, "eval_every": None, **options}
    return finetune(str(model), data=data, output=output, progress=False, num_workers=0, **stated)


def command(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["train", *map(str, words), "--quiet"])
    return int(stopped.value.code or 0)


def steps(run: FinetuneRun) -> list[int]:
    return [line["step"] for line in run.metrics]


def weights(folder: Path) -> bytes:
    (file,) = folder.glob("*model.safetensors")
    return file.read_bytes()


def test_resume_needs_a_run_and_then_does_what_the_same_call_does(
    drawn_model: Path, two_colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--data", two_colours, "--model", drawn_model, "--output", tmp_path / "run")
    words = (*words, "--steps", 1, "--batch-size", 1, "--rank", 2)
    for how in ("resume", "extend"):
        assert command(*words, f"--{how}") == 2
        assert f"--{how} goes on with a run, and none began in" in capsys.readouterr().err
    assert command(*words, "--save", "inline") == 0
    ended = "nothing was left to train: the run had ended"
    assert ended not in capsys.readouterr().out
    before = weights(tmp_path / "run" / "adapter")
    assert command(*words, "--resume") == 0
    assert ended in capsys.readouterr().out
    assert weights(tmp_path / "run" / "adapter") == before


def test_a_finished_run_becomes_a_longer_one_on_its_longer_schedule(
    drawn_model: Path, two_colours: Path, tmp_path: Path
) -> None:
    run = taught(drawn_model, two_colours, tmp_path / "run")
    first = weights(run.result)
    longer = taught(drawn_model, two_colours, tmp_path / "run", steps=4, extend=True)
    assert steps(longer) == [1, 2, 3, 4]
    assert weights(run.folder / "adapter_0000002") == first != weights(longer.result)
    whole = taught(drawn_model, two_colours, tmp_path / "whole", steps=4)
    rates = [[line["schedule"] for line in one.metrics] for one in (longer, whole)]
    assert rates[0][2:] == rates[1][2:]
    # The moments went on: a run that begins with the adapter alone ends elsewhere.
    fresh = taught(
        drawn_model, two_colours, tmp_path / "fresh", steps=2, lora=True,
        init_from=run.folder / "adapter_0000002",
    )  # fmt: skip
    assert weights(fresh.result) != weights(longer.result)
    again = taught(drawn_model, two_colours, tmp_path / "run", steps=4)
    assert (steps(again), weights(again.result)) == (steps(longer), weights(longer.result))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 1}, "more updates than its 2"),
        ({"steps": 4, "lr": 1e-3}, "in its length alone.*lr was 0.01"),
    ],
)
def test_a_run_is_extended_in_nothing_but_length(
    options: dict[str, Any], words: str, drawn_model: Path, two_colours: Path, tmp_path: Path
) -> None:
    run = taught(drawn_model, two_colours, tmp_path / "run")
    before = weights(run.result)
    with pytest.raises(CheckpointError, match=words):
        taught(drawn_model, two_colours, tmp_path / "run", extend=True, **options)
    assert weights(run.result) == before
    (run.folder / "report.json").unlink()
    with pytest.raises(CheckpointError, match="has not ended"):
        taught(drawn_model, two_colours, tmp_path / "run", extend=True, steps=4)


def test_a_run_begins_with_the_weights_of_another_and_its_figures_before_are_those(
    drawn_model: Path, two_colours: Path, tmp_path: Path
) -> None:
    first = taught(drawn_model, two_colours, tmp_path / "a", steps=3)
    second = taught(
        drawn_model, two_colours, tmp_path / "b", steps=1, lora=True, init_from=first.folder
    )
    assert steps(second) == [1]

    def looks(run: FinetuneRun) -> list[dict[str, Any]]:
        lines = (run.folder / "train" / "validation.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    assert looks(second)[0]["loss"] == looks(first)[-1]["loss"]
    config = json.loads((second.result / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    recipe = json.loads((second.folder / "recipe.json").read_text())
    assert recipe["init_from"] == str(first.folder)


def test_a_whole_model_goes_on_from_a_whole_model(
    drawn_model: Path, two_colours: Path, tmp_path: Path
) -> None:
    first = taught(drawn_model, two_colours, tmp_path / "a", lora=False, lr=1e-3)
    second = taught(
        drawn_model, two_colours, tmp_path / "b", lora=False, steps=1, lr=1e-9,
        init_from=first.folder,
    )  # fmt: skip
    lines = [
        json.loads(line)["loss"]
        for run in (first, second)
        for line in (run.folder / "train" / "validation.jsonl").read_text().splitlines()
    ]
    assert lines[1] == lines[2]
    with pytest.raises(ConfigError, match="holds none; name a model with --model"):
        taught(drawn_model, two_colours, tmp_path / "c", lora=True, init_from=first.folder)


def test_an_adapter_that_is_begun_with_keeps_its_shape(
    drawn_model: Path, two_colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = taught(drawn_model, two_colours, tmp_path / "a", steps=1)
    words = ("--data", two_colours, "--model", drawn_model, "--init-from", first.folder)
    words = (*words, "--output", tmp_path / "b", "--steps", 1)
    assert command(*words, "--rank", 8) == 2
    assert "keeps its shape; leave --rank out" in capsys.readouterr().err
    assert command(*words, "--full") == 2
    assert "merge it first" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="keeps its shape"):
        taught(drawn_model, two_colours, tmp_path / "b", init_from=first.folder)
