"""The page for people who come from another library: both columns of code give the same."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from paligemma import PaliGemma
from paligemma.cli import main
from paligemma.export.hub_folder import export_hub
from paligemma.tasks.catalog import find_task

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
MODEL = "google/paligemma2-3b-mix-448"
# transformers' own deprecations, and what supervision says where OpenCV is missing.
pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning"),
    pytest.mark.filterwarnings("ignore:OpenCV:UserWarning"),
]


def blocks(section: str) -> list[str]:
    """Theirs and ours of a section."""
    found = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^```(?:py|sh)\n(.*?)^```", found, re.MULTILINE | re.DOTALL)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the pictures that the page names, where the code runs."""
    monkeypatch.chdir(tmp_path)
    for name in ("photo.jpg", "page.png"):
        shutil.copy(ROOT / "examples" / "desk.png", tmp_path / name)
    return tmp_path


def run(code: str, model: str, **names: Any) -> dict[str, Any]:
    """Run a block with another model in the place of the released one."""
    code = code.replace(MODEL, model).replace("vidore/colpali-v1.3", model)
    exec(compile(code, "coming-from.md", "exec"), names)
    return names


def test_every_section_shows_theirs_and_ours() -> None:
    sections = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert sections == ["transformers", "supervision", "big_vision", "maestro", "colpali-engine"]
    assert all(len(blocks(one)) == 2 for one in sections)


def test_transformers_writes_what_is_written_here(here: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    export_hub("tiny", here / "hub", dtype="float32")
    theirs, ours = (run(code, str(here / "hub"))["text"] for code in blocks("transformers"))
    assert theirs == ours
    assert theirs in ("blue", "yellow", "red", "green", "purple")


def test_supervision_reads_the_boxes_that_are_given_to_it_here(here: Path) -> None:
    pytest.importorskip("supervision")
    text = PaliGemma.from_pretrained("tiny").generate("photo.jpg", "detect star ; heart").text
    theirs, ours = (run(code, "tiny", text=text)["found"] for code in blocks("supervision"))
    assert list(theirs.data["class_name"]) == list(ours.data["class_name"])
    assert set(ours.data["class_name"]) == {"star", "heart"}
    assert list(theirs.class_id) == list(ours.class_id)
    # Of 640 pixels, a 1,024th against a 1,023rd.
    np.testing.assert_allclose(theirs.xyxy, ours.xyxy, atol=0.7)
    assert theirs.confidence is None
    assert ours.confidence.min() > 0


def test_colpali_engine_scores_the_same_pages(here: Path) -> None:
    scores = run(blocks("colpali-engine")[1], "tiny")["scores"]
    assert scores.shape == (1, 1)
    assert scores.item() > 1


def test_what_others_run_in_a_shell_is_a_command_here() -> None:
    for section in ("big_vision", "maestro"):
        for line in blocks(section)[1].splitlines():
            words = shlex.split(line)
            assert words[0] == "paligemma"
            done = CliRunner().invoke(main, [*words[1:], "--help"])
            assert done.exit_code == 0, done.output
            # Everything that is stated is an option of that command.
            assert {one for one in words if one.startswith("--")} <= set(
                done.output.replace(",", " ").split()
            )


def test_maestro_is_configured_as_the_page_shows() -> None:
    core = pytest.importorskip("maestro.trainer.models.paligemma_2.core")
    code = blocks("maestro")[0].replace("\ntrain(\n", "\nprint(\n")
    assert "PaliGemma2Configuration" in run(code, "tiny")
    assert core.PaliGemma2Configuration


def test_the_folders_of_maestro_are_read_as_they_are(here: Path) -> None:
    for split in ("train", "valid"):
        (here / split).mkdir()
        shutil.copy("photo.jpg", here / split / "a.png")
        row = {"image": "a.png", "prefix": "answer en who?", "suffix": split}
        (here / split / "annotations.jsonl").write_text(json.dumps(row) + "\n")
    for split in ("train", "valid"):
        (found,) = find_task("own").read(here, split)
        assert found.targets == (split,)
        assert found.pictures[0].read(10**6).shape == (480, 640, 3)
