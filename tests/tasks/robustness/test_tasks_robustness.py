"""POPE, MMVP and Objaverse: files, prompts, pairs and pooled answers."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from task_files import write_csv, write_json, write_json_lines, write_picture

from paligemma.errors import DataError
from paligemma.eval.options import EvalOptions
from paligemma.example import Example, Prediction
from paligemma.tasks.robustness import objaverse
from paligemma.tasks.robustness.files import (
    OBJAVERSE_QUESTIONS,
    read_mmvp,
    read_objaverse,
    read_pope,
)
from paligemma.tasks.robustness.objaverse import pool_answers, read_embeddings, texts_to_embed
from paligemma.tasks.robustness.rows import TASKS
from paligemma.tasks.task import Task

ROWS: dict[str, Task] = {task.name: task for task in TASKS}


def _said(examples: list[Example], texts: list[str]) -> list[Prediction]:
    return [Prediction(id=one.id, text=text) for one, text in zip(examples, texts, strict=True)]


def _pope(data: Path, *, folder: str = "") -> Path:
    for kind in ("random", "popular", "adversarial"):
        rows = [
            {
                "question_id": number,
                "image": "COCO_val2014_000000310196.jpg",
                "text": f"Is there a {thing} in the image?",
                "label": label,
            }
            for number, (thing, label) in enumerate((("snowboard", "yes"), ("dog", "no")), start=1)
        ]
        write_json_lines(data / folder / f"coco_pope_{kind}.json", rows)
    write_picture(data / "val2014/COCO_val2014_000000310196.jpg", size_wh=(4, 3))
    return data


@pytest.mark.parametrize("folder", ["", "output/coco"])
def test_pope_asks_the_questions_of_three_files(tmp_path: Path, folder: str) -> None:
    examples = list(read_pope(_pope(tmp_path, folder=folder), "test"))
    assert [one.id for one in examples[:3]] == ["random/1", "random/2", "popular/1"]
    assert len({one.id for one in examples}) == 6
    assert examples[0].prefix == "answer en Is there a snowboard in the image?"
    assert examples[0].pictures[0].read(100).shape == (3, 4, 3)


def test_pope_asks_the_bare_question_of_the_released_configuration(tmp_path: Path) -> None:
    read = read_pope(_pope(tmp_path), "test")
    asked = next(EvalOptions(prompt="{question}").prompted(read))
    assert asked.prefix == "Is there a snowboard in the image?"


def test_pope_averages_the_accuracies_of_its_files(tmp_path: Path) -> None:
    examples = list(read_pope(_pope(tmp_path), "test"))
    texts = ["yes", "no", "Yes", "yes", "no", "no idea"]
    measures = {one.name: one.value for one in ROWS["pope"].score(examples, _said(examples, texts))}
    assert measures["accuracy"] == pytest.approx((1.0 + 0.5 + 0.0) / 3)
    assert measures["accuracy/random"] == 1.0
    assert measures["accuracy/adversarial"] == 0.0
    assert measures["official_accuracy"] == pytest.approx((1.0 + 0.5 + 0.5) / 3)
    assert {key.measure for key in ROWS["pope"].published} <= set(measures)
    perfect = ROWS["pope"].score(examples, _said(examples, ["yes", "no"] * 3))
    assert {one.value for one in perfect if not one.name.endswith("yes_ratio")} == {1.0}


def test_missing_pope_files_and_fields_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="val2014"):
        list(read_pope(tmp_path, "test"))
    (_pope(tmp_path) / "coco_pope_popular.json").unlink()
    with pytest.raises(DataError, match=r"coco_pope_popular\.json.*AoiDragon"):
        list(read_pope(tmp_path, "test"))
    write_json_lines(
        tmp_path / "coco_pope_random.json", [{"question_id": 1, "image": "a.jpg", "text": "?"}]
    )
    with pytest.raises(DataError, match=r"coco_pope_random\.json, row 1.*'label'"):
        list(read_pope(tmp_path, "test"))


MMVP_COLUMNS = ("Index", "Question", "Options", "Correct Answer")


def _mmvp(data: Path, rows: list[tuple[int, str, str, str]]) -> Path:
    write_csv(data / "Questions.csv", MMVP_COLUMNS, rows)
    for index, *_ in rows:
        write_picture(data / f"MMVP Images/{index}.jpg")
    return data


def test_mmvp_scores_pairs_of_rows(tmp_path: Path) -> None:
    rows = [
        (1, "Are the wings open?", "(a) Open (b) Closed", "(a)"),
        (2, "Are the wings open?", "(a) Open (b) Closed", "(b)"),
        (3, "Is it a dog?", "(a) Yes (b) No", "(a)"),
        (4, "Is it a dog?", "(a) Yes (b) No", "(b)"),
    ]
    examples = list(read_mmvp(_mmvp(tmp_path, rows), "all"))
    assert [one.unit for one in examples] == ["pair 1", "pair 1", "pair 2", "pair 2"]
    assert examples[1].prefix == "answer en Are the wings open?"
    assert examples[1].targets == ("Closed",)
    score = ROWS["mmvp"].score
    measures = score(examples, _said(examples, ["open", " Closed", "yes", "yes"]))
    assert [(one.name, one.value) for one in measures] == [
        ("paired_accuracy", 0.5),
        ("accuracy", 0.75),
    ]
    measures = score(examples, _said(examples, ["Open", "Closed", "Yes", "No"]))
    assert measures[0].value * measures[0].scale == 100.0


def test_half_pairs_of_a_sample_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [(k, "Q?", "(a) Yes (b) No", "(a)" if k % 2 else "(b)") for k in range(1, 5)]
    examples = list(read_mmvp(_mmvp(tmp_path, rows), "all"))[1:]
    with caplog.at_level(logging.WARNING):
        measures = ROWS["mmvp"].score(examples, _said(examples, ["Yes", "Yes", "No"]))
    assert [(one.name, one.value, one.num, one.num_used) for one in measures] == [
        ("paired_accuracy", 1.0, 3, 2),
        ("accuracy", 1.0, 3, 2),
    ]
    assert "1 questions lack their pair" in caplog.text
    with pytest.raises(DataError, match="scored by pairs"):
        ROWS["mmvp"].score(examples[:2], _said(examples[:2], ["Yes", "Yes"]))


def test_the_corrected_mmvp_turns_two_pairs_round(tmp_path: Path) -> None:
    options = "(a) Long (b) Short"
    rows = [(99, "Tusks?", options, "(a)"), (100, "Tusks?", options, "(b)")]
    rows += [(279, "Posture?", options, "(a)"), (280, "Posture?", options, "(b)")]
    rows += [(1, "Other?", options, "(a)"), (2, "Other?", options, "(b)")]
    _mmvp(tmp_path, rows)
    for split, right in (
        ("all", ["Long", "Short", "Long", "Short", "Long", "Short"]),
        ("corrected", ["Short", "Long", "Short", "Long", "Long", "Short"]),
    ):
        assert [one.targets[0] for one in read_mmvp(tmp_path, split)] == right


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("x", "Q", "(a) A (b) B", "(a)"), "Index must count from 1"),
        ((0, "Q", "(a) A (b) B", "(a)"), "Index must count from 1"),
        ((1, "Q", "(a) A (b) B", "(c)"), "Correct Answer must be an option"),
    ],
)
def test_broken_mmvp_rows_are_named(tmp_path: Path, row: tuple[object, ...], message: str) -> None:
    write_csv(tmp_path / "Questions.csv", MMVP_COLUMNS, [row])
    (tmp_path / "MMVP Images").mkdir()
    with pytest.raises(DataError, match=rf"Questions\.csv, row 2: {message}"):
        list(read_mmvp(tmp_path, "all"))


def test_a_missing_mmvp_column_is_named(tmp_path: Path) -> None:
    write_csv(tmp_path / "Questions.csv", MMVP_COLUMNS[:3], [])
    (tmp_path / "MMVP Images").mkdir()
    with pytest.raises(DataError, match="Correct Answer"):
        list(read_mmvp(tmp_path, "all"))


def _objaverse(data: Path) -> Path:
    """Two categories; `mug1` has two views, `dog1` one, `dog2` none."""
    write_json(data / "lvis-annotations.json", {"coffee_mug": ["mug1"], "dog": ["dog1", "dog2"]})
    for name in ("mug1/0.png", "mug1/1.png", "dog1/0.png"):
        write_picture(data / "views" / name)
    return data


def _embed(data: Path, vectors: dict[str, list[float]]) -> None:
    np.savez(
        data / "embeddings.npz",
        texts=np.array(list(vectors)),
        vectors=np.array(list(vectors.values()), np.float32),
    )


def test_objaverse_asks_four_questions_a_view(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        examples = list(read_objaverse(_objaverse(tmp_path), "all"))
    assert len(examples) == (2 + 1) * 4
    assert [one.id for one in examples[3:5]] == ["mug1/0/3", "mug1/1/0"]
    assert {one.unit for one in examples} == {"mug1", "dog1"}
    assert examples[3].prefix == f"answer en {OBJAVERSE_QUESTIONS[3]}"
    assert examples[0].references["category"] == "coffee mug"
    assert "2 of 3 objects have views" in caplog.text


def test_objaverse_without_views_is_an_error(tmp_path: Path) -> None:
    write_json(tmp_path / "lvis-annotations.json", {"dog": ["dog1"]})
    (tmp_path / "views").mkdir()
    with pytest.raises(DataError, match="has none of 1"):
        list(read_objaverse(tmp_path, "all"))


def _answers(examples: list[Example]) -> list[Prediction]:
    """mug1 says "cup" often, "mug" surely; dog1 says "dog"."""
    said = []
    for k, one in enumerate(examples):
        text, logprob = ("dog", -1.0) if one.unit == "dog1" else ("cup", np.log(0.05))
        if one.unit == "mug1" and k < 2:
            text, logprob = "mug", np.log(0.45 - 0.05 * k)
        said.append(Prediction(id=one.id, text=text, logprob=float(logprob)))
    return said


def test_objaverse_pools_answers_by_named_weightings(tmp_path: Path) -> None:
    examples = list(read_objaverse(_objaverse(tmp_path), "all"))
    said = _answers(examples)
    assert pool_answers(examples, said) == {"mug1": "mug", "dog1": "dog"}
    assert pool_answers(examples, said, weighting="max_probability")["mug1"] == "mug"
    assert pool_answers(examples, said, weighting="votes")["mug1"] == "cup"
    assert texts_to_embed(examples, said) == ["coffee mug", "cup", "dog", "mug"]
    with pytest.raises(DataError, match="weighting must be one of"):
        pool_answers(examples, said, weighting="mean")


def test_objaverse_is_the_mean_cosine_over_objects(tmp_path: Path) -> None:
    examples = list(read_objaverse(_objaverse(tmp_path), "all"))
    with pytest.raises(DataError, match=r"embeddings\.npz must be an \.npz file"):
        ROWS["objaverse"].score(examples, _answers(examples))
    _embed(tmp_path, {"coffee mug": [1, 0, 1], "mug": [1, 1, 0], "dog": [0, 2, 0]})
    with pytest.raises(DataError, match=r"lacks 1 texts, such as \['cup'\]"):
        ROWS["objaverse"].score(examples, _answers(examples))
    _embed(
        tmp_path,
        {"coffee mug": [1, 0, 1], "mug": [1, 1, 0], "cup": [0, 1, 0], "dog": [0, 2, 0]},
    )
    measures = ROWS["objaverse"].score(examples, _answers(examples))
    assert {one.name: round(one.value, 6) for one in measures} == {
        "cosine": 0.75,
        "cosine/max_probability": 0.75,
        "cosine/votes": 0.5,
    }
    low, high = measures[0].interval()
    assert low <= 0.75 <= high


def test_an_object_without_any_answer_counts_zero(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    examples = list(read_objaverse(_objaverse(tmp_path), "all"))
    said = [
        Prediction(id=one.id, text="", error="unreadable")
        if one.unit == "dog1"
        else Prediction(id=one.id, text="coffee mug")
        for one in examples
    ]
    _embed(tmp_path, {"coffee mug": [1, 0], "dog": [0, 1]})
    with caplog.at_level(logging.WARNING):
        (measure,) = ROWS["objaverse"].score(examples, said)
    assert (measure.name, measure.value) == ("cosine/votes", 0.5)
    assert "1 objects have no answer and count 0" in caplog.text


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"texts": np.array(["a"])}, "must be an .npz file"),
        (
            {"texts": np.array(["a"]), "vectors": np.broadcast_to(np.float32(0), (1, 3 << 17))},
            "may unfold to 1048576 bytes",
        ),
        ({"texts": np.array([1]), "vectors": np.ones((1, 2))}, "must hold texts"),
        ({"texts": np.array(["a"]), "vectors": np.ones((2, 2))}, "must hold texts"),
        ({"texts": np.array(["a"]), "vectors": np.full((1, 2), np.nan)}, "must be finite"),
        ({"texts": np.array(["a"]), "vectors": np.ones(1)}, "must be finite"),
    ],
)
def test_bad_embeddings_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objaverse, "MAX_EMBEDDING_BYTES", 1 << 20)
    np.savez(tmp_path / "e.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_embeddings(tmp_path / "e.npz")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken"])
def test_a_damaged_embeddings_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "e.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"must be an \.npz file"):
        read_embeddings(tmp_path / "e.npz")


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(-9, 0)), min_size=1, max_size=8).flatmap(
        lambda answers: st.tuples(st.just(answers), st.permutations(answers))
    )
)
def test_pooling_weighs_as_much_in_any_order(
    orders: tuple[list[tuple[str, int]], list[tuple[str, int]]],
) -> None:
    """Ties may fall either way, so the weight of the winner is compared."""

    def weight(answers: list[tuple[str, int]], weighting: str) -> float:
        examples = [
            Example(id=str(k), prefix="", pictures=(), references={}, unit="x")
            for k in range(len(answers))
        ]
        said = [
            Prediction(id=str(k), text=text, logprob=float(logprob))
            for k, (text, logprob) in enumerate(answers)
        ]
        winner = pool_answers(examples, said, weighting=weighting)["x"]
        weights = [np.exp(logprob) for text, logprob in answers if text == winner]
        return float(
            {"sum_probability": np.sum, "max_probability": np.max, "votes": len}[weighting](weights)
        )

    for weighting in ("sum_probability", "max_probability", "votes"):
        one, other = (weight(answers, weighting) for answers in orders)
        assert one == pytest.approx(other, rel=1e-12)
