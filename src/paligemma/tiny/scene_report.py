"""From scored answers to figures with intervals; as a table, as JSON, as files."""

from __future__ import annotations

import json
import math
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paligemma.eval.resampling import bounds, drawn_values, unit_of
from paligemma.example import Example, Prediction
from paligemma.metrics.interval import NUM_RESAMPLES
from paligemma.metrics.measure import Measure
from paligemma.outputs.export import save_png
from paligemma.tasks.scenes.scores import KINDS, score_scenes
from paligemma.tiny.contact_sheet import Sample, contact_sheet
from paligemma.whole_file import write_whole

# What each headline is called in words.
HEADLINES: dict[tuple[str, str], str] = {
    ("detect", "ap50"): "detection AP50",
    ("segment", "miou"): "segmentation mIoU",
    ("answer", "accuracy"): "question answering accuracy",
    ("ocr", "cer"): "reading character error rate",
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number.

    Attributes:
        task: one of `paligemma.tasks.scenes.scores.KINDS`.
        metric: its name within the task.
        slice: the label or kind it is limited to; "" for all.
        value: the figure; error rates are better low, all others high.
        low: bound of the 95 % bootstrap interval over pictures; `high` is the other.
        num: examples it rests on; objects for average precision.
    """

    task: str
    metric: str
    slice: str = ""
    value: float
    low: float
    high: float
    num: int

    @property
    def is_headline(self) -> bool:
        return not self.slice and (self.task, self.metric) in HEADLINES

    def to_json(self) -> dict[str, Any]:
        """`{"value", "low", "high", "num"}`; null where a number is undefined."""
        rounded = {
            name: None if math.isnan(number) else round(number, 5)
            for name, number in (("value", self.value), ("low", self.low), ("high", self.high))
        }
        return {**rounded, "num": self.num}


@dataclass(frozen=True, kw_only=True, eq=False)
class SceneReport:
    """Everything a run measured.

    Attributes:
        model: what was measured.
        settings: limit, seed and size of the pictures; draws the same benchmark again.
        figures: all of them, headlines and slices.
        samples: the answers about the first pictures.
        seconds: wall time.
    """

    model: str
    settings: dict[str, int]
    figures: tuple[Figure, ...]
    samples: tuple[Sample, ...] = field(default=(), repr=False)
    seconds: float

    def figure(self, task: str, metric: str, group: str = "") -> Figure:
        """One figure; KeyError where it was not measured."""
        for one in self.figures:
            if (one.task, one.metric, one.slice) == (task, metric, group):
                return one
        raise KeyError((task, metric, group))

    def to_json(self) -> dict[str, Any]:
        """`headline` by name, then `tasks` -> task -> metric -> figure, with slices under `by`."""
        tasks: dict[str, dict[str, Any]] = {}
        for one in self.figures:
            metrics = tasks.setdefault(one.task, {})
            if one.slice:
                metrics[one.metric].setdefault("by", {})[one.slice] = one.to_json()
            else:
                metrics[one.metric] = one.to_json()
        headline = {
            f"{one.task}_{one.metric}": one.to_json()["value"]
            for one in self.figures
            if one.is_headline
        }
        return {
            "benchmark": "scenes",
            "model": self.model,
            **self.settings,
            "headline": headline,
            "tasks": tasks,
            "seconds": round(self.seconds, 1),
            "python": platform.python_version(),
        }


def make_report(
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    samples: Sequence[Sample] = (),
    *,
    model: str,
    settings: dict[str, int],
    seconds: float,
) -> SceneReport:
    """Figures of all tasks that were asked, task by task."""
    measures = score_scenes(examples, predictions)
    intervals = _intervals(measures, unit_of(examples))
    objects = _true_objects(examples)
    figures = []
    for one in sorted(measures, key=lambda one: KINDS.index(_task_of(one))):
        task = _task_of(one)
        metric, _, group = one.name.removeprefix(f"{task}_").partition("/")
        low, high = intervals.get(one.name, (math.nan, math.nan))
        figures.append(
            Figure(
                task=task,
                metric=metric,
                slice=group,
                value=one.value,
                low=low,
                high=high,
                num=objects[group] if task == "detect" else one.num_used or one.num,
            )
        )
    return SceneReport(
        model=model,
        settings=settings,
        figures=tuple(figures),
        samples=tuple(samples),
        seconds=seconds,
    )


def _task_of(measure: Measure) -> str:
    """The kind whose figure this is; "caption_region" also begins with "caption"."""
    return max((kind for kind in KINDS if measure.name.startswith(f"{kind}_")), key=len)


def _intervals(measures: Sequence[Measure], pictures: np.ndarray) -> dict[str, tuple[float, float]]:
    """95 % bounds of each figure over resampled pictures: the same on every machine."""
    # The mean over ten thresholds would make the intervals ten times as slow.
    statistics = {one.name: one.statistic for one in measures if one.name != "detect_ap"}
    values = drawn_values(statistics, pictures, dict.fromkeys(statistics, NUM_RESAMPLES))
    return {name: bounds(found) for name, found in values.items()}


def _true_objects(examples: Sequence[Example]) -> Counter[str]:
    """Objects to detect of each label, and of all under ""."""
    labels = [
        one["label"]
        for example in examples
        if example.references["task"] == "detect"
        for one in example.references["objects"]
    ]
    return Counter(labels) + Counter({"": len(labels)})


def to_table(report: SceneReport) -> str:
    """The report for a terminal: headlines first, then every task with its slices."""
    settings = ", ".join(f"{name} {value}" for name, value in report.settings.items())
    lines = [f"{report.model or 'model'} on scenes: {settings}, {report.seconds:.0f} s", ""]
    width = max(map(len, HEADLINES.values()))
    for one in report.figures:
        if one.is_headline:
            lines.append(f"{HEADLINES[one.task, one.metric]:{width}}  {_numbers(one)}")
    lines.append("")
    for one in report.figures:
        name = f"  {one.slice}" if one.slice else f"{one.task} {one.metric}"
        lines.append(f"{name:{width}}  {_numbers(one)}")
    return "\n".join([*lines, "", "in brackets: 95 % bootstrap interval over pictures"])


def _numbers(one: Figure) -> str:
    """Value, interval and number of examples; a dash where nothing is defined."""
    value = "-" if math.isnan(one.value) else f"{one.value:.3f}"
    interval = "" if math.isnan(one.low) else f"[{one.low:.3f}, {one.high:.3f}]"
    return f"{value:>6}  {interval:16}  n = {one.num}"


def write_files(report: SceneReport, folder: Path) -> None:
    """Write report.json and scenes.png beside the run; each appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "report.json", [json.dumps(report.to_json(), indent=1) + "\n"])
    if report.samples:
        save_png(contact_sheet(report.samples), folder / "scenes.png")
