"""Result files of test servers and of COCO's tools, scored as they are."""

from __future__ import annotations

import json
from dataclasses import replace
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
from paligemma.tasks.reading.pictures import FilePicture

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


def _photo(name: str, path: str, question: str = "what?") -> Example:
    picture = FilePicture(path=Path(path), folder=Path("images"))
    return Example(id=name, prefix=f"answer en {question}", pictures=(picture,), references=["x"])


@pytest.mark.parametrize("indent", [None, 1])
def test_tables_are_found_by_the_names_of_their_pictures(
    tmp_path: Path, indent: int | None
) -> None:
    examples = [_photo("548625", "val/PMC1_00.png"), _photo("548700", "val/PMC2_03.png")]
    path = tmp_path / "teds.json"
    path.write_text(
        json.dumps({"PMC1_00.png": "<table>a</table>", "PMC2_03.png": None}, indent=indent)
    )
    found, notices = match_examples(read_predictions(path, examples), examples)
    assert [(one.id, one.text) for one in found] == [("548625", "<table>a</table>"), ("548700", "")]
    assert notices == ["1 predictions are null or NaN and count as empty answers: 548700"]


def test_an_image_with_several_questions_is_told_apart_by_the_prompt(tmp_path: Path) -> None:
    questions = ("what brand?", "what is the brand and year?", "who?")
    examples = [_photo(str(k), "train/0a1b.jpg", one) for k, one in enumerate(questions, 34602)]
    rows = [
        {"question_id": "0a1b", "prompt": f"What {text}\nAnswer in one word.", "text": text}
        for text in ("is the brand and year?", "brand?")
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found, _ = match_examples(read_predictions(path, examples), examples)
    assert [one.text for one in found] == ["brand?", "is the brand and year?", ""]


def test_rows_are_numbered_by_the_field_that_names_the_most_examples(tmp_path: Path) -> None:
    examples = _examples("2", "1", "3")
    rows = [{"id": k, "image_id": 4 - k, "caption": f"of {4 - k}"} for k in (1, 2, 3)]
    found, _ = match_examples(read_predictions(_file(tmp_path, rows), examples), examples)
    assert [one.text for one in found] == ["of 2", "of 1", "of 3"]
    rows = [{"id": k, "question_id": k + 50, "text": f"of {k}"} for k in (1, 2, 3)]
    found, _ = match_examples(read_predictions(_file(tmp_path, rows), examples), examples)
    assert [one.text for one in found] == ["of 2", "of 1", "of 3"]


@pytest.mark.parametrize("name", [7, 7.0, "7"])
def test_ids_are_numbers_or_text_and_so_are_answers(tmp_path: Path, name: object) -> None:
    rows = [{"question_id": name, "answer": 3.0}, {"question_id": 8, "answer": 0.5}]
    read = read_predictions(_file(tmp_path, rows)).predictions
    assert {name: one.text for name, one in read.items()} == {"7": "3", "8": "0.5"}


def test_the_right_answer_beside_the_models_own_is_left_out_and_said(tmp_path: Path) -> None:
    examples = _examples("1", "2")
    rows = [{"question_id": k, "answer": "(a)", "response": "(b)"} for k in (1, 2)]
    found, notices = match_examples(read_predictions(_file(tmp_path, rows), examples), examples)
    assert [one.text for one in found] == ["(b)", "(b)"]
    assert notices == [
        "2 rows hold an answer beside the field 'response', which is taken for what the model "
        "said; the answer is taken for the right one and left out"
    ]


def test_a_bad_row_loses_no_other_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    good = '{"question_id": 1, "answer": "dog"}'
    for bad in (
        '{"question_id": null, "answer": "x"}',
        '{"question_id": NaN, "answer": "x"}',
        '{"question_id": 2, "answer": ["x"]}',
        '{"question_id": 2, "said": "x"}',
        '{"question_id": 2, "answer": "x',
        "2",
    ):
        path.write_text(f"{bad}\n{good}\n")
        examples = _examples("1", "2")
        found, notices = match_examples(read_predictions(path, examples), examples)
        assert [one.text for one in found] == ["dog", ""]
        assert notices[0].startswith(f"1 rows cannot be read and were left out, such as {path}")
        assert "line 1" in notices[0]
        assert notices[1].endswith("have no prediction and count as empty answers: 2")


def test_a_refused_file_hears_which_fields_were_found_and_which_are_taken(tmp_path: Path) -> None:
    rows = [{"qid": k, **{f"a{n}": "x" * 9000 for n in range(12)}} for k in range(3)]
    with pytest.raises(DataError) as caught:
        read_predictions(_file(tmp_path, rows), _examples("0"))
    for part in ("question_id, questionId, image_id", "response, text", "'qid', 'a0'", "3 more"):
        assert part in str(caught.value)
    assert len(str(caught.value)) < 600


def test_null_numbers_and_text_ids_in_detections_cost_one_row(tmp_path: Path) -> None:
    whole = {"image_id": "7", "category_id": 17.0, "bbox": [0, 0, 20, 10], "score": 0.5}
    rows = [
        {**whole, "score": None},
        {**whole, "bbox": [0, 0, None, 10]},
        {**whole, "image_id": None},
        {**whole, "category_id": True},
        whole,
    ]
    examples = _pictures()
    found, notices = match_examples(read_predictions(_file(tmp_path, rows), examples), examples)
    assert [one.score for one in found[0].objects] == [0.0, 0.5]
    assert "3 rows cannot be read and were left out, such as" in notices[0]
    assert "row 2: bbox must be a number, got None" in notices[0]
    assert "1 predictions hold a confidence that is no number; it became 0: 7" in notices


def test_detections_may_name_the_file_of_their_picture(tmp_path: Path) -> None:
    box = {"category_id": 17, "bbox": [0, 0, 20, 10], "score": 0.5}
    examples = [
        replace(one, pictures=(FilePicture(path=Path(f"val/{name}.jpg")),))
        for one, name in zip(_pictures(), ("street", "8_yard"), strict=True)
    ]
    rows = [{"image_id": "street", **box}, {"image_id": 7, "file_name": "8_yard.jpg", **box}]
    found, _ = match_examples(read_predictions(_file(tmp_path, rows), examples), examples)
    assert [len(one.objects) for one in found] == [1, 1]


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
