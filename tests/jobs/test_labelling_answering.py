"""A model that labels rows: what one of them, or the device, does to the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from task_files import write_json_lines, write_picture

from paligemma.errors import RunError
from paligemma.jobs.labelling.answering import ModelLabeller
from paligemma.jobs.labelling.run import Labelled, Labelling, label
from paligemma.pipeline.engine import Engine
from paligemma.pipeline.paligemma import PaliGemma


@pytest.fixture(scope="module")
def pg() -> PaliGemma:
    return PaliGemma.from_pretrained("tiny")


def labelled(folder: Path, pg: PaliGemma, colors: list[int]) -> Labelled:
    for k, color in enumerate(colors):
        write_picture(folder / "in" / f"{k}.png", color=(color, color, color))
    rows = [{"image": f"{k}.png"} for k in range(len(colors))]
    source = write_json_lines(folder / "in" / "rows.jsonl", rows)
    job = Labelling(input=source, output=folder / "out", prompt="detect star", part_rows=8)
    return label(job, ModelLabeller(pg, options={"max_new_tokens": 4}, batch_size=4), num_threads=0)


def test_a_row_that_makes_numbers_overflow_is_quarantined(
    pg: PaliGemma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Engine.encode

    def encoded(self: Engine, pixels: Any, **more: Any) -> Any:
        pairs = zip(pixels, encode(self, pixels, **more), strict=True)
        return [soft * float("nan") if bool(one.max() < -0.99) else soft for one, soft in pairs]

    monkeypatch.setattr(Engine, "encode", encoded)
    found = labelled(tmp_path, pg, [90, 0, 120])
    assert [one["row"] for one in found.folder.records()] == [0, 2]
    (bad,) = found.folder.quarantine_files()
    assert "the model produced NaN" in bad.read_text()


def test_a_device_with_too_little_memory_is_named(
    pg: PaliGemma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*words: Any, **more: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Engine, "answer", full)
    with pytest.raises(RunError, match=r"batch of 2 rows .* fewer with --batch-size"):
        labelled(tmp_path, pg, [90, 120])
