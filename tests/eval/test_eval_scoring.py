"""Slices, units and figures of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from paligemma.errors import DataError
from paligemma.eval.scoring import limited, over_units, score_run, scores_to_json
from paligemma.metrics.measure import Measure, mean_measure
from paligemma.tasks.task import Asking, Example, Prediction, Task


def _score(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    right = [
        float(one.text == example.references)
        for example, one in zip(examples, predictions, strict=True)
    ]
    is_long = [len(one.references) > 1 for one in examples]
    return [mean_measure("accuracy", right), mean_measure("accuracy/long", right, is_long)]


TASK = Task(
    name="toy",
    title="Toy",
    family="answers",
    splits=("test",),
    headline="accuracy",
    asking=Asking(text_len=8, max_new_tokens=4),
    files=(),
    read=lambda data, split: iter(()),
    score=_score,
)


def _example(name: str, reference: str, unit: str | None = None, **slices: str) -> Example:
    return Example(id=name, prefix="", pictures=(), references=reference, slices=slices, unit=unit)


EXAMPLES = [
    _example("0", "a", kind="x", length="short", only="one"),
    _example("1", "a", kind="y", length="short", only="one"),
    _example("2", "ab", kind="y", length="long", only="one"),
    _example("3", "ab", length="long", only="one"),
]
PREDICTIONS = [Prediction(id=str(k), text="a") for k in range(4)]


def test_every_slice_gets_the_headline_over_its_own_examples() -> None:
    measures = {one.name: one for one in score_run(TASK, EXAMPLES, PREDICTIONS)}
    # "long" is the task's own figure, and "only" breaks nothing down.
    assert {name: (one.value, one.num_used) for name, one in measures.items()} == {
        "accuracy": (0.5, 4),
        "accuracy/long": (0.0, 2),
        "accuracy/kind=x": (1.0, 1),
        "accuracy/kind=y": (0.5, 2),
        "accuracy/length=short": (1.0, 2),
    }
    parts = measures["accuracy/kind=y"].per_example
    assert parts is not None
    assert parts.tolist()[1:3] == [1.0, 0.0]
    assert np.isnan(parts[[0, 3]]).all()


def test_examples_of_one_unit_are_resampled_together() -> None:
    # Ten pairs, each right or wrong as a whole: as sure as ten examples, not as twenty.
    pairs = [_example(str(k), "a" if k < 10 else "b", unit=str(k // 2)) for k in range(20)]
    measure = mean_measure("accuracy", [1.0] * 10 + [0.0] * 10)
    single = mean_measure("accuracy", [1.0] * 5 + [0.0] * 5)
    assert over_units(measure, pairs).value == measure.value == 0.5
    assert over_units(measure, pairs).interval() == single.interval()
    (row, _), plain = scores_to_json([measure, measure], pairs), measure.interval()
    assert row["low"] < plain[0] < plain[1] < row["high"]


def test_a_slice_is_undefined_where_the_metric_refuses_its_examples() -> None:
    def refusing(weights: np.ndarray) -> float:
        if not weights[0]:
            raise DataError("needs the first")
        return 1.0

    measure = Measure(name="m", statistic=refusing, num=2)
    for members, value in (([True, False], 1.0), ([False, True], None), ([False, False], None)):
        (row,) = scores_to_json([limited(measure, "m/x", np.array(members))], EXAMPLES[:2])
        assert row["value"] == value


def test_an_example_named_like_a_unit_stays_its_own() -> None:
    mixed = [_example("p", "a"), _example("q", "a", unit="p"), _example("r", "a", unit="p")]
    assert over_units(mean_measure("m", [1, 2, 3]), mixed).num == 2


def test_figures_are_json_with_null_where_undefined() -> None:
    undefined = Measure(name="m", statistic=lambda w: float("nan"), num=4, is_error=True)
    (row,) = json.loads(json.dumps(scores_to_json([undefined], EXAMPLES), allow_nan=False))
    assert row == {
        "name": "m",
        "value": None,
        "low": None,
        "high": None,
        "num": 4,
        "scale": 100.0,
        "is_error": True,
    }


def test_predictions_in_another_order_are_refused() -> None:
    with pytest.raises(DataError, match="got 4 for 4 examples"):
        score_run(TASK, EXAMPLES, PREDICTIONS[::-1])
    with pytest.raises(DataError, match="got 0 for 0"):
        score_run(TASK, [], [])
