"""Which splits of a benchmark a fine-tuning learns from, and which it measures with."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from paligemma import finetune
from paligemma.errors import ConfigError, DataError
from paligemma.example import Example
from paligemma.outputs.vqvae import MaskCodec
from paligemma.pipeline.loading import LoadOptions, load_processor
from paligemma.processing.processor import Processor
from paligemma.tasks.catalog import find_task
from paligemma.tasks.task import Task
from paligemma.tuning.rows import read_rows


@dataclass(frozen=True)
class Grey:
    def read(self, max_pixels: int) -> np.ndarray:
        return np.full((8, 8, 3), 90, np.uint8)


def with_splits(name: str, *there: str) -> Task:
    """A benchmark of which some splits are there, two rows each."""

    def read(data: Path, split: str) -> Iterator[Example]:
        if split not in there:
            raise DataError(f"{split}.json is missing")
        for k in range(2):
            mask = {"size": [8, 8], "counts": [10, 20, 34]}
            yield Example(
                id=f"{split} {k}",
                prefix="answer en what?",
                pictures=(Grey(),),
                targets=("a fox",),
                references={"box_yxyx": [0.1, 0.1, 0.6, 0.6], "mask": mask},
            )

    return replace(find_task(name), reader=read)


@pytest.fixture(scope="module")
def processor() -> Processor:
    return load_processor("tiny", LoadOptions())[0]


def of_splits(
    processor: Processor, task: Task, transfer: str | None
) -> tuple[list[str], list[str]]:
    """The splits that are learnt from and measured with."""
    learnt, held_out, skipped = read_rows(task, Path(), processor, MaskCodec, transfer=transfer)
    assert skipped == []
    found = [list(dict.fromkeys(one.id.split()[0] for one in rows)) for rows in (learnt, held_out)]
    return found[0], found[1]


@pytest.mark.parametrize(
    ("name", "there", "learnt", "held_out"),
    [
        ("scienceqa", ("train", "val", "test"), ["train", "val"], ["test"]),
        ("widgetcap", ("train", "dev", "test"), ["train", "dev"], ["test"]),
        ("gqa", ("train", "val", "testdev"), ["train", "val"], ["testdev"]),
        ("vqav2", ("train", "maxival", "minival", "val"), ["train", "maxival"], ["minival"]),
        ("refcoco", ("train", "train-combined", "val"), ["train-combined"], ["val"]),
        ("docvqa", ("train", "val"), ["train"], ["val"]),
    ],
)
def test_a_transfer_learns_from_its_published_splits_and_says_so(
    processor: Processor, caplog: pytest.LogCaptureFixture,
    name: str, there: tuple[str, ...], learnt: list[str], held_out: list[str],
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO, logger="paligemma")
    task = with_splits(name, *there)
    assert of_splits(processor, task, task.transfer) == (learnt, held_out)
    assert ("as published, learnt from" in caplog.text) == (learnt != ["train"])
    caplog.clear()
    if name != "vqav2":
        assert of_splits(processor, task, None)[0] == ["train"]
    assert "as published" not in caplog.text


def test_a_published_split_that_is_not_there_is_said_and_left_out(
    processor: Processor, caplog: pytest.LogCaptureFixture
) -> None:
    few = with_splits("refcoco", "train", "val")
    assert of_splits(processor, few, "refcoco_seg") == (["train"], ["val"])
    assert "learns from the split train-combined, which is left out: train-combined.json is" in (
        caplog.text
    )
    with pytest.raises(DataError, match=r"^train\.json is missing"):
        of_splits(processor, with_splits("scienceqa", "val"), "science_qa")


@pytest.mark.parametrize(
    ("name", "split"),
    [("vsr-random", "dev"), ("mimic-cxr", "validate"), ("vqav2", "minival"), ("icdar15", "test")],
)
def test_rows_are_held_out_by_the_names_that_benchmarks_give_them(
    processor: Processor, name: str, split: str
) -> None:
    task = with_splits(name, "train", split, "val")
    assert of_splits(processor, task, None) == (["train"], [split])


def test_a_benchmark_without_a_split_to_learn_from_is_named_before_anything_is_read(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="pope is only measured with, it has no split to learn"):
        finetune("tiny", data=tmp_path, task="pope", output=tmp_path / "run", progress=False)


def test_the_transfer_of_a_run_decides_its_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def read(data: Path, split: str) -> Iterator[Example]:
        asked.append(split)
        raise DataError(f"{split} is missing")

    task = replace(find_task("refcoco"), reader=read)
    monkeypatch.setattr("paligemma.tuning.finetune.task_of", lambda *_: task)
    with pytest.raises(DataError, match="train is missing"):
        finetune("tiny", data=tmp_path, transfer="refcoco_seg", output=tmp_path / "run")
    assert asked == ["train-combined", "train"]
