"""Parquet copies of benchmarks give the examples and figures of the official files."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hub_files import (
    Case,
    cell,
    pictures,
    read,
    require_same,
    require_sentences,
    with_copies,
    write_copy,
)
from task_files import write_csv, write_json, write_json_lines, write_text

from paligemma.cli import main
from paligemma.errors import DataError, ImageError
from paligemma.tasks.catalog import find_task
from paligemma.tasks.reading import parquet
from paligemma.tasks.reading.hub_columns import HUB_COPIES
from paligemma.tasks.reading.languages import XGQA_LANGUAGES
from paligemma.tasks.reading.parquet import ParquetPicture

TEN = [{"answer": text, "answer_id": k} for k, text in enumerate(["red"] * 6 + ["blue"] * 4)]


def coco_names(stem: str, num: int = 3) -> list[str]:
    return [f"{stem}{k:012d}.jpg" for k in range(num)]


def vqa_official(data: Path) -> list[Path]:
    rows = [{"question_id": 70 + k, "image_id": k, "question": f"q{k}?"} for k in range(3)]
    answers = [{"question_id": 70 + k, "answers": TEN, "answer_type": "other"} for k in range(3)]
    write_json(data / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": rows})
    write_json(data / "v2_mscoco_val2014_annotations.json", {"annotations": answers})
    return pictures(data / "val2014", *coco_names("COCO_val2014_"))


def vqa_copy(data: Path, files: list[Path]) -> None:
    rows = [
        {
            "multiple_choice_answer": "red",
            "answers": TEN,
            "image_id": k,
            "answer_type": "other",
            "question_id": 70 + k,
            "question": f"q{k}?",
            "image": cell(file),
        }
        for k, file in enumerate(files)
    ]
    write_copy(data / "data" / "validation-00000-of-00002.parquet", rows[:2])
    write_copy(data / "data" / "validation-00001-of-00002.parquet", rows[2:])
    unanswered = [{**rows[0], "answers": None, "answer_type": None, "question_id": 1}]
    write_copy(data / "data" / "test-00000-of-00001.parquet", unanswered)


def okvqa_official(data: Path) -> list[Path]:
    rows = [{"question_id": k, "image_id": k, "question": f"q{k}?"} for k in range(3)]
    answers = [{"question_id": k, "answers": TEN, "question_type": "one"} for k in range(3)]
    write_json(data / "OpenEnded_mscoco_val2014_questions.json", {"questions": rows})
    write_json(data / "mscoco_val2014_annotations.json", {"annotations": answers})
    return pictures(data / "val2014", *coco_names("COCO_val2014_"))


def okvqa_copy(data: Path, files: list[Path]) -> None:
    rows = [
        {
            "question_id": str(k),
            "image": cell(file),
            "question": f"q{k}?",
            "answers": [one["answer"] for one in TEN],
            "question_type": "one",
        }
        for k, file in enumerate(files)
    ]
    write_copy(data / "data" / "val2014-00000-of-00001.parquet", rows)


def textvqa_official(data: Path) -> list[Path]:
    rows = [
        {"question_id": k, "image_id": f"i{k}", "question": f"q{k}?", "answers": ["red"] * 10}
        for k in range(3)
    ]
    write_json(data / "TextVQA_0.5.1_val.json", {"data": rows})
    return pictures(data / "train_images", "i0.jpg", "i1.jpg", "i2.jpg")


def textvqa_copy(data: Path, files: list[Path]) -> None:
    rows = [
        {
            "image_id": f"i{k}",
            "question_id": k,
            "question": f"q{k}?",
            "image": cell(file),
            "answers": ["red"] * 10,
        }
        for k, file in enumerate(files)
    ]
    write_copy(data / "validation" / "0000.parquet", rows)


def vizwiz_official(data: Path) -> list[Path]:
    answers = [{"answer": one} for one in ["red"] * 5 + [""] * 5]
    names = [f"VizWiz_val_{k:08d}.jpg" for k in range(3)]
    rows = [
        {"image": name, "question": "what?", "answers": answers, "answer_type": "other"}
        for name in names
    ]
    write_json(data / "Annotations" / "val.json", rows)
    return pictures(data / "val", *names)


def vizwiz_copy(data: Path, files: list[Path]) -> None:
    rows = [
        {
            "question_id": file.stem,
            "image": cell(file),
            "question": "what?",
            "answers": ["red"] * 5 + [""] * 5,
            "category": "other",
        }
        for file in files
    ]
    write_copy(data / "data" / "val-00000-of-00001.parquet", rows)


def docvqa_official(data: Path) -> list[Path]:
    rows = [
        {
            "questionId": 9 + k,
            "question": f"q{k}?",
            "image": f"documents/p{k}.png",
            "answers": ["0.28", "28"],
            "question_types": ["form", "layout"],
        }
        for k in range(3)
    ]
    write_json(data / "val_v1.0_withQT.json", {"data": rows})
    return pictures(data / "val" / "documents", "p0.png", "p1.png", "p2.png")


def docvqa_copy(data: Path, files: list[Path]) -> None:
    rows = [
        {
            "questionId": str(9 + k),
            "question": f"q{k}?",
            "question_types": ["form", "layout"],
            "image": cell(file),
            "ucsf_document_id": "a",
            "answers": ["0.28", "28"],
        }
        for k, file in enumerate(files)
    ]
    write_copy(data / "DocVQA" / "validation-00000-of-00001.parquet", rows)
    # The data set of the hub keeps the other benchmark beside it.
    infovqa_copy(data, files)


def infovqa_official(data: Path) -> list[Path]:
    rows = [
        {
            "questionId": 9 + k,
            "question": f"q{k}?",
            "image_local_name": f"p{k}.png",
            "answers": ["a, b"],
            "answer_type": ["multi-span"],
        }
        for k in range(3)
    ]
    write_json(data / "infographicsVQA_val_v1.0_withQT.json", {"data": rows})
    return pictures(data / "images", "p0.png", "p1.png", "p2.png")


def infovqa_copy(data: Path, files: list[Path]) -> None:
    rows = [
        {
            "questionId": str(9 + k),
            "question": f"q{k}?",
            "answers": ["a, b"],
            "answer_type": ["multi-span"],
            "image": cell(file),
            "operation/reasoning": [""],
        }
        for k, file in enumerate(files)
    ]
    write_copy(data / "InfographicVQA" / "validation-00000-of-00001.parquet", rows)


def chartqa_official(data: Path) -> list[Path]:
    for kind in ("human", "augmented"):
        rows = [{"imgname": f"{k}.png", "query": f"{kind} {k}?", "label": "14"} for k in range(2)]
        write_json(data / "test" / f"test_{kind}.json", rows)
    return pictures(data / "test" / "png", "0.png", "1.png") * 2


def chartqa_copy(data: Path, files: list[Path]) -> None:
    """As its authors' hub copy has it, a list of one label and 0 for questions by people."""
    rows = [
        {
            "image": cell(file),
            "query": f"{'augmented' if k > 1 else 'human'} {k % 2}?",
            "label": ["14"],
            "human_or_machine": k // 2,
        }
        for k, file in enumerate(files)
    ]
    write_copy(data / "data" / "test-00000-of-00001-e2cd.parquet", rows)


def chartqa_typed_copy(data: Path, files: list[Path]) -> None:
    rows = [
        {
            "type": "augmented_test" if k > 1 else "human_test",
            "question": f"{'augmented' if k > 1 else 'human'} {k % 2}?",
            "answer": "14",
            "image": cell(file),
        }
        for k, file in enumerate(files)
    ]
    write_copy(data / "data" / "test-00000-of-00001.parquet", rows)


POPE = ("random", "popular", "adversarial")


def pope_official(data: Path) -> list[Path]:
    (file,) = pictures(data / "val2014", "COCO_val2014_000000000001.jpg")
    for kind in POPE:
        row = {"question_id": 1, "image": file.name, "text": f"{kind}?", "label": "yes"}
        write_json_lines(data / f"coco_pope_{kind}.json", [row])
    return [file] * 3


def pope_copy(data: Path, files: list[Path]) -> None:
    """With the folder of single files beside the whole, as the hub has it."""
    rows = [
        {
            "id": str(k),
            "question_id": "1",
            "question": f"{kind}?",
            "answer": "yes",
            "image_source": files[0].stem,
            "image": cell(files[0]),
            "category": kind,
        }
        for k, kind in enumerate(POPE)
    ]
    write_copy(data / "data" / "test-00000-of-00001.parquet", rows)
    for row in rows:
        write_copy(data / "Full" / f"{row['category']}-00000-of-00001.parquet", [row])


def pope_parts(data: Path, files: list[Path]) -> None:
    pope_copy(data, files)
    (data / "data" / "test-00000-of-00001.parquet").unlink()


def countbench_official(data: Path) -> list[Path]:
    files = pictures(data, "0.jpg", "1.jpg")
    rows = [{"image": "0.jpg", "number": 2}, {"image": None, "number": 3}]
    write_json_lines(data / "countbench.jsonl", [*rows, {"image": "1.jpg", "number": 4}])
    questions = [{"question": f"How many {k}?"} for k in range(3)]
    write_json(data / "countbench_paired_questions.json", questions)
    return files


def countbench_copy(data: Path, files: list[Path]) -> None:
    rows = [
        {"image": cell(file), "text": "", "question": f"How many {k}?", "number": 2 + k}
        for k, file in zip((0, 2), files, strict=True)
    ]
    write_copy(data / "data" / "test-00000-of-00001.parquet", rows)


def aokvqa_official(data: Path) -> list[Path]:
    rows = [
        {
            "question_id": f"q{k}",
            "image_id": k,
            "question": f"q{k}?",
            "choices": ["red", "blue", "it's", "x"],
            "correct_choice_idx": k,
            "direct_answers": ["red"] * 5 + ["it's"] * 5,
            "difficult_direct_answer": k == 2,
        }
        for k in range(3)
    ]
    write_json(data / "aokvqa_v1p0_val.json", rows)
    return pictures(data / "val2017", *coco_names(""))


def aokvqa_copy(data: Path, files: list[Path]) -> None:
    """Its direct answers are one text, as Python prints a list."""
    rows = [
        {
            "image": cell(file),
            "question_id": f"q{k}",
            "question": f"q{k}?",
            "choices": ["red", "blue", "it's", "x"],
            "correct_choice_idx": k,
            "direct_answers": str(["red"] * 5 + ["it's"] * 5),
            "difficult_direct_answer": k == 2,
            "rationales": ["because"],
        }
        for k, file in enumerate(files)
    ]
    write_copy(data / "data" / "validation-00000-of-00001-b2bd0de231b6326a.parquet", rows)


def gqa_official(data: Path) -> list[Path]:
    rows = {
        f"20{k}": {"imageId": f"n{k % 2}", "question": f"q{k}?", "answer": "red"} for k in range(3)
    }
    write_json(data / "testdev_balanced_questions.json", rows)
    return pictures(data / "images", "n0.jpg", "n1.jpg")


def gqa_copy(data: Path, files: list[Path]) -> None:
    """Questions in one folder, pictures in another, and all questions in a third."""
    rows = [
        {
            "id": f"20{k}",
            "imageId": f"n{k % 2}",
            "question": f"q{k}?",
            "answer": "red",
            "isBalanced": True,
        }
        for k in range(3)
    ]
    name = "testdev-00000-of-00001.parquet"
    write_copy(data / "testdev_balanced_instructions" / name, rows)
    write_copy(data / "testdev_all_instructions" / name, rows * 2)
    table = [{"id": file.stem, "image": cell(file)} for file in files]
    write_copy(data / "testdev_balanced_images" / name, table)


def gqa_whole_copy(data: Path, files: list[Path]) -> None:
    rows = [
        {"question_id": f"20{k}", "image_id": f"n{k % 2}", "question": f"q{k}?", "answer": "red"}
        for k in range(3)
    ]
    rows = [{**row, "image": cell(files[k % 2])} for k, row in enumerate(rows)]
    write_copy(data / "testdev.parquet", rows)


def xgqa_official(data: Path) -> list[Path]:
    for language in XGQA_LANGUAGES:
        rows = {"7": {"imageId": "n0", "question": f"{language}?", "answer": "yes"}}
        folder = data / "annotations" / "zero_shot"
        write_json(folder / f"testdev_balanced_questions_{language}.json", rows)
    return pictures(data / "images", "n0.jpg") * len(XGQA_LANGUAGES)


def xgqa_copy(data: Path, files: list[Path]) -> None:
    for language in XGQA_LANGUAGES:
        row = {"question": f"{language}?", "answer": "yes", "full_answer": "", "image_id": "n0"}
        row = {**row, "image": cell(files[0])}
        write_copy(data / "data" / f"{language}-00000-of-00001.parquet", [row])


def ai2d_official(data: Path) -> list[Path]:
    for k in range(3):
        question = {
            "abcLabel": False,
            "answerTexts": ["red", "blue"],
            "correctAnswer": k % 2,
            "questionId": str(k),
        }
        table = {"imageName": f"{k}.png", "questions": {f"q{k}?": question}}
        write_json(data / "ai2d" / "questions" / f"{k}.png.json", table)
        write_json(data / "ai2d" / "annotations" / f"{k}.png.json", {})
    write_text(data / "ai2d_test_ids.csv", "0\n1\n2\n")
    return pictures(data / "ai2d" / "images", "0.png", "1.png", "2.png")


def ai2d_copy(data: Path, files: list[Path]) -> None:
    rows = [
        {
            "question": f"q{k}?",
            "options": ["red", "blue"],
            "answer": str(k % 2),
            "image": cell(file),
        }
        for k, file in enumerate(files)
    ]
    write_copy(data / "data" / "test-00000-of-00001.parquet", rows)


def scienceqa_rows() -> list[dict[str, Any]]:
    return [
        {
            "question": f"q{k}?",
            "choices": ["red", "blue"],
            "answer": k % 2,
            "hint": "" if k else "look",
            "subject": "natural science",
            "topic": "biology",
            "grade": "grade2",
        }
        for k in range(3)
    ]


def scienceqa_official(data: Path) -> list[Path]:
    """The second question has no picture."""
    table = {
        str(k): {**row, "split": "test", "image": None if k == 1 else "image.png"}
        for k, row in enumerate(scienceqa_rows())
    }
    write_json(data / "problems.json", table)
    return pictures(data / "test", "0/image.png", "2/image.png")


def scienceqa_copy(data: Path, files: list[Path]) -> None:
    cells = [cell(files[0]), None, cell(files[1])]
    rows = [
        {"image": one, **row, "hint": row["hint"] or None}
        for one, row in zip(cells, scienceqa_rows(), strict=True)
    ]
    write_copy(data / "ScienceQA-FULL" / "test-00000-of-00001.parquet", rows)


def stvqa_official(data: Path) -> list[Path]:
    rows = [
        {"question_id": k, "file_path": f"vizwiz/{k}.jpg", "question": f"q{k}?", "answers": ["Red"]}
        for k in range(3)
    ]
    write_json(data / "train_task_3.json", {"data": rows})
    write_text(data / "stvqa_val_images.txt", "vizwiz/0.jpg\nvizwiz/1.jpg\n")
    return pictures(data / "train_images", "vizwiz/0.jpg", "vizwiz/1.jpg", "vizwiz/2.jpg")


def stvqa_copy(data: Path, files: list[Path]) -> None:
    rows = [
        {
            "question_id": k,
            "file_path": f"vizwiz/{k}.jpg",
            "question": f"q{k}?",
            "answers": ["Red"],
            "image": cell(file),
        }
        for k, file in enumerate(files)
    ]
    write_copy(data / "data" / "train-00000-of-00001.parquet", rows)
    write_text(data / "stvqa_val_images.txt", "vizwiz/0.jpg\nvizwiz/1.jpg\n")


def stvqa_train_official(data: Path) -> list[Path]:
    files = stvqa_official(data)
    write_text(data / "stvqa_val_images.txt", "vizwiz/2.jpg\n")
    return files


def stvqa_by_picture(data: Path, files: list[Path]) -> None:
    """A row a picture, with all questions about it."""
    rows = [
        {"image": cell(file), "qas": [{"question": f"q{k}?", "answers": ["Red"]}]}
        for k, file in enumerate(files[:2])
    ]
    write_copy(data / "data" / "train-00000-of-00001.parquet", rows)


def mmvp_rows() -> list[dict[str, Any]]:
    return [
        {
            "Index": k,
            "Question": f"q{k}?",
            "Options": "(a) red (b) blue",
            "Correct Answer": "(a)" if k % 2 else "(b)",
        }
        for k in range(1, 5)
    ]


def mmvp_official(data: Path) -> list[Path]:
    rows = mmvp_rows()
    columns = list(rows[0])
    write_csv(data / "Questions.csv", columns, [[row[one] for one in columns] for row in rows])
    return pictures(data / "MMVP Images", *(f"{k}.jpg" for k in range(1, 5)))


def mmvp_copy(data: Path, files: list[Path]) -> None:
    rows = [{**row, "image": cell(file)} for row, file in zip(mmvp_rows(), files, strict=True)]
    write_copy(data / "data" / "train-00000-of-00001.parquet", rows)


CASES = (
    Case("vqav2", "val", vqa_official, vqa_copy, ("red", "blue", "x")),
    Case("okvqa", "val", okvqa_official, okvqa_copy, ("red", "blue", "x")),
    Case("aokvqa-da", "val", aokvqa_official, aokvqa_copy, ("red", "it's", "x")),
    Case("aokvqa-mc", "val", aokvqa_official, aokvqa_copy, ("red", "x", "it's")),
    Case("gqa", "testdev", gqa_official, gqa_copy, ("red", "Red", "x")),
    Case("gqa", "testdev", gqa_official, gqa_whole_copy, ("red", "Red", "x")),
    # Where a copy has no ids, they are numbers of rows.
    Case(
        "xgqa",
        "testdev",
        xgqa_official,
        xgqa_copy,
        ("yes", "no") * 4,
        same=("prefix", "references", "targets", "slices"),
    ),
    Case(
        "ai2d",
        "test",
        ai2d_official,
        ai2d_copy,
        ("red", "red", "x"),
        same=("id", "prefix", "references", "targets"),
    ),
    Case(
        "scienceqa",
        "test",
        scienceqa_official,
        scienceqa_copy,
        ("The answer is A.", "The answer is B."),
    ),
    Case("st-vqa", "val", stvqa_official, stvqa_copy, ("red", "x")),
    Case(
        "st-vqa",
        "train",
        stvqa_train_official,
        stvqa_by_picture,
        ("red", "x"),
        same=("prefix", "references", "targets"),
    ),
    Case("mmvp", "all", mmvp_official, mmvp_copy, ("red", "blue", "red", "red")),
    Case("textvqa", "val", textvqa_official, textvqa_copy, ("red", "blue", "x")),
    Case("vizwiz", "val", vizwiz_official, vizwiz_copy, ("red", "blue", "x")),
    Case("docvqa", "val", docvqa_official, docvqa_copy, ("28", "0.28", "x")),
    Case("infovqa", "val", infovqa_official, infovqa_copy, ("b, a", "a, b", "x")),
    Case("chartqa", "test", chartqa_official, chartqa_copy, ("14", "15", "14", "x")),
    Case("chartqa", "test", chartqa_official, chartqa_typed_copy, ("14", "15", "14", "x")),
    Case("pope", "test", pope_official, pope_copy, ("yes", "no", "yes")),
    Case("pope", "test", pope_official, pope_parts, ("yes", "no", "yes")),
    # The copy's rows are those with a picture, so their numbers differ.
    Case(
        "countbenchqa",
        "all",
        countbench_official,
        countbench_copy,
        ("2", "5"),
        same=("prefix", "references", "targets"),
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.task}-{case.copy.__name__}")
def test_a_copy_gives_the_examples_and_figures_of_the_official_files(
    case: Case, tmp_path: Path
) -> None:
    require_same(case, tmp_path)


def test_every_copy_of_questions_has_a_case() -> None:
    assert {case.task for case in CASES} == with_copies("answers", "documents", "robustness")


def test_the_command_scores_answers_on_a_copy(tmp_path: Path) -> None:
    vqa_copy(tmp_path / "copy", vqa_official(tmp_path / "official"))
    said = [{"question_id": 70 + k, "answer": text} for k, text in enumerate(["red", "blue", "x"])]
    answers = write_json(tmp_path / "answers.json", said)

    def scored(data: Path, num: int = 3) -> Any:
        write_json(tmp_path / "answers.json", said[:num])
        named = ["--data", str(data), "--split", "val", "--json"]
        done = CliRunner().invoke(main, ["eval", "score", str(answers), "--task", "vqav2", *named])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)["figures"]

    assert scored(tmp_path / "copy") == scored(tmp_path / "official")
    (one,) = (tmp_path / "copy").rglob("validation-00000-*")
    assert [measure["num"] for measure in scored(one, 2)][:1] == [2]


def test_the_split_may_be_named_by_the_file(tmp_path: Path) -> None:
    """Without --split the first that the copy holds is scored, with a notice."""
    chartqa_copy(tmp_path, chartqa_official(tmp_path / "official"))
    (file,) = (tmp_path / "data").glob("test-*")
    file = file.rename(tmp_path / "val-00000-of-00001.parquet")
    answers = write_json_lines(tmp_path / "a.jsonl", [{"id": "human/0", "text": "14"}])
    words = ["eval", "score", str(answers), "--task", "chartqa", "--data", str(file), "--json"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["split"] == "val"
    assert "holds no test; its val is taken" in done.stderr
    stvqa_by_picture(tmp_path / "st", stvqa_official(tmp_path / "official"))
    assert find_task("st-vqa").default_split(tmp_path / "st") == "train"
    assert find_task("st-vqa").default_split(tmp_path / "official") == "val"
    assert find_task("st-vqa").default_split(None) == "val"


def test_the_list_of_benchmarks_says_how_a_copy_looks() -> None:
    def listed(*words: str) -> str:
        done = CliRunner().invoke(main, ["eval", "list", *words])
        assert done.exit_code == 0, done.output
        return " ".join(done.stdout.split())

    assert all(copy.names[0] in listed() for copy in HUB_COPIES.values())
    docvqa = listed("docvqa")
    assert "{split}_v1.0_withQT.json" in docvqa
    assert "such as lmms-lab/DocVQA (folder DocVQA) a copy must have the columns" in docvqa
    assert "questionId or question_id, question, image, and not operation/reasoning" in docvqa
    assert "read where it has them: answers, question_types" in docvqa
    assert json.loads(listed("pope", "--json"))["hub_copy"]["columns"]["label"] == "answer|label"
    assert "parquet copy" not in listed("ocr-vqa")


def test_a_split_that_a_copy_lacks_is_named_with_those_it_has(tmp_path: Path) -> None:
    vqa_copy(tmp_path, vqa_official(tmp_path / "official"))
    with pytest.raises(DataError, match=r"split train needs parquet files of train.*test, val"):
        read("vqav2", tmp_path, "train")


def test_the_user_names_the_split_of_files_without_one(tmp_path: Path) -> None:
    files = okvqa_official(tmp_path / "official")
    okvqa_copy(tmp_path, files)
    file = tmp_path / "data" / "val2014-00000-of-00001.parquet"
    file = file.rename(tmp_path / "data" / "0000.parquet")
    assert len(read("okvqa", tmp_path, "train")) == len(read("okvqa", file, "val")) == 3


def test_minival_of_a_copy_is_the_end_of_its_val(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paligemma.tasks.answers.files.MINIVAL_QUESTIONS", 2)
    vqa_copy(tmp_path, vqa_official(tmp_path / "official"))
    assert [one.id for one in read("vqav2", tmp_path, "minival")] == ["71", "72"]
    assert [one.id for one in read("vqav2", tmp_path, "maxival")] == ["70"]
    assert [one.references for one in read("vqav2", tmp_path, "test")] == [{"answers": []}]


def test_parts_that_are_missing_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pope_parts(tmp_path, pope_official(tmp_path / "official"))
    (tmp_path / "Full" / "popular-00000-of-00001.parquet").unlink()
    with caplog.at_level(logging.WARNING):
        examples = read("pope", tmp_path, "test")
    assert [one.slices["file"] for one in examples] == ["random", "adversarial"]
    assert "lacks popular" in caplog.text


def test_a_language_that_no_file_names_is_not_guessed(tmp_path: Path) -> None:
    row = {"question": "q?", "answer": "yes", "image_id": "n0", "image": None}
    write_copy(tmp_path / "0000.parquet", [row])
    with pytest.raises(DataError, match=r"needs parquet files of bn and de.*no name of a split"):
        read("xgqa", tmp_path, "testdev")
    (one,) = read("xgqa", tmp_path, "testdev_ko")
    assert one.id == "0_ko"


def test_a_copy_that_was_corrected_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    swapped = {99: "(b)", 100: "(a)", 279: "(b)", 280: "(a)"}
    rows = [
        {**mmvp_rows()[0], "Index": k, "Correct Answer": answer, "image": None}
        for k, answer in swapped.items()
    ]
    write_copy(tmp_path / "test.parquet", rows)
    assert len(read("mmvp", tmp_path, "corrected")) == 4
    assert not caplog.text
    read("mmvp", tmp_path, "all")
    assert "is a corrected copy" in caplog.text


def test_val_of_a_copy_without_paths_cannot_be_held_out(tmp_path: Path) -> None:
    stvqa_by_picture(tmp_path, stvqa_official(tmp_path / "official"))
    with pytest.raises(DataError, match=r"no column file_path; read its train instead"):
        read("st-vqa", tmp_path / "data", "val")


def test_a_picture_that_no_table_holds_is_named(tmp_path: Path) -> None:
    gqa_copy(tmp_path, gqa_official(tmp_path / "official")[:1])
    with pytest.raises(DataError, match=r"row 2: the picture 'n1' must lie.*folder of the pict"):
        read("gqa", tmp_path, "testdev")


def test_lists_of_objects_may_be_stored_as_objects_of_lists(tmp_path: Path) -> None:
    (file,) = pictures(tmp_path, "a.jpg")
    answers = {"answer": ["red", "blue"], "answer_confidence": ["yes", "no"]}
    row = {"question_id": 1, "question": "q?", "image": cell(file), "answers": answers}
    write_copy(tmp_path / "val.parquet", [{**row, "answer_type": "other"}])
    assert read("vqav2", tmp_path, "val")[0].references["answers"] == ["red", "blue"]
    asked = {"question": ["q?", "r?"], "answers": [["red"], ["blue"]]}
    write_copy(tmp_path / "b" / "train.parquet", [{"image": cell(file), "qas": asked}])
    found = [(one.id, one.references) for one in read("st-vqa", tmp_path / "b", "train")]
    assert found == [("0/0", {"answers": ["red"]}), ("0/1", {"answers": ["blue"]})]
    uneven = {"question": ["q?", "r?"], "answers": [["red"]]}
    write_copy(tmp_path / "c" / "train.parquet", [{"image": cell(file), "qas": uneven}])
    with pytest.raises(DataError, match=r"row 1: the lists of question must have one length"):
        read("st-vqa", tmp_path / "c", "train")


def test_a_copy_is_found_in_a_hubs_cache(tmp_path: Path) -> None:
    okvqa_copy(tmp_path, okvqa_official(tmp_path / "official"))
    (file,) = (tmp_path / "data").glob("*.parquet")
    folder = tmp_path / "cache" / "snapshots" / "0a1b" / "default" / "validation"
    folder.mkdir(parents=True)
    (folder / "0000.parquet").symlink_to(file)
    assert len(read("okvqa", tmp_path / "cache", "val")) == 3


def test_a_file_that_was_not_fetched_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "val.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid x")
    with pytest.raises(DataError, match=r"val\.parquet is a pointer of Git LFS.*git lfs pull"):
        read("okvqa", tmp_path, "val")


def test_one_part_in_two_folders_is_refused(tmp_path: Path) -> None:
    files = okvqa_official(tmp_path / "official")
    okvqa_copy(tmp_path / "one", files)
    okvqa_copy(tmp_path / "two", files)
    with pytest.raises(DataError, match=r"one folder.*one/data and .*two/data.*--data"):
        read("okvqa", tmp_path, "val")


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("vqav2", r"question_id or questionId or id, question, answers, answer_type, image"),
        ("ocr-vqa", r"no parquet copy of this benchmark is read"),
    ],
)
def test_a_parquet_file_that_is_no_copy_is_named_with_what_is_needed(
    task: str, words: str, tmp_path: Path
) -> None:
    write_copy(tmp_path / "x.parquet", [{"image": None, "words": "a"}])
    with pytest.raises(DataError, match=rf"must hold .*x\.parquet .*{words}"):
        read(task, tmp_path, find_task(task).splits[0])


def test_a_wrong_row_is_named_by_file_and_row(tmp_path: Path) -> None:
    (file,) = pictures(tmp_path, "a.jpg")
    row = {"image": cell(file), "query": "q?", "label": ["1"], "human_or_machine": 0}
    write_copy(tmp_path / "test.parquet", [row, row, {**row, "human_or_machine": 7}])
    with pytest.raises(DataError, match=r"test\.parquet, row 3.*human or augmented"):
        read("chartqa", tmp_path, "test")


def test_a_copy_that_only_names_its_pictures_says_which(tmp_path: Path) -> None:
    row = {"image": {"bytes": None, "path": "gone.jpg"}, "query": "q?", "label": ["1"]}
    write_copy(tmp_path / "test.parquet", [{**row, "human_or_machine": 0}])
    (one,) = read("chartqa", tmp_path, "test")
    with pytest.raises(ImageError, match=r"no image, only the name 'gone\.jpg'"):
        one.pictures[0].read(1000)


def test_groups_of_rows_are_kept_within_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = pictures(tmp_path, *(f"{k}.png" for k in range(6)))
    table = write_copy(tmp_path / "t.parquet", [{"image": cell(file)} for file in files])
    one = [ParquetPicture(path=table, row_group=k, row=0) for k in range(3)]
    monkeypatch.setattr(parquet, "_KEPT_BYTES", 1)
    assert [picture.stored_size_hw() for picture in one] == [(8, 12), (8, 14), (8, 16)]
    assert len(parquet._groups._columns) == 1
    monkeypatch.setattr(parquet, "MAX_GROUP_BYTES", 10)
    with pytest.raises(ImageError, match="may hold 10 bytes of pictures"):
        one[0].read(1000)


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.task}-{case.split}-{case.copy.__name__}"
)
def test_whatever_a_column_holds_ends_in_a_sentence(case: Case, tmp_path: Path) -> None:
    require_sentences(case, tmp_path)


def test_files_that_are_missing_or_twice_or_no_files_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chartqa_copy(tmp_path, chartqa_official(tmp_path / "official"))
    (file,) = (tmp_path / "data").glob("test-*")
    file = file.rename(file.with_name("test-00000-of-00003.parquet"))
    os.mkfifo(file.with_name("test-00001-of-00003.parquet"))  # would be waited for
    assert len(read("chartqa", tmp_path, "test")) == 4
    assert "1 of the 3 files of test are there; figures are of these" in caplog.text
    shutil.copy(file, file.with_name("test-00000-of-00003 (1).parquet"))
    with pytest.raises(DataError, match="have one number; remove one"):
        read("chartqa", tmp_path, "test")


def test_a_file_that_was_replaced_gives_its_own_pictures(tmp_path: Path) -> None:
    first = chartqa_official(tmp_path / "official")
    chartqa_copy(tmp_path / "copy", first)
    before = read("chartqa", tmp_path / "copy", "test")[0].pictures[0].read(10_000)
    chartqa_copy(tmp_path / "copy", first[::-1])
    after = read("chartqa", tmp_path / "copy", "test")[0].pictures[0].read(10_000)
    assert before.shape != after.shape


def test_letters_of_a_damaged_file_are_a_sentence(tmp_path: Path) -> None:
    chartqa_copy(tmp_path, chartqa_official(tmp_path / "official"))
    (file,) = (tmp_path / "data").glob("test-*")
    table = pq.read_table(file)
    queries = pa.array([b"\xf0\x28"] * len(table), pa.binary()).view(pa.string())
    pq.write_table(table.set_column(table.column_names.index("query"), "query", queries), file)
    with pytest.raises(DataError, match="is damaged"):
        read("chartqa", tmp_path, "test")
