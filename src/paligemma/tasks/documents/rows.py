"""Questions about documents, infographics, scene text, charts and book covers, and counting.

Source: big_vision configs/proj/paligemma/transfers/{docvqa,infovqa,stvqa,chartqa,ocrvqa,
tallyqa}.py.
"""

from functools import partial

from paligemma.tasks.documents import counting, files, scores
from paligemma.tasks.published import transferred
from paligemma.tasks.scoring import score_exact, submit_rows
from paligemma.tasks.task import NeededFile, PublishedKey, Task, files_from, published_keys


def _anls_keys(task: str, *readme: str) -> tuple[PublishedKey, ...]:
    """Build the keys of figures on "val", which compare with ours, and of test servers."""
    servers = [(name, "test server", None) for name in readme]
    return published_keys("anls", "ANLS", (task, "val", "val"), (task, "test", None), *servers)


_ANLS_TRAPS = (
    "Published test figures come from a server and are not comparable with a figure on val.",
    "An answer exactly half wrong counts 0 here and 0.5 in some other scripts.",
)
_task = partial(Task, family="documents")
_anls = partial(
    _task,
    splits=("val", "train"),
    headline="anls",
    score=scores.score_anls,
    server_splits=("test",),
)

TASKS: tuple[Task, ...] = (
    _anls(
        **transferred("docvqa"),
        name="docvqa",
        title="DocVQA",
        files=files_from(
            files.RRC,
            (
                "{split}_v1.0_withQT.json (test_v1.0.json)",
                "data[]: questionId, question, image, answers, question_types",
            ),
            "{split}/documents/*.png or spdocvqa_images/*.png",
        ),
        reader=files.read_docvqa,
        from_rows=files.docvqa_examples,
        published=_anls_keys("DocVQA", "DocVQA"),
        traps=(*_ANLS_TRAPS, "The prompt is the bare question, without `answer en`."),
        submission=partial(submit_rows, key="questionId"),
    ),
    _anls(
        **transferred("infovqa"),
        name="infovqa",
        title="InfographicVQA",
        files=files_from(
            files.RRC,
            (
                "infographicsVQA_{train_v1.0|val_v1.0_withQT|test_v1.0}.json",
                "data[]: questionId, question, image_local_name, answers",
            ),
            "images/*.jpeg",
        ),
        reader=files.read_infovqa,
        from_rows=files.infovqa_examples,
        published=_anls_keys("InfoVQA", "Infographic VQA"),
        traps=(
            *_ANLS_TRAPS,
            "On val, and only there, every order of an answer's comma-separated parts is right.",
            "Answers are lower-cased before training, A to Z alone; scoring lowers every letter.",
        ),
        submission=partial(submit_rows, key="questionId"),
    ),
    _anls(
        **transferred("stvqa"),
        name="st-vqa",
        title="ST-VQA",
        files=files_from(
            files.RRC,
            ("{train|test}_task_3.json", "data[]: question_id, file_path, question, answers"),
            "train_images/, test_task3_images/",
            NeededFile("train2014/", "COCO 2014, for the pictures under coco-text/"),
            NeededFile(files.STVQA_LIST, files.STVQA_LIST_SOURCE, fields="one image path a line"),
        ),
        reader=files.read_stvqa,
        from_rows=files.stvqa_examples,
        published=_anls_keys("ST-VQA", "SceneText VQA"),
        traps=(
            *_ANLS_TRAPS,
            "There is no official val: PaliGemma holds out 2,628 training questions by a list of "
            "pictures that is not public; with another list the figure is not comparable.",
            "A hub copy without the paths of its pictures has no val; its train holds those "
            "questions too.",
            "Pictures of coco-text are replaced by COCO's full-size ones.",
            "Answers are lower-cased before training, A to Z alone; scoring lowers every letter.",
        ),
        submission=partial(submit_rows, key="question_id"),
    ),
    _task(
        **transferred("chartqa"),
        name="chartqa",
        title="ChartQA",
        splits=("test", "val", "train"),
        headline="relaxed_accuracy",
        files=files_from(
            files.CHARTQA,
            ("{split}/{split}_{human|augmented}.json", "imgname, query, label"),
            "{split}/png/*.png",
        ),
        reader=files.read_chartqa,
        from_rows=files.chartqa_examples,
        score=scores.score_chartqa,
        published=(
            *published_keys(
                "relaxed_accuracy",
                "mean relaxed accuracy",
                ("ChartQA", "mean of test_human and test_aug", "test"),
            ),
            *published_keys(
                "relaxed_accuracy/human", "relaxed accuracy", ("ChartQA", "human", "test")
            ),
            *published_keys(
                "relaxed_accuracy/augmented", "relaxed accuracy", ("ChartQA", "aug", "test")
            ),
        ),
        traps=(
            "The single figure is the mean of the human and the augmented score, not over rows.",
            "The prompt is the bare question, without `answer en`.",
            "0.05 matches 5 %, 5 does not; 2020 matches 2014, because it is within five per cent.",
        ),
    ),
    _task(
        **transferred("ocrvqa"),
        name="ocr-vqa",
        title="OCR-VQA",
        splits=("test", "val", "train"),
        headline="accuracy",
        files=files_from(
            files.OCRVQA,
            (
                "dataset.json",
                "id -> questions[], answers[], imageURL, split (1 train, 2 val, 3 test)",
            ),
            "images/{id}.jpg",
        ),
        reader=files.read_ocrvqa,
        score=partial(score_exact, lower=True),
        published=published_keys("accuracy", "accuracy", ("OCR-VQA", "test", "test")),
        traps=(
            "Both sides are lower-cased when scoring; training keeps the case.",
            "The model card and the first report print different figures for the same models.",
        ),
    ),
    _task(
        **transferred("tallyqa"),
        name="tallyqa",
        title="TallyQA",
        splits=("test", "train"),
        headline="accuracy/simple",
        files=(
            NeededFile(
                "{split}.json",
                counting.TALLYQA,
                fields="image, image_id, question, question_id, answer, data_source, issimple",
            ),
            NeededFile(
                "VG_100K/, VG_100K_2/",
                "Visual Genome; with COCO's train2014/ and val2014/ for the train split",
            ),
        ),
        reader=counting.read_tallyqa,
        score=scores.score_counts,
        published=tuple(
            key
            for kind in scores.TALLYQA_KINDS
            for key in published_keys(
                f"accuracy/{kind}",
                "accuracy",
                ("TallyQA", kind, "test"),
                ("TallyQA", f"test_{kind}", "test"),
            )
        ),
        traps=(
            "Simple and complex questions have a figure each; their mixture is unpublished.",
            "Number words up to twenty count as digits, on both sides.",
        ),
    ),
    _task(
        **transferred("tallyqa"),
        name="countbenchqa",
        title="CountBenchQA",
        splits=("all",),
        headline="accuracy",
        files=(
            NeededFile(
                "train-*.parquet or countbench.jsonl", counting.COUNTBENCH, fields="image, number"
            ),
            NeededFile(counting.QUESTIONS_FILE, counting.QUESTIONS, fields="question, one a row"),
        ),
        reader=counting.read_countbenchqa,
        from_rows=counting.countbenchqa_examples,
        score=scores.score_counts,
        published=published_keys("accuracy", "accuracy", ("CountBenchQA", "all", "all")),
        traps=(
            "Published figures rest on 540 pictures, of which the hub still has 491 and 490 are "
            "usable; state how many you had.",
            "The questions belong to the rows of the parquet file by their order.",
        ),
        is_zero_shot=True,
    ),
)
