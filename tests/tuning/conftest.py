"""Two plain pictures of one colour each, and the small drawn model that learns their names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_folder import write_random_tiny

from paligemma.example import Prediction
from paligemma.tuning.watching import Judge

QUESTION = "answer en which colour?"


@pytest.fixture(scope="session")
def drawn_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_tiny(tmp_path_factory.mktemp("drawn") / "model", dtype="float32")


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out rows are answered by nobody: an untrained model writes on to its bound."""
    monkeypatch.setattr(
        Judge, "answers", lambda self: [Prediction(id=one.id, text="red") for one in self.examples]
    )


@pytest.fixture
def two_colours(tmp_path: Path) -> Path:
    """A picture of each colour to learn; the first is held out too."""
    folder = tmp_path / "two-colours"
    folder.mkdir()
    rows = []
    for name, rgb in {"red": (220, 30, 30), "blue": (30, 60, 220)}.items():
        Image.fromarray(np.full((40, 60, 3), rgb, np.uint8)).save(folder / f"{name}.png")
        rows.append({"image": f"{name}.png", "prefix": QUESTION, "suffix": name})
    for split, some in (("train", rows), ("valid", rows[:1])):
        lines = "".join(json.dumps(row) + "\n" for row in some)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder
