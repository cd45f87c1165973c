"""Replay: a model's own answers from before are learnt beside the rows, and measured at the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paligemma.adapt.lora import LoraConfig
from paligemma.errors import ConfigError, DataError
from paligemma.example import Example
from paligemma.tuning import replay as module
from paligemma.tuning.finetune import finetune
from paligemma.tuning.recipe import Recipe

LORA = LoraConfig(rank=4, alpha=8, parts=("projector",))


def teach(model: Path, data: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def texts(task: object, asked: object, rows: list[Example]) -> list[str]:
        return ["a blue sign" if one.prefix == "caption en" else "AB" for one in rows]

    monkeypatch.setattr(module, "_texts", texts)
    return finetune(
        str(model), data=data, output=output, progress=False, num_workers=0, lora=LORA, steps=3,
        batch_size=4, replay=0.5, eval_every=None,
    ).folder  # fmt: skip


@pytest.mark.usefixtures("quick_looks")
def test_answers_from_before_are_learnt_and_the_share_that_is_kept_is_reported(
    drawn_model: Path, two_colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = teach(drawn_model, two_colours, tmp_path / "run", monkeypatch)
    rows = [json.loads(line) for line in (folder / "replay.jsonl").read_text().splitlines()]
    assert [row["prefix"] for row in rows] == ["caption en", "ocr"] * 2
    assert {row["suffix"] for row in rows} == {"a blue sign", "AB"}
    report = json.loads((folder / "report.json").read_text())
    assert report["base_tasks"] == [{"name": "ocr: answers kept", "before": 100.0, "after": 100.0}]
    page = (folder / "report.html").read_text()
    assert "Base tasks" in page
    again = teach(drawn_model, two_colours, tmp_path / "again", monkeypatch)
    name = "adapter/adapter_model.safetensors"
    assert (folder / name).read_bytes() == (again / name).read_bytes()


def test_a_model_that_answers_nothing_has_nothing_to_replay(
    drawn_model: Path, two_colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Example(id="a", prefix="x", pictures=(), references=None)
    monkeypatch.setattr(module, "_texts", lambda task, asked, rows: ["" for _ in rows])
    with pytest.raises(DataError, match="leave --replay out"):
        module.replay_of(None, None, [row], tmp_path)  # type: ignore[arg-type]


def test_a_share_is_less_than_the_whole() -> None:
    with pytest.raises(ConfigError, match="replay"):
        Recipe(replay=1.0)
    assert Recipe(epochs=1, batch_size=10, replay=0.5).num_steps(100) == 20
