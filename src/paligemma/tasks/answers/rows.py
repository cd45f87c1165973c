"""Short answers to questions about photographs and diagrams.

Source: big_vision configs/proj/paligemma/transfers/{vqav2,okvqa,aokvqa_da,aokvqa_mc,gqa,textvqa,
vizwizvqa,ai2d}.py.
"""

from __future__ import annotations

from paligemma.example import Asking
from paligemma.processing.resize import BILINEAR, BILINEAR_ANTIALIAS
from paligemma.tasks.answers.ai2d import AI2D, FONT_NAME, read_ai2d
from paligemma.tasks.answers.files import (
    AOKVQA,
    COCO_IMAGES,
    GQA,
    OKVQA,
    OPEN_IMAGES_IDS,
    TEXTVQA,
    VIZWIZ,
    VQA,
    XGQA,
    read_aokvqa_choices,
    read_aokvqa_direct,
    read_gqa,
    read_okvqa,
    read_textvqa,
    read_vizwiz,
    read_vqav2,
    read_xgqa,
)
from paligemma.tasks.answers.scores import (
    aokvqa_choices_submission,
    aokvqa_direct_submission,
    question_submission,
    score_aokvqa_choices,
    score_aokvqa_direct,
    score_exact,
    score_okvqa,
    score_textvqa,
    score_vizwiz,
    score_vqa,
    score_xgqa,
    vizwiz_submission,
)
from paligemma.tasks.reading.languages import XGQA_LANGUAGES
from paligemma.tasks.task import NeededFile, PublishedKey, Task


def _asking(
    text_len: int, resize_method: str = BILINEAR_ANTIALIAS, train_resize_method: str | None = None
) -> Asking:
    return Asking(
        text_len=text_len,
        max_new_tokens=text_len,
        resize_method=resize_method,
        train_resize_method=train_resize_method,
    )


def _key(
    task: str,
    split: str,
    our_split: str | None,
    *,
    measure: str = "accuracy",
    metric: str = "accuracy",
) -> PublishedKey:
    return PublishedKey(measure=measure, task=task, split=split, metric=metric, our_split=our_split)


_COCO_2014 = NeededFile(path="train2014/, val2014/ (test2015/)", source=COCO_IMAGES)
_COCO_2017 = NeededFile(path="{split}2017/", source=COCO_IMAGES)
_GQA_IMAGES = NeededFile(path="images/{imageId}.jpg", source=GQA)
_SERVER_TRAP = "Figures of the test server and of splits on disk are not comparable."
_AOKVQA_FILES = (
    NeededFile(
        path="aokvqa_v1p0_{split}.json",
        source=AOKVQA,
        fields="question_id, image_id, question, choices, correct_choice_idx, direct_answers, "
        "difficult_direct_answer",
    ),
    _COCO_2017,
)

TASKS: tuple[Task, ...] = (
    Task(
        name="vqav2",
        title="VQAv2",
        family="answers",
        splits=("minival", "minival-shuffled", "val", "train"),
        headline="accuracy",
        asking=_asking(32),
        files=(
            NeededFile(
                path="v2_OpenEnded_mscoco_{train2014|val2014|test2015|test-dev2015}_questions.json",
                source=VQA,
                fields="questions[]: question_id, image_id, question",
            ),
            NeededFile(
                path="v2_mscoco_{train2014|val2014}_annotations.json",
                source=VQA,
                fields="annotations[]: question_id, answers[].answer, answer_type",
            ),
            _COCO_2014,
        ),
        read=read_vqav2,
        score=score_vqa,
        published=(
            _key("VQAv2", "minival", "minival"),
            _key("VQAv2", "minival", "minival-shuffled"),
            _key("VQAv2", "test server - std", None),
            _key("VQAv2", "test-std", None),
        ),
        traps=(
            _SERVER_TRAP,
            "Minival is the end of val; a model that was trained on all of val has seen it.",
            "minival takes the end of the file; the data sets that big_vision builds are shuffled "
            "by a hash, and minival-shuffled takes their end.",
            "Where ten annotators agree nothing is cleaned up: `Yes` scores 0 against ten `yes`.",
        ),
        transfer="vqav2",
        server_splits=("test", "test-dev"),
        submission=question_submission,
    ),
    Task(
        name="okvqa",
        title="OK-VQA",
        family="answers",
        splits=("val", "train"),
        headline="accuracy",
        asking=_asking(32),
        files=(
            NeededFile(
                path="OpenEnded_mscoco_{train2014|val2014}_questions.json",
                source=OKVQA,
                fields="questions[]: question_id, image_id, question",
            ),
            NeededFile(
                path="mscoco_{train2014|val2014}_annotations.json",
                source=OKVQA,
                fields="annotations[]: question_id, answers[].answer, question_type",
            ),
            _COCO_2014,
        ),
        read=read_okvqa,
        score=score_okvqa,
        published=(_key("OKVQA", "val", "val"),),
        traps=(
            "A third of a point for every annotator who agrees, up to one; nothing is cleaned up, "
            "and no annotator is left out as in VQAv2.",
            "The answers are the stemmed ones, not raw_answer.",
        ),
        transfer="okvqa",
    ),
    Task(
        name="aokvqa-da",
        title="A-OKVQA, direct answers",
        family="answers",
        splits=("val", "train"),
        headline="accuracy",
        asking=_asking(32),
        files=_AOKVQA_FILES,
        read=read_aokvqa_direct,
        score=score_aokvqa_direct,
        published=(
            _key("AOKVQA-DA", "val", "val"),
            _key("AOKVQA-DA", "test", None),
            _key("A-OKVQA (DA)", "test server", None),
        ),
        traps=(
            _SERVER_TRAP,
            "The data set's own scorer leaves out questions flagged difficult_direct_answer; the "
            "published figures on val keep them.",
        ),
        transfer="aokvqa_da",
        server_splits=("test",),
        submission=aokvqa_direct_submission,
    ),
    Task(
        name="aokvqa-mc",
        title="A-OKVQA, multiple choice",
        family="answers",
        splits=("val", "train"),
        headline="accuracy",
        asking=_asking(128),
        files=_AOKVQA_FILES,
        read=read_aokvqa_choices,
        score=score_aokvqa_choices,
        published=(
            _key("AOKVQA-MC", "val", "val"),
            _key("AOKVQA-MC", "test", None),
            _key("A-OKVQA (MC)", "test server", None),
        ),
        traps=(
            _SERVER_TRAP,
            "Two spaces follow `answer en`, and options stand between space, tab, space.",
            "The answer is the text of an option, not its letter.",
        ),
        transfer="aokvqa_mc",
        server_splits=("test",),
        submission=aokvqa_choices_submission,
    ),
    Task(
        name="gqa",
        title="GQA",
        family="answers",
        splits=("testdev", "val", "train"),
        headline="accuracy",
        asking=_asking(32, BILINEAR),
        files=(
            NeededFile(
                path="{split}_balanced_questions.json",
                source=GQA,
                fields="id -> imageId, question, answer",
            ),
            _GQA_IMAGES,
        ),
        read=read_gqa,
        score=score_exact,
        published=(
            _key("GQA", "testdev balanced", "testdev"),
            _key("GQA", "testdev", "testdev"),
        ),
        traps=("The balanced questions: 12,578 of testdev, not all 172,174.",),
        transfer="gqa",
    ),
    Task(
        name="xgqa",
        title="xGQA",
        family="answers",
        splits=("testdev", *(f"testdev_{one}" for one in XGQA_LANGUAGES)),
        headline="accuracy/avg7",
        asking=_asking(32, BILINEAR),
        files=(
            NeededFile(
                path="annotations/zero_shot/testdev_balanced_questions_{language}.json",
                source=XGQA,
                fields="id -> imageId, question, answer",
            ),
            _GQA_IMAGES,
        ),
        read=read_xgqa,
        score=score_xgqa,
        published=(
            _key("xGQA", "avg7", "testdev", measure="accuracy/avg7"),
            _key(
                "xGQA",
                "mean (bn,de,en,id,ko,pt,ru,zh)",
                "testdev",
                measure="accuracy/avg8",
                metric="mean accuracy",
            ),
        ),
        traps=(
            "Questions are in eight languages, the prompt starts `answer en`, answers are English.",
            "The reports leave English out (avg7), the model card keeps it (avg8).",
        ),
        transfer="gqa",
        is_zero_shot=True,
    ),
    Task(
        name="textvqa",
        title="TextVQA",
        family="answers",
        splits=("val", "train"),
        headline="accuracy",
        asking=_asking(32),
        files=(
            NeededFile(
                path="TextVQA_0.5.1_{split}.json",
                source=TEXTVQA,
                fields="data[]: question_id, image_id, question, answers",
            ),
            NeededFile(path="train_images/ (test_images/)", source=TEXTVQA),
            NeededFile(
                path="train-images-boxable-with-rotation.csv (test-images-with-rotation.csv), "
                "optional",
                source=OPEN_IMAGES_IDS,
                fields="ImageID, Rotation",
            ),
        ),
        read=read_textvqa,
        score=score_textvqa,
        published=(
            _key("TextVQA", "val", "val"),
            _key("TextVQA", "test server - std", None),
            _key("TextVQA", "test-std", None),
        ),
        traps=(
            _SERVER_TRAP,
            "Some pictures lie on their side; without OpenImages' id files they stay so.",
            "Pictures of val lie in train_images.",
        ),
        transfer="textvqa",
        server_splits=("test",),
        submission=question_submission,
    ),
    Task(
        name="vizwiz",
        title="VizWiz-VQA",
        family="answers",
        splits=("val", "train"),
        headline="accuracy",
        asking=_asking(48, BILINEAR, BILINEAR_ANTIALIAS),
        files=(
            NeededFile(
                path="annotations/{split}.json",
                source=VIZWIZ,
                fields="image, question, answers[].answer, answer_type",
            ),
            NeededFile(path="{split}/", source=VIZWIZ),
        ),
        read=read_vizwiz,
        score=score_vizwiz,
        published=(
            _key("VizWizVQA", "val", "val"),
            _key("VizWizVQA", "test", None),
            _key("VizWiz VQA", "test server - std", None),
        ),
        traps=(
            _SERVER_TRAP,
            "Val is scored by a third a match, without clean-up; the server as VQAv2.",
            "The second report prints test figures of the first in a column headed val.",
        ),
        transfer="vizwizvqa",
        server_splits=("test",),
        submission=vizwiz_submission,
    ),
    Task(
        name="ai2d",
        title="AI2D",
        family="answers",
        splits=("test", "train"),
        headline="accuracy",
        asking=_asking(128, BILINEAR, BILINEAR_ANTIALIAS),
        files=(
            NeededFile(
                path="ai2d/questions/{image}.json",
                source=AI2D,
                fields="imageName; questions: text -> answerTexts, correctAnswer, abcLabel, "
                "questionId",
            ),
            NeededFile(
                path="ai2d/annotations/{image}.json",
                source=AI2D,
                fields="text: id -> rectangle, replacementText",
            ),
            NeededFile(path="ai2d/images/", source=AI2D),
            NeededFile(path="ai2d_test_ids.csv", source=AI2D, fields="one image a line"),
        ),
        read=read_ai2d,
        score=score_exact,
        published=(_key("AI2D", "test", "test"),),
        traps=(
            "Case counts.",
            "Where a question asks for letters they are painted over the labels, here in "
            f"{FONT_NAME}, in the original in DM Sans.",
            "Two spaces follow `answer en`, and options stand between space, tab, space.",
        ),
        transfer="ai2d",
    ),
)
