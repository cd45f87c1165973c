"""From scored answers to figures with intervals; as a table, as JSON, as files."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paligemma.eval.run_folder import write_whole
from paligemma.metrics.grounding import ImageBoxes, Matches, match_detections
from paligemma.metrics.interval import bootstrap_interval, ratio
from paligemma.outputs.types import Detections
from paligemma.scenes import Scene, SceneExample
from paligemma.tasks.scene_scores import KINDS, METRICS, SceneOutcome

Statistic = Callable[[np.ndarray], float]

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
        task: one of `paligemma.tasks.scene_scores.KINDS`.
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
class Sample:
    """One prompt about a picture with the model's answer, to be drawn.

    Attributes:
        scene: the picture.
        example: the prompt.
        text: what the model wrote.
        detections: its objects; None for kinds that answer in words.
    """

    scene: Scene
    example: SceneExample
    text: str
    detections: Detections | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class SceneReport:
    """Everything a run measured.

    Attributes:
        model: what was measured.
        settings: limit, seed and size of the pictures; draws the same benchmark again.
        figures: all of them, headlines and slices.
        outcomes: every scored answer.
        samples: the answers about the first pictures.
        seconds: wall time.
    """

    model: str
    settings: dict[str, int]
    figures: tuple[Figure, ...]
    outcomes: tuple[SceneOutcome, ...]
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
    outcomes: Sequence[SceneOutcome],
    samples: Sequence[Sample] = (),
    *,
    model: str,
    settings: dict[str, int],
    seconds: float,
) -> SceneReport:
    """Figures of all tasks that have outcomes."""
    figures: list[Figure] = []
    for task in KINDS:
        own = [one for one in outcomes if one.task == task]
        if own:
            figures += _detection_figures(own) if task == "detect" else _ratio_figures(task, own)
    return SceneReport(
        model=model,
        settings=settings,
        figures=tuple(figures),
        outcomes=tuple(outcomes),
        samples=tuple(samples),
        seconds=seconds,
    )


def _figure(
    task: str, metric: str, statistic: Statistic, num: int, size: int, **more: Any
) -> Figure:
    """A figure over `num` pictures, resting on `size` examples, with its interval."""
    low, high = bootstrap_interval(statistic, num)
    value = statistic(np.ones(num, np.int64))
    return Figure(task=task, metric=metric, value=value, low=low, high=high, num=size, **more)


def _ratio_figures(task: str, outcomes: Sequence[SceneOutcome]) -> list[Figure]:
    """The task's score and its slices; for "ocr" also the share read without a fault."""
    metric = METRICS[task]
    figures = [_ratio_figure(task, metric, outcomes)]
    if task == "ocr":
        right = np.array([one.part == 0 for one in outcomes], np.float64)
        statistic = ratio(right, np.ones(len(outcomes)))
        figures.append(_figure(task, "exact_match", statistic, len(outcomes), len(outcomes)))
    slices = sorted({one.slice for one in outcomes})
    if len(slices) > 1:
        for name in slices:
            own = [one for one in outcomes if one.slice == name]
            figures.append(_ratio_figure(task, metric, own, name))
    return figures


def _ratio_figure(
    task: str, metric: str, outcomes: Sequence[SceneOutcome], group: str = ""
) -> Figure:
    parts = np.array([one.part for one in outcomes])
    totals = np.array([one.total for one in outcomes])
    return _figure(task, metric, ratio(parts, totals), len(parts), len(parts), slice=group)


def _detection_figures(outcomes: Sequence[SceneOutcome]) -> list[Figure]:
    """Average precision: COCO's mean over labels, one ranking of all labels, and each label."""
    images = [one.boxes for one in outcomes if isinstance(one.boxes, ImageBoxes)]
    num = len(images)
    matches = match_detections(images)
    objects = int(matches.pooled.num_true.sum())
    half = matches.at(0.5)

    def recall(weights: np.ndarray) -> float:
        hits = float(weights[half.pooled.image] @ half.pooled.is_hit[:, 0])
        return hits / float(weights @ half.pooled.num_true)

    def precision(weights: np.ndarray) -> float:
        found = float(weights[half.pooled.image].sum())
        hits = float(weights[half.pooled.image] @ half.pooled.is_hit[:, 0])
        return hits / found if found else float("nan")

    statistics: dict[str, Statistic] = {
        "ap50": lambda w: float(half.mean_average_precision(w)[0]),
        "ap50_pooled": lambda w: float(half.pooled.average_precision(w)[0]),
        "recall50": recall,
        "precision50": precision,
    }
    figures = [_figure("detect", name, one, num, objects) for name, one in statistics.items()]
    slices = [_label_figure(name, half.by_label[name], num) for name in half.true_labels]
    # The mean over ten thresholds would make the intervals ten times as slow.
    nan, ap = float("nan"), float(matches.mean_average_precision().mean())
    strict = Figure(task="detect", metric="ap", value=ap, low=nan, high=nan, num=objects)
    return [figures[0], *slices, strict, *figures[1:]]


def _label_figure(name: str, matches: Matches, num: int) -> Figure:
    """AP50 of one label."""

    def statistic(weights: np.ndarray) -> float:
        if not weights @ matches.num_true:
            return float("nan")
        return float(matches.average_precision(weights)[0])

    return _figure("detect", "ap50", statistic, num, int(matches.num_true.sum()), slice=name)


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
    from paligemma.eval.contact_sheet import contact_sheet
    from paligemma.outputs.export import save_png

    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "report.json", [json.dumps(report.to_json(), indent=1) + "\n"])
    if report.samples:
        save_png(contact_sheet(report.samples), folder / "scenes.png")
