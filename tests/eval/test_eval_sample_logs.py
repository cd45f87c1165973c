"""Logs of lmms-eval, and answers whose ids are places in another program's list of questions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from task_files import write_json, write_json_lines

from paligemma.errors import DataError
from paligemma.eval.foreign import match_examples, read_predictions
from paligemma.example import Example

FILES = ("random", "popular", "adversarial")


def pope() -> list[Example]:
    """Three files of three questions; the first question of all is the same."""
    things = ("dog", "car", "tree")
    return [
        Example(
            id=f"{file}/{k}",
            prefix=f"answer en Is there a {thing if k == 1 else f'{thing} or a {file} thing'}?",
            pictures=(),
            references="yes",
            slices={"file": file},
        )
        for file in FILES
        for k, thing in enumerate(things, start=1)
    ]


def answered(tmp_path: Path, rows: Any, examples: list[Example]) -> tuple[dict[str, str], str]:
    """Answers by the id of their example, and what was noticed."""
    write = write_json_lines if isinstance(rows, list) else write_json
    found, notices = match_examples(
        read_predictions(write(tmp_path / "r", rows), examples), examples
    )
    return {one.id: one.text for one in found if one.error is None}, " ".join(notices)


def asked(one: Example) -> str:
    return f"{one.prefix.removeprefix('answer en ')}\nAnswer the question using a single word."


@pytest.mark.parametrize("first", [0, 1])
def test_pope_of_llava_is_matched_by_place_in_whatever_order_its_files_are(
    tmp_path: Path, first: int
) -> None:
    examples = pope()
    theirs = [*examples[6:], *examples[3:6], *examples[:3]]
    rows = [
        {"question_id": k, "prompt": asked(one), "text": one.id, "answer_id": "x", "metadata": {}}
        for k, one in enumerate(theirs, start=first)
    ]
    said, notices = answered(tmp_path, rows[::-1], examples)
    assert said == {one.id: one.id for one in examples}
    assert "9 predictions have numbers for ids; each belongs to the question at that" in notices


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[4].update(prompt="Is there a boat?"),  # another list of questions
        lambda rows: [one.pop("prompt") for one in rows],  # nothing to check a place by
        lambda rows: rows[4].update(question_id="four"),
        lambda rows: rows[4].update(question_id=900),
        lambda rows: rows.__delitem__(slice(1, None)),  # a question of every file: which is meant?
    ],
)
def test_numbers_that_are_not_certainly_places_are_refused(tmp_path: Path, change: Any) -> None:
    examples = pope()
    rows = [
        {"question_id": k, "prompt": asked(one), "text": "yes"} for k, one in enumerate(examples)
    ]
    change(rows)
    with pytest.raises(DataError, match="must hold ids of the split, but none of its"):
        answered(tmp_path, rows, examples)


def sample(k: int, one: Example, **metrics: Any) -> dict[str, Any]:
    return {
        "doc_id": k,
        "target": "yes",
        "filtered_resps": [one.id],
        "doc_hash": "74234e98",
        "input": asked(one),
        **metrics,
    }


def test_samples_of_lmms_eval_are_matched_by_the_id_of_a_metric(tmp_path: Path) -> None:
    examples = [
        Example(id=str(40 - k), prefix=f"answer en what is {k}?", pictures=(), references="x")
        for k in range(3)
    ]
    rows = [
        sample(k, one, exact_match=1.0, submission={"question_id": int(one.id), "answer": "x"})
        for k, one in enumerate(examples)
    ]
    said, notices = answered(tmp_path, rows[::-1], examples)
    assert (said, notices) == ({one.id: one.id for one in examples}, "")


def test_samples_without_an_id_of_the_data_are_matched_by_place(tmp_path: Path) -> None:
    """POPE's ids start anew in each file; of a log with --limit the rest is missing."""
    examples = pope()
    rows = [
        sample(k, one, pope_accuracy={"question_id": one.id[-1], "score": 1.0})
        for k, one in enumerate([*examples[3:6], *examples[:3]])
    ]
    said, notices = answered(tmp_path, rows[:5], examples)
    assert said == {one.id: one.id for one in [*examples[3:6], *examples[:2]]}
    assert "4 of 9 examples have no prediction" in notices


def test_places_of_a_log_are_certain_where_all_questions_are_the_same(tmp_path: Path) -> None:
    """lmms-eval counts from 0, so that even the one answer about the second picture is known."""
    prefix = "answer en Is there a dog?"
    examples = [
        Example(id=f"random/{k}", prefix=prefix, pictures=(), references="yes") for k in (1, 2, 3)
    ]
    rows = [sample(k, one) for k, one in enumerate(examples)]
    assert answered(tmp_path, rows[1:2], examples)[0] == {"random/2": "random/2"}


def test_a_log_in_one_file_holds_the_rows_of_the_data(tmp_path: Path) -> None:
    examples = pope()
    logs = [
        {
            "doc_id": k,
            "doc": {"question_id": one.id, "question": asked(one)},
            "resps": [[f" {one.id}"]],
            "filtered_resps": [[one.id]],
        }
        for k, one in enumerate(examples)
    ]
    logs[2]["filtered_resps"] = []
    said, notices = answered(tmp_path, {"args": {}, "model_configs": {}, "logs": logs}, examples)
    assert said == {one.id: one.id for k, one in enumerate(examples) if k != 2}
    assert re.search(r"1 rows cannot be read and were left out.*log 3 must hold", notices)
