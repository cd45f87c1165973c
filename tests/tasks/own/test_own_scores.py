"""A user's own rows, scored by the metrics of the benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from task_files import write_json_lines, write_picture

from paligemma.errors import DataError
from paligemma.example import Example, FoundObject, Prediction
from paligemma.tasks.own.rows import TASKS
from paligemma.tasks.own.scores import BY_PROMPT, score_own

(OWN,) = TASKS
WORDS: list[dict[str, Any]] = [
    {"image": "a.png", "prefix": "answer en what?", "suffix": ["two cats", "2 cats"]},
    {"image": "a.png", "prefix": "answer en how many?", "suffix": "12"},
    {"image": "a.png", "prefix": "caption en", "suffix": ["A cat on a mat.", "a cat and a mat"]},
]
OBJECTS = {
    "image": "a.png",
    "prefix": "detect cat",
    "suffix": "<loc0000><loc0000><loc0512><loc0512> cat",
}


def examples(tmp_path: Path, *rows: dict[str, Any]) -> list[Example]:
    write_picture(tmp_path / "a.png")
    write_json_lines(tmp_path / "test.jsonl", rows)
    return list(OWN.read(tmp_path, "test"))


def figures(found: list[Example], *texts: str, metric: str) -> dict[str, float]:
    said = [Prediction(id=one.id, text=text) for one, text in zip(found, texts, strict=True)]
    return {one.name: one.value for one in score_own(found, said, metric=metric)}


@pytest.mark.parametrize(
    ("metric", "texts", "expected"),
    [
        ("accuracy", ("2 cats", "twelve", "a cat and a mat"), 2 / 3),
        ("accuracy_lower", ("2 CATS", "13", "a cat on a MAT."), 2 / 3),
        ("count_accuracy", ("2 cats", "twelve", ""), 2 / 3),
        ("relaxed_accuracy", ("2 cats", "12.5", ""), 2 / 3),
        ("anls", ("2 cats", "12", "a cat and a hat"), (1 + 1 + 14 / 15) / 3),
        ("cer", ("2 cots", "12", "a cat and a mat"), 1 / (6 + 2 + 15)),
        ("soft_accuracy", ("2 cats", "12", ""), 2 / 9),
    ],
)
def test_answers_in_words_are_scored_by_a_metric_of_choice(
    tmp_path: Path, metric: str, texts: tuple[str, ...], expected: float
) -> None:
    scores = figures(examples(tmp_path, *WORDS), *texts, metric=metric)
    assert next(iter(scores)) == metric.replace("soft_", "")
    assert next(iter(scores.values())) == pytest.approx(expected)


def test_captions_have_their_figures_with_the_chosen_one_first(tmp_path: Path) -> None:
    found = examples(tmp_path, WORDS[2], {**WORDS[2], "suffix": ["a dog", "one dog runs"]})
    for name in ("cider", "bleu_4", "rouge_l"):
        right = figures(found, "A cat on a mat.", "one dog runs", metric=name)
        wrong = figures(found, "one dog runs", "A cat on a mat.", metric=name)
        assert next(iter(right)) == name
        assert right[name] > wrong[name]


def test_tables_are_compared_as_trees(tmp_path: Path) -> None:
    pytest.importorskip("rapidfuzz")
    table = "<table><tr><td>a</td><td>b</td></tr></table>"
    (one,) = examples(tmp_path, {"image": "a.png", "prefix": "table", "suffix": table})
    assert figures([one], table, metric="teds")["teds"] == 1
    assert figures([one], table.replace("<td>b</td>", ""), metric="teds")["teds"] < 1


def test_boxes_keep_their_figures_beside_a_metric_of_words(tmp_path: Path) -> None:
    found = examples(tmp_path, WORDS[1], OBJECTS)
    box = FoundObject(label="cat", box_yxyx=(0, 0, 0.5, 0.5), score=0.9)
    said = [
        Prediction(id=found[0].id, text="12"),
        Prediction(id=found[1].id, text="", objects=(box,)),
    ]
    measures = score_own(found, said, metric="anls")
    assert [one.name for one in measures[:2]] == ["anls", "detect_ap50"]
    assert [one.value for one in measures[:2]] == pytest.approx([1, 1])
    assert {one.num for one in measures} == {2}
    with pytest.raises(DataError, match="anls compares answers in words, but every row asks"):
        score_own(found[1:], said[1:], metric="anls")


def test_by_prompt_any_of_several_answers_is_right(tmp_path: Path) -> None:
    found = examples(tmp_path, *WORDS)
    scores = figures(found, "2 cats", "12", "a cat and a mat", metric=BY_PROMPT)
    assert scores["answer_accuracy"] == scores["caption_exact_match"] == 1


def test_a_list_without_an_answer_is_a_bad_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="suffix must hold an answer, got none"):
        examples(tmp_path, {**WORDS[0], "suffix": []})
