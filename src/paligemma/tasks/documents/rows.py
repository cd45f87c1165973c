"""Questions about documents, infographics, scene text, charts and book covers.

Source: big_vision configs/proj/paligemma/transfers/{docvqa,infovqa,stvqa,chartqa,ocrvqa}.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from paligemma.errors import DataError
from paligemma.example import Asking, Example, Prediction
from paligemma.metrics.answers import exact_match_measures
from paligemma.metrics.documents import anls_measures, relaxed_accuracy_measures
from paligemma.metrics.measure import Measure
from paligemma.tasks.documents.files import (
    CHARTQA,
    OCRVQA,
    RRC,
    STVQA_LIST,
    STVQA_LIST_SOURCE,
    read_chartqa,
    read_docvqa,
    read_infovqa,
    read_ocrvqa,
    read_stvqa,
)
from paligemma.tasks.task import NeededFile, PublishedKey, Task


def score_anls(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """ANLS as the evaluator of PaliGemma computes it, and as the test server is said to.

    Raises:
        DataError: a split without answers.
    """
    answers = [one.references["answers"] for one in examples]
    if not any(answers):
        raise DataError(
            "a test split has no answers and cannot be scored here; write a submission and send "
            "it to the server"
        )
    said = [one.text for one in predictions]
    any_order = any(one.references.get("any_order") for one in examples)
    server = anls_measures(said, answers, variant="server_like", any_order=any_order)
    return [
        *anls_measures(said, answers, any_order=any_order),
        *(replace(one, name=f"{one.name}_server_like") for one in server),
    ]


def score_chartqa(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """Relaxed accuracy: the mean of the two kinds of questions first, then each kind."""
    return relaxed_accuracy_measures(
        [one.text for one in predictions],
        [one.references for one in examples],
        groups=[one.slices["kind"] for one in examples],
    )


def score_ocrvqa(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """Exact match after lower-casing both sides."""
    said, references = [one.text for one in predictions], [one.references for one in examples]
    return exact_match_measures(said, references, lower=True)


def anls_submission(
    examples: Sequence[Example], predictions: Sequence[Prediction], *, key: str = "questionId"
) -> list[dict[str, Any]]:
    """What the test server takes, to be written as one JSON list.

    Args:
        key: "questionId" for DocVQA and InfographicVQA, "question_id" for ST-VQA.
    """
    return [
        {key: int(example.id), "answer": prediction.text}
        for example, prediction in zip(examples, predictions, strict=True)
    ]


def stvqa_submission(
    examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[dict[str, Any]]:
    """What the test server of ST-VQA takes."""
    return anls_submission(examples, predictions, key="question_id")


def _asking(text_len: int) -> Asking:
    return Asking(text_len=text_len, max_new_tokens=text_len)


def _anls_keys(task: str, *readme: str) -> tuple[PublishedKey, ...]:
    """Figures on "val" compare with ours; those of a test server compare with no split on disk."""
    keys = [
        (task, "val", "val"),
        (task, "test", None),
        *((name, "test server", None) for name in readme),
    ]
    return tuple(
        PublishedKey(measure="anls", task=name, split=split, metric="ANLS", our_split=ours)
        for name, split, ours in keys
    )


_ANLS_TRAPS = (
    "Published test figures come from a server and are not comparable with a figure on val.",
    "An answer exactly half wrong counts 0 here and 0.5 in some other scripts.",
)

TASKS: tuple[Task, ...] = (
    Task(
        name="docvqa",
        title="DocVQA",
        family="documents",
        splits=("val", "train"),
        headline="anls",
        asking=_asking(32),
        files=(
            NeededFile(
                path="{split}_v1.0_withQT.json (test_v1.0.json)",
                source=RRC,
                fields="data[]: questionId, question, image, answers, question_types",
            ),
            NeededFile(path="{split}/documents/*.png or spdocvqa_images/*.png", source=RRC),
        ),
        read=read_docvqa,
        score=score_anls,
        published=_anls_keys("DocVQA", "DocVQA"),
        traps=(*_ANLS_TRAPS, "The prompt is the bare question, without `answer en`."),
        transfer="docvqa",
        server_splits=("test",),
        submission=anls_submission,
    ),
    Task(
        name="infovqa",
        title="InfographicVQA",
        family="documents",
        splits=("val", "train"),
        headline="anls",
        asking=_asking(48),
        files=(
            NeededFile(
                path="infographicsVQA_{train_v1.0|val_v1.0_withQT|test_v1.0}.json",
                source=RRC,
                fields="data[]: questionId, question, image_local_name, answers",
            ),
            NeededFile(path="images/*.jpeg", source=RRC),
        ),
        read=read_infovqa,
        score=score_anls,
        published=_anls_keys("InfoVQA", "Infographic VQA"),
        traps=(
            *_ANLS_TRAPS,
            "On val every order of an answer's comma-separated parts is right; elsewhere not.",
            "Answers are lower-cased before training, A to Z alone; scoring lowers every letter.",
        ),
        transfer="infovqa",
        server_splits=("test",),
        submission=anls_submission,
    ),
    Task(
        name="st-vqa",
        title="ST-VQA",
        family="documents",
        splits=("val", "train"),
        headline="anls",
        asking=_asking(48),
        files=(
            NeededFile(
                path="{train|test}_task_3.json",
                source=RRC,
                fields="data[]: question_id, file_path, question, answers",
            ),
            NeededFile(path="train_images/, test_task3_images/", source=RRC),
            NeededFile(
                path="train2014/",
                source="COCO 2014, for the pictures under coco-text/",
            ),
            NeededFile(
                path=STVQA_LIST,
                source=STVQA_LIST_SOURCE,
                fields="one image path a line",
            ),
        ),
        read=read_stvqa,
        score=score_anls,
        published=_anls_keys("ST-VQA", "SceneText VQA"),
        traps=(
            *_ANLS_TRAPS,
            "There is no official val: PaliGemma holds out 2,628 training questions by a list of "
            "pictures that is not public; with another list the figure is not comparable.",
            "Pictures of coco-text are replaced by COCO's full-size ones.",
            "Answers are lower-cased before training, A to Z alone; scoring lowers every letter.",
        ),
        transfer="stvqa",
        server_splits=("test",),
        submission=stvqa_submission,
    ),
    Task(
        name="chartqa",
        title="ChartQA",
        family="documents",
        splits=("test", "val", "train"),
        headline="relaxed_accuracy",
        asking=_asking(48),
        files=(
            NeededFile(
                path="{split}/{split}_{human|augmented}.json",
                source=CHARTQA,
                fields="imgname, query, label",
            ),
            NeededFile(path="{split}/png/*.png", source=CHARTQA),
        ),
        read=read_chartqa,
        score=score_chartqa,
        published=(
            PublishedKey(
                measure="relaxed_accuracy",
                task="ChartQA",
                split="mean of test_human and test_aug",
                metric="mean relaxed accuracy",
                our_split="test",
            ),
            *(
                PublishedKey(
                    measure=f"relaxed_accuracy/{kind}",
                    task="ChartQA",
                    split=split,
                    metric="relaxed accuracy",
                    our_split="test",
                )
                for kind, split in (("human", "human"), ("augmented", "aug"))
            ),
        ),
        traps=(
            "The single figure is the mean of the human and the augmented score, not over rows.",
            "The prompt is the bare question, without `answer en`.",
            "0.05 matches 5 %, 5 does not; 2020 matches 2014, being within five per cent.",
        ),
        transfer="chartqa",
    ),
    Task(
        name="ocr-vqa",
        title="OCR-VQA",
        family="documents",
        splits=("test", "val", "train"),
        headline="accuracy",
        asking=_asking(32),
        files=(
            NeededFile(
                path="dataset.json",
                source=OCRVQA,
                fields="id -> questions[], answers[], imageURL, split (1 train, 2 val, 3 test)",
            ),
            NeededFile(path="images/{id}.jpg", source=OCRVQA),
        ),
        read=read_ocrvqa,
        score=score_ocrvqa,
        published=(
            PublishedKey(
                measure="accuracy",
                task="OCR-VQA",
                split="test",
                metric="accuracy",
                our_split="test",
            ),
        ),
        traps=(
            "Both sides are lower-cased when scoring; training keeps the case.",
            "The model card and the first report print different figures for the same models.",
        ),
        transfer="ocrvqa",
    ),
)
