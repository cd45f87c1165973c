"""Figures beside published ones: which are comparable, how sure ours are, what the table says."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import BOXES, QUIZ, answers, boxes, config, found, questions, quiz, write_run

from paligemma.config import release_config, release_of
from paligemma.errors import DataError
from paligemma.eval import resampling
from paligemma.eval.example_scores import example_scores, worst
from paligemma.eval.report import identity_of, ids_hash, make_report, to_table
from paligemma.eval.resampling import resampled_values, unit_of
from paligemma.eval.scored import reference_words, score_matched, score_run
from paligemma.example import Example, Prediction
from paligemma.metrics.interval import bounds, resamples
from paligemma.metrics.measure import Measure
from paligemma.tasks.catalog import find_task
from paligemma.tasks.published import PublishedScore, published

HUB_ID = "google/paligemma-3b-ft-vqav2-448"


def figure(**changes: Any) -> PublishedScore:
    known: dict[str, Any] = {
        "measure": "accuracy",
        "value": 70.0,
        "std": None,
        "model": "pt-448 transfer",
        "family": "PaliGemma",
        "size": "3B",
        "resolution": 448,
        "source": "table 1",
        "split": "val",
        "is_test_server": False,
        "kind": "transfer",
    }
    return PublishedScore(**(known | changes))


def says(*figures: PublishedScore) -> Any:
    """Published figures that all belong to our val split, but for test servers."""

    def published(task: Any, *, our_split: str | None = None) -> list[PublishedScore]:
        if our_split is None:
            return list(figures)
        return [one for one in figures if not one.is_test_server and our_split == "val"]

    return published


def test_the_published_figure_of_the_same_size_and_resolution_is_compared() -> None:
    scored = quiz(["yes", "no", "a", "b"], ["yes", "no", "a", "x"], model=HUB_ID)
    others = [figure(resolution=224), figure(size="10B"), figure(family="PaliGemma 2")]
    report = make_report(scored, published=says(*others, figure(value=70.0)))
    assert report.headline.value == 75.0
    assert [one.resolution for one in report.headline.published] == [448]
    assert report.headline.difference == 5.0
    assert report.headline.holds_published is True


def test_a_test_server_figure_is_shown_apart_and_never_subtracted() -> None:
    scored = quiz(["a", "b"], ["a", "x"], model=HUB_ID)
    server = figure(value=86.2, is_test_server=True, split="test-std")
    report = make_report(scored, published=says(server))
    assert report.headline.difference is None
    assert report.elsewhere == (server,)
    table = to_table(report)
    assert "not comparable, from the test server: accuracy 86.2 (test-std, table 1)" in table
    assert "nothing comparable was published for PaliGemma 3B at 448 px" in table


def test_another_split_than_the_published_one_is_not_compared() -> None:
    scored = quiz(["a", "b"], ["a", "x"], model=HUB_ID, split="test")
    assert make_report(scored, published=says(figure())).headline.published == ()


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("google/paligemma-3b-ft-docvqa-896", {}, "PaliGemma 3B at 896 px"),
        ("google/paligemma2-10b-pt-448", {}, "PaliGemma 2 10B at 448 px"),
        # Another input size than the name's is what was really asked.
        ("google/paligemma2-3b-pt-224", {"image_size_px": 448}, "PaliGemma 2 3B at 448 px"),
        (
            "./my-finetune",
            {"family": "PaliGemma 2", "size": "3B", "image_size_px": 224},
            "PaliGemma 2 3B at 224 px",
        ),
        ("./my-finetune", {"image_size_px": 224}, "a model of no published size"),
    ],
)
def test_a_model_is_known_by_its_name_or_by_what_the_run_noted(
    name: str, settings: dict[str, Any], said: str
) -> None:
    assert str(identity_of(config(name, settings=settings))) == said


def test_slices_have_their_own_figures_and_intervals() -> None:
    truth = ["yes"] * 10 + ["two"] * 30
    said = ["yes"] * 5 + ["no"] * 5 + ["two"] * 30
    scored = quiz(truth, said, slices=["yes/no"] * 10 + ["number"] * 30)
    report = make_report(scored, published=says())
    by = {one.group: (one.value, one.num) for one in report.slices}
    assert by == {"number": (100.0, 30), "yes/no": (50.0, 10)}
    yesno = next(one for one in report.slices if one.group == "yes/no")
    assert yesno.low < 50 < yesno.high
    assert yesno.num_resamples == 200
    assert report.headline.num_resamples == 1000


def test_an_example_of_several_kinds_counts_in_each_after_a_run_was_read_back(
    tmp_path: Path,
) -> None:
    kinds = [("form", "layout"), ("form",), ("layout",)]
    examples = questions(["a", "b", "c"], kinds)
    run = write_run(tmp_path / "run", examples, answers(["a", "x", "c"]))
    report = make_report(score_run(run, QUIZ), published=says())
    shown = {one.group: (one.value, one.num) for one in report.slices}
    assert shown == {"form": (50.0, 2), "layout": (100.0, 2)}


def test_boxes_of_unknown_classes_are_explained() -> None:
    said = [Measure(name="ap", statistic=lambda w: 0.5, num=1)]
    said.append(Measure(name="unknown", statistic=lambda w: 0.0, num=1, is_error=True))
    task = replace(QUIZ, headline="ap", score=lambda examples, predictions: said)
    scored = score_matched(task, config(), questions(["a"]), answers(["a"]))
    shown = to_table(make_report(scored, published=says()))
    assert "unknown: the share of boxes that name no class of the benchmark" in shown


def test_the_evaluation_of_the_readme_prints_a_published_figure() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    ((name, model),) = re.findall(r"^paligemma eval (\w+) --data.* --model (\S+)", text, re.M)
    task = find_task(name)
    identity = identity_of(config(model))
    shown = [one for one in published(task, our_split=task.splits[0]) if identity.matches(one)]
    assert [one.measure for one in shown] == [task.headline]
    assert f"the published {shown[0].value:g}" in text


def test_a_slice_that_the_scorer_reports_itself_is_not_shown_twice() -> None:
    scored = quiz(["yes", "two"], ["yes", "x"], slices=["yesno", "number"])
    report = make_report(scored, published=says())
    assert [one.measure for one in report.figures] == ["accuracy", "accuracy/yesno"]
    assert [one.group for one in report.slices] == ["number"]


def test_the_interval_is_that_of_the_measure_where_examples_stand_alone() -> None:
    rng = np.random.default_rng(0)
    truth = [str(k) for k in range(50)]
    said = [one if rng.random() < 0.6 else "?" for one in truth]
    scored = quiz(truth, said)
    row = make_report(scored, published=says()).headline
    low, high = scored.headline.interval()
    assert (row.low, row.high) == (100 * low, 100 * high)


def test_examples_of_one_unit_are_drawn_together() -> None:
    def one(name: str, unit: str | None) -> Example:
        return Example(id=name, prefix="", pictures=(), references="", unit=unit)

    # A unit may be called like another example.
    units = unit_of([one("a", "b"), one("b", None), one("c", "b"), one("d", None)])
    assert units.tolist() == [0, 1, 0, 2]
    for weights in resamples(units, 50):
        assert weights[0] == weights[2]
        assert weights[0] + weights[1] + weights[3] == 3


def test_a_statistic_that_some_resamples_leave_undefined_has_an_interval_over_the_others() -> None:
    def second_only(weights: np.ndarray) -> float:
        if not weights[1]:
            raise DataError("no object to find")
        return float(weights[1])

    (values,) = resampled_values({"x": (second_only, 2)}, np.arange(2), num_resamples=200).values()
    assert np.isnan(values).any()
    assert bounds(values) == (1.0, 2.0)
    assert all(map(math.isnan, bounds(np.array([math.nan]))))


def test_slow_statistics_get_fewer_resamples_and_a_headline_more_patience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = {"now": 0.0}

    def takes(seconds: float) -> Any:
        def statistic(weights: np.ndarray) -> float:
            clock["now"] += seconds
            return 1.0

        return statistic

    monkeypatch.setattr(resampling.time, "perf_counter", lambda: clock["now"])
    seconds = {"quick": 0.005, "slow": 0.1, "hour": 4.0}
    statistics = {name: (takes(each), 2) for name, each in seconds.items()}
    found = resampled_values(statistics, np.arange(2))
    assert {name: len(values) for name, values in found.items()} == {
        "quick": 1000,
        "slow": 200,
        "hour": 0,
    }
    (values,) = resampled_values({"slow": (takes(0.1), 2)}, np.arange(2), headline="slow").values()
    assert len(values) == 1000
    (values,) = resampled_values(
        {"x": (takes(0.1), 2)}, np.arange(2), few=["x"], headline="x"
    ).values()
    assert len(values) == 200
    # Twenty million draws at most, and never fewer than 200 resamples for that.
    (values,) = resampled_values({"x": (takes(0.0), 40_000)}, np.arange(40_000)).values()
    assert len(values) == 500


def test_json_has_no_nan_and_names_everything(tmp_path: Any) -> None:
    import json

    scored = quiz(["a", "b"], ["a", "x"], model=HUB_ID)
    body = make_report(scored, published=says(figure(std=0.3))).to_json()
    text = json.dumps(body, allow_nan=False)
    assert json.loads(text) == body
    assert body["score"] == 50.0
    assert body["figures"][0]["published"][0] == {
        "value": 70.0,
        "std": 0.3,
        "measure": "accuracy",
        "family": "PaliGemma",
        "size": "3B",
        "resolution": 448,
        "split": "val",
        "is_test_server": False,
        "source": "table 1",
    }
    assert body["run"]["command"] == "paligemma eval quiz --data quiz --model some/model"
    assert body["ids_hash"] == ids_hash(["q0", "q1"]) != ids_hash(["q1", "q0"])


def test_the_worst_examples_are_the_surest_of_the_wrong_ones() -> None:
    scored = quiz(["a"] * 5, ["a", "x", "x", "a", "x"], confidence=[0.9, 0.2, 0.8, 0.1, 0.5])
    assert worst(scored, example_scores(scored), 3) == [2, 4, 1]
    assert worst(scored, example_scores(scored), 9) == [2, 4, 1, 0, 3]
    assert worst(scored, None, 9) == []


def test_errors_and_missing_answers_are_told(tmp_path: Any) -> None:
    from fake_runs import QUIZ

    said = [Prediction(id="q0", text="", error="cannot read a.jpg"), Prediction(id="q1", text="b")]
    scored = score_run(write_run(tmp_path / "run", questions(["a", "b", "c"]), said), QUIZ)
    assert scored.notices == (
        "1 of 3 examples have no answer yet and are left out; go on with the run",
        "1 of 2 examples could not be asked and count as empty answers (q0), such as q0: cannot "
        "read a.jpg",
    )
    assert all(
        notice in to_table(make_report(scored, published=says())) for notice in scored.notices
    )


@pytest.mark.parametrize(
    ("references", "words"),
    [
        ("a cat", "a cat"),
        (["yes", "no", "yes"], "yes (x2) | no"),
        ({"answers": ["a"], "any_order": True}, "a"),
        ({"x": 1}, '{"x": 1}'),
        ("b" * 500, "b" * 397 + "..."),
    ],
)
def test_references_are_shown_for_people(references: Any, words: str) -> None:
    assert reference_words(references) == words


WHOLE = (0.0, 0.0, 1.0, 1.0)
LEFT = (0.0, 0.0, 1.0, 0.5)


def test_pictures_with_boxes_are_worth_their_f1_above_the_best_threshold() -> None:
    task = replace(BOXES, headline="ap", score=without_parts)
    sure, unsure = 0.9, 0.1
    truth = [[("cat", WHOLE)], [("cat", WHOLE), ("dog", LEFT)], [], [("cat", WHOLE)]]
    said = [
        [found("cat", WHOLE, sure), found("dog", WHOLE, unsure)],
        [found("cat", WHOLE, sure)],
        [found("cat", WHOLE, unsure)],
        [found("dog", WHOLE, sure)],
    ]
    known = boxes(truth, said)
    scored = replace(known, task=task, measures=task.score(known.examples, known.predictions))
    scores = example_scores(scored)
    assert scores is not None
    # The unsure boxes, all wrong, lie below the threshold; of two objects one is found: 2 / 3.
    assert scores.threshold == sure
    assert scores.values.tolist() == [1.0, pytest.approx(2 / 3), 1.0, 0.0]
    assert worst(scored, scores, 2) == [3, 1]


def without_parts(examples: Any, predictions: Any) -> list[Measure]:
    """A figure over all pictures together."""
    return [Measure(name="ap", statistic=lambda weights: 0.5, num=len(examples))]


def test_a_figure_without_parts_over_words_has_no_worst_example() -> None:
    known = quiz(["a"], ["b"])
    scored = replace(known, measures=without_parts(known.examples, known.predictions))
    assert example_scores(scored) is None


@pytest.mark.parametrize(
    ("text", "px", "known"),
    [
        ("gemma_2b", 896, ("3b", 1)),
        ("gemma2_2b", 224, ("3b", 2)),
        ("gemma2_27b", 448, ("28b", 2)),
    ],
)
def test_a_model_of_a_released_size_is_recognised_by_its_config(
    text: str, px: int, known: tuple[str, int]
) -> None:
    config = release_config(text, px)
    release = release_of(replace(config, text=replace(config.text, sliding_window=4096)))
    assert release is not None
    assert (release.size, config.generation) == known
    assert release_of(replace(config, text=replace(config.text, depth=3))) is None
    assert release_of(replace(config, vision=replace(config.vision, depth=3))) is None
