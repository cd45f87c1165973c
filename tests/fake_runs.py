"""Small runs that no model made: questions with answers, and boxes, on plain pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paligemma.eval.scored import Scored, score_matched
from paligemma.example import Asking, Example, FoundObject, Prediction
from paligemma.jobs.run_folder import Run, RunConfig, RunFolder, load_run
from paligemma.metrics.measure import Measure, mean_measure
from paligemma.tasks.task import NeededFile, Task

COMMAND = "paligemma eval quiz --data quiz --model some/model"


def quiz_measures(examples: Sequence[Example], answers: Sequence[Prediction]) -> list[Measure]:
    """Exact match, and over yes/no questions alone."""
    right = [float(a.text == e.references) for e, a in zip(examples, answers, strict=True)]
    measures = [mean_measure("accuracy", right)]
    is_yesno = [one.references in ("yes", "no") for one in examples]
    if any(is_yesno):
        measures.append(mean_measure("accuracy/yesno", right, is_yesno))
    return measures


def nothing(data: Path, split: str) -> Any:
    return iter(())


QUIZ = Task(
    name="quiz",
    title="Quiz",
    family="answers",
    splits=("val", "test"),
    headline="accuracy",
    asking=Asking(text_len=32, max_new_tokens=8),
    files=(NeededFile(path="quiz.json", source="nowhere"),),
    reader=nothing,
    score=quiz_measures,
    traps=("Case counts.",),
)


def config(model: str = "some/model", **changes: Any) -> RunConfig:
    """What was run; keywords replace fields."""
    known: dict[str, Any] = {
        "task": "quiz",
        "split": "val",
        "model": model,
        "data": "quiz",
        "settings": {"model": model, "num_beams": 1},
        "sampling": {"limit": 4, "seed": 0},
        "command": COMMAND,
        "environment": {"torch": "2.13.0"},
    }
    return RunConfig(**(known | changes))


def questions(
    truth: Sequence[str], slices: Sequence[str | tuple[str, ...]] | None = None
) -> list[Example]:
    """One example a true answer, with ids q0, q1, ..."""
    return [
        Example(
            id=f"q{k}",
            prefix=f"answer en what is {k}?",
            pictures=(),
            references=one,
            slices={} if slices is None else {"kind": slices[k]},
        )
        for k, one in enumerate(truth)
    ]


def answers(said: Sequence[str], confidence: Sequence[float] | None = None) -> list[Prediction]:
    """One prediction an answer, for q0, q1, ..."""
    return [
        Prediction(
            id=f"q{k}",
            text=one,
            logprob=None if confidence is None else float(np.log(confidence[k])),
        )
        for k, one in enumerate(said)
    ]


def quiz(
    truth: Sequence[str],
    said: Sequence[str],
    *,
    confidence: Sequence[float] | None = None,
    slices: Sequence[str | tuple[str, ...]] | None = None,
    model: str = "some/model",
    **changes: Any,
) -> Scored:
    """A scored quiz."""
    return score_matched(
        QUIZ, config(model, **changes), questions(truth, slices), answers(said, confidence)
    )


def write_run(path: Path, examples: list[Example], said: list[Prediction], **changes: Any) -> Run:
    """The same on disk."""
    folder = RunFolder.create(path, config(**changes), examples)
    with folder:
        folder.append(said)
    return load_run(path)


def boxes_measures(examples: Sequence[Example], said: Sequence[Prediction]) -> list[Measure]:
    """Share of pictures with the right number of boxes."""
    right = [
        float(len(e.references["labels"]) == len(a.objects))
        for e, a in zip(examples, said, strict=True)
    ]
    return [mean_measure("count", right)]


BOXES = Task(
    name="boxes",
    title="Boxes",
    family="grounding",
    splits=("val",),
    headline="count",
    asking=Asking(text_len=32, max_new_tokens=64, answer="objects"),
    files=(),
    reader=nothing,
    score=boxes_measures,
)


def found(label: str, box_yxyx: tuple[float, float, float, float], score: float) -> FoundObject:
    return FoundObject(label=label, box_yxyx=box_yxyx, score=score)


def boxes(
    truth: Sequence[Sequence[tuple[str, tuple[float, ...]]]],
    said: Sequence[Sequence[FoundObject]],
) -> Scored:
    """Pictures p0, p1, ... with what is there and what was found."""
    examples = [
        Example(
            id=f"p{k}",
            prefix="detect cat ; dog",
            pictures=(),
            references={"labels": [a for a, _ in one], "boxes": [list(b) for _, b in one]},
        )
        for k, one in enumerate(truth)
    ]
    predictions = [
        Prediction(id=f"p{k}", text="", objects=tuple(one)) for k, one in enumerate(said)
    ]
    return score_matched(BOXES, config(task="boxes"), examples, predictions)
