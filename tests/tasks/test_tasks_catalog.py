"""The catalogue of benchmarks, held against the published recipes and figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paligemma.errors import ConfigError
from paligemma.example import ALL_CLASSES, MASK, Asking
from paligemma.processing.resize import BILINEAR, BILINEAR_ANTIALIAS
from paligemma.tasks.catalog import find_task, tasks
from paligemma.tasks.published import asking_of, records_of
from paligemma.tasks.task import Task

WITH_RECIPE = [task for task in tasks().values() if task.transfer is not None]
WITH_FIGURES = [task for task in tasks().values() if task.published]
FAMILY_NAMES = {
    *("captions", "answers", "documents", "remote-sensing", "pairs", "video", "grounding"),
    *("robustness", "structure", "scenes", "own"),
}
# Evaluations that are configured by themselves, beside the transfer whose model answers.
OWN_RECIPES = {"pope": "pope"}
# Read in google-research/big_vision at commit 0127fb6, configs/proj/paligemma/transfers.
PINNED = {
    "coco-captions": Asking(text_len=32, max_new_tokens=32, num_beams=2, resize_method=BILINEAR),
    "textcaps": Asking(text_len=32, max_new_tokens=32, num_beams=3, resize_method=BILINEAR),
    "screen2words": Asking(text_len=24, max_new_tokens=24, resize_method=BILINEAR),
    "vqav2": Asking(text_len=32, max_new_tokens=32, resize_method=BILINEAR_ANTIALIAS),
    "ai2d": Asking(
        text_len=128,
        max_new_tokens=128,
        resize_method=BILINEAR,
        train_resize_method=BILINEAR_ANTIALIAS,
    ),
    "scienceqa": Asking(text_len=512, max_new_tokens=512, resize_method=BILINEAR),
    "nlvr2": Asking(text_len=64, max_new_tokens=64, resize_method=BILINEAR, num_pictures=2),
    "pope": Asking(text_len=48, max_new_tokens=48, resize_method=BILINEAR),
    "refcoco": Asking(text_len=48, max_new_tokens=48, resize_method=BILINEAR, answer=MASK),
    "msvd-qa": Asking(
        text_len=64, max_new_tokens=64, resize_method=BILINEAR, num_pictures=8, keep_fractions=True
    ),
    # No recipe is published for these: their rows hold the numbers.
    "docci": Asking(text_len=256, max_new_tokens=192),
    "icdar15": Asking(text_len=2048, max_new_tokens=2048),
    "pubtabnet": Asking(text_len=4096, max_new_tokens=4096, pad_to_square=True),
    "coco-detection": Asking(text_len=720, max_new_tokens=704, answer=ALL_CLASSES),
}


def names(some: list[Task]) -> list[str]:
    return [task.name for task in some]


@pytest.mark.parametrize("name", PINNED)
def test_a_benchmark_is_asked_with_the_published_numbers(name: str) -> None:
    assert find_task(name).asking == PINNED[name]


@pytest.mark.parametrize("task", WITH_RECIPE, ids=names(WITH_RECIPE))
def test_a_row_asks_as_its_published_recipe_does(task: Task) -> None:
    recipe = asking_of(OWN_RECIPES.get(task.name, task.transfer or ""))
    assert task.asking == replace(recipe, answer=task.asking.answer)


@pytest.mark.parametrize("task", WITH_FIGURES, ids=names(WITH_FIGURES))
def test_every_published_key_finds_a_record(task: Task) -> None:
    assert [key for key in task.published if not records_of(key)] == []


@pytest.mark.parametrize("task", list(tasks().values()), ids=list(tasks()))
def test_every_row_is_complete(task: Task) -> None:
    assert task.title
    assert task.family in FAMILY_NAMES
    assert task.splits
    assert len(set(task.splits)) == len(task.splits)
    assert not set(task.splits) & set(task.server_splits)
    assert task.headline
    assert all(one.path and one.source for one in task.files)
    assert all(key.our_split in (None, *task.splits) for key in task.published)
    assert all(trap.endswith(".") for trap in task.traps)
    if any(key.our_split is None for key in task.published):
        assert task.server_splits
        assert task.submission is not None


def test_a_benchmark_is_known_by_the_name_of_its_row() -> None:
    assert all(name == task.name for name, task in tasks().items())


def test_a_benchmark_is_found_by_name_and_near_names_are_offered() -> None:
    assert find_task("vqav2").title == "VQAv2"
    with pytest.raises(ConfigError, match=r"no benchmark is named 'VQA2'; did you mean .*vqav2"):
        find_task("VQA2")
    with pytest.raises(ConfigError, match=r"it knows coco-captions, nocaps"):
        find_task("qqqqqqqqq")
