"""Result files of test servers and of COCO's tools, scored as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from paligemma.errors import DataError
from paligemma.eval.foreign import match_examples, read_predictions
from paligemma.eval.scored import score_matched
from paligemma.example import Example, Prediction
from paligemma.jobs.run_folder import RunConfig
from paligemma.tasks.catalog import find_task, tasks

VECTORS = [
    one
    for one in json.loads(
        (Path(__file__).parents[1] / "metrics/data/metric_vectors.json").read_text()
    )["vectors"]
    if one["metric"] == "detection_map"
]


def _examples(*names: str) -> list[Example]:
    return [Example(id=name, prefix="x", pictures=(), references=["x"]) for name in names]


def _file(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("name", sorted(k for k, one in tasks().items() if one.submission))
def test_what_a_server_takes_is_read_again(tmp_path: Path, name: str) -> None:
    submission = find_task(name).submission
    assert submission is not None
    examples = _examples("7", "12", "40")
    said = [
        Prediction(id=e.id, text=text)
        for e, text in zip(examples, ("yes", "", "a cat"), strict=True)
    ]
    path = _file(tmp_path, submission(examples, said))
    assert match_examples(read_predictions(path, examples), examples) == (said, [])


def test_json_lines_and_the_image_beside_the_question_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    rows = [{"question_id": k, "image_id": 5, "answer": str(k)} for k in (1, 2)]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = read_predictions(path).predictions
    assert {name: one.text for name, one in found.items()} == {"1": "1", "2": "2"}


@pytest.mark.parametrize(
    "row",
    [
        {"question_id": 1},
        {"answer": "yes"},
        {"question_id": 1, "answer": "yes", "caption": "no"},
        {"image_id": 1, "bbox": [0, 0, 1, 1]},
    ],
)
def test_rows_that_say_too_little_or_too_much_are_refused(tmp_path: Path, row: object) -> None:
    with pytest.raises(DataError, match="row 1 must hold an id and a text"):
        read_predictions(_file(tmp_path, [row]))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda one: one["id"])
def test_a_list_of_coco_detections_scores_as_pycocotools_says(
    tmp_path: Path, vector: dict[str, Any]
) -> None:
    content, task = vector["references"], find_task("own-detection")
    (tmp_path / "images").mkdir()
    (tmp_path / "test.json").write_text(json.dumps(content))
    for row in content["images"]:
        path = tmp_path / "images" / row["file_name"]
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (4, 2)).save(path)
    examples = list(task.read(tmp_path, "test"))
    read = read_predictions(_file(tmp_path, vector["predictions"]), examples)
    predictions, _ = match_examples(read, examples)
    scores = {one.name: one.value for one in task.score(examples, predictions)}
    for theirs, ours in {"AP": "ap", "AP50": "ap50", "AP75": "ap75", "AR100": "ar100"}.items():
        assert scores[ours] == pytest.approx(vector["expected"][theirs], abs=1e-6)


def _pictures() -> list[Example]:
    objects = [{"label": "cat", "category_id": 17, "bbox": [0, 0, 40, 50]}]
    return [
        Example(
            id=name,
            prefix="detect",
            pictures=(),
            references={"size_hw": [100, 200], "objects": found},
        )
        for name, found in (("7", objects), ("8", []))
    ]


def test_a_class_that_no_picture_shows_is_known_and_said(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 40, "height": 30}],
        "categories": [{"id": k, "name": name} for k, name in enumerate(("cat", "dog", "owl"), 1)],
        "annotations": [{"id": 0, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}] * 2,
    }
    (tmp_path / "images").mkdir()
    (tmp_path / "test.json").write_text(json.dumps(content))
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "1.jpg")
    task = find_task("own-detection")
    examples = list(task.read(tmp_path, "test"))

    def score(*numbers: int) -> tuple[dict[str, float], str]:
        rows = [
            {"image_id": 1, "category_id": k, "bbox": [0, 0, 9, 9], "score": 1} for k in numbers
        ]
        found, notices = match_examples(read_predictions(_file(tmp_path, rows), examples), examples)
        config = RunConfig(task=task.name, split="test", model="m")
        scored = score_matched(task, config, examples, found, notices=notices)
        return {one.name: one.value for one in scored.measures}, " ".join(scored.notices)

    figures, notices = score(1, 2)
    assert figures["unknown"] == 0
    assert "1 detections are of classes that no picture shows, such as 'dog'" in notices
    figures, notices = score(0, 2)
    assert (figures["ap"], figures["unknown"]) == (0, 0.5)
    assert "such as 0, and find nothing: it has 3 from 1 to 3" in notices


@pytest.mark.parametrize("name", ["aokvqa-da", "aokvqa-mc"])
@pytest.mark.parametrize("indent", [None, 2])
def test_every_form_of_aokvqas_answers_is_read(
    tmp_path: Path, name: str, indent: int | None
) -> None:
    options = {"options": ["dog", "cup"], "answer": "dog"}
    references = {"answers": ["a dog"] * 10} if name == "aokvqa-da" else options
    examples = [
        Example(id=one, prefix="x", pictures=(), references=references) for one in ("q1", "q2")
    ]
    texts = ["a dog", "a cup"] if name == "aokvqa-da" else ["dog", "cup"]
    key = "direct_answer" if name == "aokvqa-da" else "multiple_choice"
    both = [{"direct_answer": f"a {one}", "multiple_choice": one} for one in ("dog", "cup")]
    for answers in (texts, [{key: one} for one in texts], both):
        path = tmp_path / "answers.json"
        path.write_text(json.dumps(dict(zip(("q1", "q2"), answers, strict=True)), indent=indent))
        found, _ = match_examples(read_predictions(path, examples), examples)
        assert [one.text for one in found] == texts


@pytest.mark.parametrize(
    "row",
    [
        {"question_id": 7, "prompt": "what?", "text": "dog", "answer_id": "x", "metadata": {}},
        {"questionId": "7", "prediction": "dog"},
        {"image_id": 7, "id": 1, "caption": "dog"},
        {"id": "7", "text": "dog", "answer": "cat"},
    ],
)
def test_rows_of_other_programs_are_read(tmp_path: Path, row: dict[str, Any]) -> None:
    read = read_predictions(_file(tmp_path, [row])).predictions
    assert {name: one.text for name, one in read.items()} == {"7": "dog"}


def test_boxes_are_gathered_by_picture_with_names_for_numbers(tmp_path: Path) -> None:
    rows = [
        {"image_id": 8, "category_id": 17, "bbox": [20, 10, 40, 50], "score": 0.5},
        {"image_id": 7, "category_id": 99, "bbox": [0, 0, 200, 100], "score": 0.25},
        {"image_id": 8, "category_id": 17, "bbox": [0, 0, 1, 1]},
        {"image_id": 9, "category_id": 17, "bbox": [0, 0, 1, 1], "score": 1},
    ]
    examples = _pictures()
    matched, notices = match_examples(read_predictions(_file(tmp_path, rows), examples), examples)
    assert notices == [
        "1 detections have a category_id that is none of the data's, such as 99, and find nothing: "
        "it has 1 from 17 to 17; where yours count from another start, all find the wrong classes",
        "1 predictions belong to no example and were left out: 9",
    ]
    (unknown,), (first, second) = (one.objects for one in matched)
    assert (unknown.label, unknown.box_yxyx) == ("category 99", (0, 0, 1, 1))
    assert (first.label, first.score, second.score) == ("cat", 0.5, None)
    assert first.box_yxyx == pytest.approx((0.1, 0.1, 0.6, 0.3))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"bbox": [1, 2, 3]}, r"row 1: bbox is \[x, y, width, height\]"),
        ({"bbox": [1, 2, 3, "4"]}, "row 1: bbox must be a number"),
        ({"category_id": [17]}, "category_id must be a whole number"),
        ({"score": "high"}, "image 7: score must be a number"),
    ],
)
def test_malformed_detections_are_named(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    row = {"image_id": 7, "category_id": 17, "bbox": [0, 0, 1, 1], "score": 1, **change}
    with pytest.raises(DataError, match=fault):
        read_predictions(_file(tmp_path, [row]), _pictures())


def test_detections_of_a_task_without_sizes_are_refused(tmp_path: Path) -> None:
    row = {"image_id": 7, "category_id": 17, "bbox": [0, 0, 1, 1], "score": 1}
    with pytest.raises(DataError, match="belong to a benchmark of detection"):
        read_predictions(_file(tmp_path, [row]), _examples("7"))
