"""The page of a fine-tuning: wrong answers among the worst, names and charts that fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fake_runs import quiz

from paligemma.eval.scored import Scored
from paligemma.tuning.report import ReportInputs, report_page
from paligemma.tuning.watching import Look


def page(after: Scored, data: str = "cards/", lr: float = 2e-4) -> str:
    figures = [{"name": "accuracy/first_half", "before": 0.0, "after": 50.0}]
    record: dict[str, Any] = {
        "recipe": {"task": "own", "model": "tiny", "data": data, "lora": None, "lr": lr},
        "rows": {"learnt": 4, "held_out": 4, "skipped": 0},
        "kept": None,
        "steps": 2,
        "figures": figures,
        "parts": [],
        "skipped": [],
    }
    metrics = [{"step": k, "loss": 1.0, "schedule": 1.0} for k in (1, 2)]
    look = Look(
        step=2, loss=0.5, headline="accuracy", is_error=False, figures={}, exact=0.0, moved=0.0
    )
    return report_page(ReportInputs(record=record, metrics=metrics, looks=[look], after=after))


def test_the_worst_examples_are_wrong_ones_and_the_best_are_others() -> None:
    shown = page(quiz(["a", "b", "c", "d"], ["a", "x", "c", "d"]))
    worst, best = shown.split("The worst examples")[1].split("The best examples")
    assert re.findall(r"accuracy \d", worst) == ["accuracy 0"]
    assert set(re.findall(r"accuracy \d", best)) == {"accuracy 1"}
    assert "The worst examples" not in page(quiz(["a", "b"], ["a", "b"]))


def test_names_and_charts_have_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dogs").mkdir()
    monkeypatch.chdir(tmp_path / "dogs")
    shown = page(quiz(["a"], ["a"]), data=".")
    assert "<h1>Fine-tuning on dogs</h1>" in shown
    assert "accuracy/<wbr>first_<wbr>half" in shown
    assert ">2e-4<" in shown  # 0.0002 lay on the name of the axis
    assert ">1e-4<" in shown
    for mark in ("loss of what is learnt", "loss of held-out rows"):
        assert mark in shown
    assert shown.count('class="bar roomy"') == 1  # a phone has no room for a bar of each
