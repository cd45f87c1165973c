"""The paired bootstrap, against the obvious one; what is compared and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fake_runs import QUIZ, answers, boxes, config, found, questions, quiz

from paligemma.errors import ConfigError, DataError
from paligemma.eval.compare import compare, to_table, verdict
from paligemma.eval.compare_page import compare_page
from paligemma.eval.scored import Scored, score_matched
from paligemma.example import Example
from paligemma.metrics.measure import mean_measure

TRUTH = [str(k) for k in range(60)]


def with_right(share: float, seed: int, model: str = "b") -> Scored:
    rng = np.random.default_rng(seed)
    return quiz(TRUTH, [t if rng.random() < share else "?" for t in TRUTH], model=model)


def test_the_paired_bootstrap_is_the_obvious_one() -> None:
    first, second = with_right(0.5, 0), with_right(0.7, 1)
    found = compare(first, second, num_resamples=400, seed=3).differences[0]
    a = np.array([float(p.text == t) for p, t in zip(first.predictions, TRUTH, strict=True)])
    b = np.array([float(p.text == t) for p, t in zip(second.predictions, TRUTH, strict=True)])
    rng = np.random.default_rng(3)
    differences = []
    for _ in range(400):
        counts = rng.multinomial(60, np.full(60, 1 / 60))
        drawn = np.repeat(np.arange(60), counts)
        differences.append(100 * (b[drawn].mean() - a[drawn].mean()))
    low, high = np.quantile(differences, [0.025, 0.975])
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.value == pytest.approx(100 * (b.mean() - a.mean()))
    share = np.mean([0.5 if abs(d) < 1e-7 else float(d > 0) for d in differences])
    assert found.sign_share == pytest.approx(share)


def test_pairing_is_surer_than_two_intervals() -> None:
    # The second is right wherever the first is, and on five examples more.
    first = quiz(TRUTH, [t if k % 2 else "?" for k, t in enumerate(TRUTH)])
    second = quiz(TRUTH, [t if k % 2 or k < 10 else "?" for k, t in enumerate(TRUTH)])
    found = compare(first, second)
    one = found.differences[0]
    assert one.value == pytest.approx(100 * 5 / 60)
    assert one.is_clear
    assert one.low > 0
    assert one.sign_share > 0.99
    own = [100 * bound for bound in first.headline.interval()]
    assert own[0] < 100 * second.headline.value < own[1]
    assert verdict(found) == "the second run is better in accuracy: the interval leaves zero out"


def test_won_lost_and_tied_add_up_and_the_largest_come_first() -> None:
    first = quiz(["a", "b", "c", "d"], ["a", "x", "c", "x"])
    second = quiz(["a", "b", "c", "d"], ["a", "b", "x", "d"])
    found = compare(first, second)
    assert found.counts == {"won": 2, "lost": 1, "tied": 1}
    assert found.largest(9, won=True) == [1, 3]
    assert found.largest(9, won=False) == [2]
    rows = found.to_json()["largest"]
    assert [row["id"] for row in rows] == ["q1", "q3", "q2"]
    assert rows[0] == {"id": "q1", "gain": 1.0, "first": "x", "second": "b"}


def test_a_run_against_itself_differs_by_nothing() -> None:
    run = with_right(0.5, 0)
    one = compare(run, run).differences[0]
    assert (one.value, one.low, one.high, one.sign_share) == (0.0, 0.0, 0.0, 0.5)
    assert "cannot be told apart" in verdict(compare(run, run))


def test_common_examples_are_used_and_the_others_counted() -> None:
    first = score_matched(QUIZ, config(), questions(TRUTH[:40]), answers(TRUTH[:40]))
    second = score_matched(QUIZ, config(), questions(TRUTH)[10:], answers(TRUTH)[10:])
    found = compare(first, second)
    assert (found.num, found.num_only_first, found.num_only_second) == (30, 10, 20)
    table = to_table(found)
    assert "30 common examples" in table
    assert "10 examples that only the first run answered are left out" in table
    assert "20 examples that only the second run answered are left out" in table


def test_an_error_rate_is_won_by_the_lower() -> None:
    def errors(examples: object, said: object) -> list[object]:
        parts = [float(a.text == "x") for a in said]  # type: ignore[attr-defined]
        return [mean_measure("cer", parts, is_error=True)]

    task = replace(QUIZ, headline="cer", score=errors)  # type: ignore[arg-type]
    first = score_matched(task, config(), questions(["a", "b"]), answers(["x", "b"]))
    second = score_matched(task, config(), questions(["a", "b"]), answers(["a", "b"]))
    found = compare(first, second)
    assert found.counts == {"won": 1, "lost": 0, "tied": 1}
    assert found.differences[0].is_better
    assert found.differences[0].value == -50.0


def test_pairs_are_resampled_as_pairs() -> None:
    examples = [replace(one, unit=f"pair {k // 2}") for k, one in enumerate(questions(TRUTH))]

    def scored(right: list[bool]) -> Scored:
        said = [t if ok else "?" for t, ok in zip(TRUTH, right, strict=True)]
        return score_matched(QUIZ, config(), examples, answers(said))

    # Both rows of a pair are right together, so that pairs say half as much as rows.
    alike = [k // 2 % 2 == 0 for k in range(60)]
    first, second = scored([False] * 60), scored(alike)
    paired = compare(first, second).differences[0]
    single = compare(quiz(TRUTH, ["?"] * 60), quiz(TRUTH, [p.text for p in second.predictions]))
    alone = single.differences[0]
    assert paired.high - paired.low > 1.2 * (alone.high - alone.low)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "other"}, "got quiz val and other val"),
        ({"split": "test"}, "got quiz val and quiz test"),
    ],
)
def test_runs_of_different_tasks_or_splits_are_refused(change: dict[str, str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        compare(quiz(["a"], ["a"]), quiz(["a"], ["a"], **change))


def test_runs_without_a_common_example_are_refused() -> None:
    second = score_matched(QUIZ, config(), questions(TRUTH)[5:9], answers(TRUTH)[5:9])
    with pytest.raises(DataError, match="of 2 and 4 none has the same id"):
        compare(quiz(["a", "b"], ["a", "b"]), second)


def test_one_id_for_two_questions_is_refused() -> None:
    with pytest.raises(DataError, match="1 of 2 have other references, such as 'q1'"):
        compare(quiz(["a", "b"], ["a", "b"]), quiz(["a", "c"], ["a", "b"]))


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match="seed must be 0 or more, got -1"):
        compare(quiz(["a"], ["a"]), quiz(["a"], ["a"]), seed=-1)


def test_other_rules_of_scoring_are_refused() -> None:
    first = quiz(["a"], ["a"])
    second = replace(first, config=replace(first.config, rules={"ties": "entailed"}))
    with pytest.raises(DataError, match=r"\{\} and \{'ties': 'entailed'\}; name those for both"):
        compare(first, second)


def test_other_prompts_are_told() -> None:
    examples = [replace(one, prefix="say it") for one in questions(["a"])]
    second = score_matched(QUIZ, config(), examples, answers(["a"]))
    found = compare(quiz(["a"], ["a"]), second)
    assert found.notices == ("the two runs were asked in different words",)


def test_the_page_shows_both_answers_escaped_and_asks_for_nothing() -> None:
    first = quiz(["a", "b"], ["<script>alert(1)</script>", "b"], model="<b>one</b>")
    second = quiz(["a", "b"], ["a", "<img src=http://x/y.png>"], model="two")

    def pictures(name: str) -> list[np.ndarray]:
        return [np.full((30, 40, 3), 99, np.uint8)]

    page = compare_page(compare(first, second), pictures=lambda ids: pictures)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;img src=http://x/y.png&gt;" in page
    assert "&lt;b&gt;one&lt;/b&gt;" in page
    assert page.count('src="') == page.count('src="data:image/jpeg;base64,') == 2
    for title in ("Where the second gains most", "Where the second loses most"):
        assert title in page


def test_gains_of_a_figure_over_pairs_are_unknown() -> None:
    def pairs(examples: list[Example], said: list[object]) -> list[object]:
        return [mean_measure("pairs", [1.0, 0.0])]

    task = replace(QUIZ, headline="pairs", score=pairs)  # type: ignore[arg-type]
    run = score_matched(task, config(), questions(["a", "b", "c", "d"]), answers(["a"] * 4))
    found = compare(run, run)
    assert found.gains is None
    assert (found.counts, found.largest(3, won=True)) == ({}, [])
    assert found.differences[0].num == 2
    assert "Where the second" not in compare_page(found)


def test_the_page_of_a_comparison_fits_a_phone_and_names_whose_boxes_are_drawn() -> None:
    """Seven columns were cut at 390 px: the last two are for wide screens and for paper."""
    box = (0.1, 0.1, 0.5, 0.5)
    truth, there = [[("cat", box)], [("cat", box)]], found("cat", box, 0.9)
    both = compare(boxes(truth, [[there], []]), boxes(truth, [[there, there], [there]]))
    picture = np.zeros((60, 80, 3), np.uint8)
    page = compare_page(both, pictures=lambda ids: lambda name: [picture])
    for head in ("same sign", "examples"):
        assert f'<th class="roomy">{head}</th>' in page
    assert "first: 1" in page
    assert "second: 1" in page


def test_a_difference_of_nothing_has_no_sign() -> None:
    run = with_right(0.5, 0)
    (line,) = [one for one in to_table(compare(run, run)).splitlines() if "accuracy" in one[:9]]
    assert "%" not in line
