"""The five tasks of docs/quickstart.md, done with small models in the place of released ones."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from hub_files import cell, write_copy
from PIL import Image
from task_files import write_json, write_json_lines
from tiny_folder import write_random_tiny

from paligemma.cli import main
from paligemma.example import Prediction
from paligemma.json_file import read_json
from paligemma.tuning.watching import Judge

ROOT = Path(__file__).parents[1]
_LABELS = "answer en what color is the star?"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the tasks talk about: photographs, rows of cards, and DocVQA twice."""
    desk = Image.open(ROOT / "examples" / "desk.png").convert("RGB")
    for place in ("examples", "cards", "docvqa/val/documents"):
        (tmp_path / place).mkdir(parents=True)
        desk.save(tmp_path / place / "desk.png")
    desk.save(tmp_path / "photo.jpg")
    desk.save(tmp_path / "examples" / "again.jpg")
    rows = [{"image": "desk.png", "prefix": _LABELS, "suffix": "blue"}]
    for split in ("train", "valid"):
        write_json_lines(tmp_path / "cards" / f"{split}.jsonl", rows)
    question = {
        "questionId": 9,
        "question": "what color is the star?",
        "answers": ["blue"],
        "question_types": ["form"],
    }
    official = {**question, "image": "documents/desk.png"}
    write_json(tmp_path / "docvqa" / "val_v1.0_withQT.json", {"data": [official]})
    copied = {**question, "image": cell(tmp_path / "cards" / "desk.png")}
    write_copy(tmp_path / "validation.parquet", [copied])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks() -> list[list[list[str]]]:
    """The words of the commands of each shell block of the section."""
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    section = page.split("\n## Five tasks\n")[1].split("\n## ")[0]
    found = re.findall(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return [[shlex.split(line, comments=True)[1:] for line in one.splitlines()] for one in found]


def run(words: list[str], model: Path | str = "tiny") -> str:
    words = [str(model) if one.startswith("google/") else one for one in words]
    if words[0] == "train":
        words += ["--steps", "1", "--batch-size", "1"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, f"{shlex.join(words)}: {done.output}"
    return done.stdout


def test_the_five_tasks_of_a_newcomer_are_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(  # held-out rows are answered by nobody, which takes no time
        Judge, "answers", lambda self: [Prediction(id=one.id, text="blue") for one in self.examples]
    )
    masks, table, tuned = blocks()
    for words in masks:
        run(words)
    coco = read_json(folder / "masks.json")
    assert len(coco["images"]) == 2
    assert coco["annotations"]
    assert all("counts" in one["segmentation"] for one in coco["annotations"])
    official, copied = (json.loads(run([*words, "--json"])) for words in table)
    same = ("task", "split", "score", "ids_hash", "figures")
    assert [official[name] for name in same] == [copied[name] for name in same]
    small = write_random_tiny(folder / "model", dtype="float32")
    for words in tuned:
        said = run(words, small)
    assert (folder / "merged" / "model.safetensors").is_file()
    assert said
