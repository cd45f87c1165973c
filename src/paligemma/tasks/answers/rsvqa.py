"""Questions about satellite and aerial pictures: RSVQA at low and at high resolution.

Source: big_vision configs/proj/paligemma/transfers/rsvqa_{lr,hr}.py, datasets/rsvqa_{lr,hr}.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from paligemma.example import Example, Prediction
from paligemma.metrics.answers import rsvqa_bin_answer, rsvqa_measures
from paligemma.metrics.measure import Measure
from paligemma.tasks.published import transferred
from paligemma.tasks.reading.coco_stream import stream_lists
from paligemma.tasks.reading.examples import example_of
from paligemma.tasks.reading.file_rows import FileRow
from paligemma.tasks.reading.files import find_file
from paligemma.tasks.reading.pictures import picture_in
from paligemma.tasks.reading.prefixes import answer_prefix, lower_ascii
from paligemma.tasks.scoring import texts_of
from paligemma.tasks.task import Task, files_from, published_keys

# Split -> part of the file names. "_all" keeps the questions that ask for a number.
LR_SPLITS = {"test": "test", "val": "val", "train": "train"}
HR_SPLITS = {"test": "test", "test2": "test_phili", "val": "val", "train": "train"}
NUMERIC = {"lr": ("count",), "hr": ("count", "area")}
_SUFFIX = "_all"
# Variant -> stem of the question files, folder and suffix of the pictures, source.
_PLACES = {
    "lr": ("LR_split", "Images_LR", ".tif", "rsvqa.sylvainlobry.com (Zenodo 6344334)"),
    "hr": ("USGS_split", "Data", ".png", "rsvqa.sylvainlobry.com (Zenodo 6344367)"),
}


def read_rsvqa(data: Path, split: str, *, variant: Literal["lr", "hr"]) -> Iterator[Example]:
    """Read RSVQA of either resolution.

    Args:
        split: one of LR_SPLITS or HR_SPLITS, which leaves out the questions for numbers; "_all"
            after it keeps them, with counts (low resolution) and areas (high) as ranges.
    """
    names = LR_SPLITS if variant == "lr" else HR_SPLITS
    known = {**names, **{f"{name}{_SUFFIX}": part for name, part in names.items()}}
    part = known[split]
    stem, folder, suffix, source = _PLACES[variant]
    asked = find_file(data, f"{stem}_{part}_questions.json", source=source)
    told = find_file(data, f"{stem}_{part}_answers.json", source=source)
    images = find_file(data, folder, source=source)
    answers = {
        FileRow(fields, f"{told}, answer {number}").integer("id"): fields
        for number, (_, fields) in enumerate(stream_lists(told, ["answers"]))
    }
    for number, (_, fields) in enumerate(stream_lists(asked, ["questions"])):
        row = FileRow(fields, f"{asked}, question {number}")
        if not row.value("active", bool):
            continue
        kind = row.text("type")
        if kind in NUMERIC[variant] and not split.endswith(_SUFFIX):
            continue
        answer = rsvqa_bin_answer(_answer(row, answers), kind, resolution=variant)
        yield example_of(
            str(row.integer("id")),
            answer_prefix(row.text("question")),
            picture=picture_in(images, f"{row.integer('img_id')}{suffix}"),
            answers=lower_ascii(answer),
            slices={"type": kind},
        )


def score_rsvqa(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """Compute the accuracy of each type of question, and first their unweighted mean."""
    types = [str(one.slices["type"]) for one in examples]
    return rsvqa_measures(texts_of(predictions), [one.references for one in examples], types)


def _answer(row: FileRow, answers: Mapping[int, Mapping[str, Any]]) -> str:
    ids, key = row.values("answers_ids", int), row.integer("id")
    if not ids or ids[0] not in answers:
        raise row.error(f"answers_ids must name a row of the answers, got {ids!r:.80}")
    given = answers[ids[0]]
    owner, answer = given.get("question_id"), given.get("answer")
    if owner != key:
        raise row.error(f"answer {ids[0]} belongs to question {owner}, not {key}")
    if not isinstance(answer, str):
        raise row.error(f"answer {ids[0]} must be text, got {answer!r:.80}")
    return answer


_TRAPS = (
    "The score is the mean over types of question, not over questions.",
    "Published figures leave out the questions for numbers; splits that end in _all keep them.",
    "Pictures are resized without antialiasing here, though with it in training.",
    "Questions that are not active are skipped.",
    "Answers are lower-cased before training, A to Z alone; scoring lowers every letter.",
)


def _task(
    variant: Literal["lr", "hr"],
    *,
    title: str,
    splits: Mapping[str, str],
    parts: str,
    trap: str,
    tested: Sequence[str],
) -> Task:
    stem, folder, suffix, source = _PLACES[variant]
    name = f"RSVQA-{variant}"
    return Task(
        **transferred(f"rsvqa_{variant}"),
        name=name.lower(),
        title=title,
        family="remote-sensing",
        splits=(*splits, *(f"{name}{_SUFFIX}" for name in splits)),
        headline="mean_accuracy",
        files=files_from(
            source,
            (
                f"{stem}_{parts}_questions.json",
                "questions[]: id, img_id, type, question, active, answers_ids",
            ),
            (f"{stem}_{parts}_answers.json", "answers[]: id, question_id, answer, active"),
            f"{folder}/{{id}}{suffix}",
        ),
        reader=partial(read_rsvqa, variant=variant),
        score=score_rsvqa,
        published=published_keys(
            "mean_accuracy",
            "mean accuracy",
            *(
                (record, split, split)
                for split in tested
                for record in (name, f"{name.upper()} (non numeric)")
            ),
        ),
        traps=(*_TRAPS, trap),
    )


TASKS: tuple[Task, ...] = (
    _task(
        "lr",
        title="RSVQA low resolution",
        splits=LR_SPLITS,
        parts="{split}",
        trap="The reference evaluator writes two figures under one name; ours is the mean over "
        "comp, presence and rural_urban.",
        tested=("test",),
    ),
    _task(
        "hr",
        title="RSVQA high resolution",
        splits=HR_SPLITS,
        parts="{test|test_phili|val|train}",
        trap="test2 reads the files called test_phili, of another region.",
        tested=("test", "test2"),
    ),
)
