"""The catalogue of benchmarks, held against the published recipes and figures."""

from __future__ import annotations

from typing import Any

import pytest

from paligemma.errors import ConfigError
from paligemma.example import Asking
from paligemma.processing.resize import BILINEAR, BILINEAR_ANTIALIAS
from paligemma.tasks.catalog import FAMILY_MODULES, find_task, tasks
from paligemma.tasks.published import records_of, transfer_recipe
from paligemma.tasks.task import Task

WITH_RECIPE = [task for task in tasks().values() if task.transfer is not None]
WITH_FIGURES = [task for task in tasks().values() if task.published]
FAMILIES = {
    *("captions", "answers", "documents", "remote-sensing", "pairs", "video", "grounding"),
    *("robustness", "structure", "scenes"),
}
# Evaluations that are configured by themselves, beside the transfer whose model answers.
OWN_RECIPES = {"pope": "pope"}


def recipe_of(task: Task) -> dict[str, Any]:
    recipe = transfer_recipe(OWN_RECIPES.get(task.name, task.transfer or ""))
    assert recipe is not None
    return recipe


def names(some: list[Task]) -> list[str]:
    return [task.name for task in some]


def method(antialias: bool) -> str:
    return BILINEAR_ANTIALIAS if antialias else BILINEAR


@pytest.mark.parametrize("task", WITH_RECIPE, ids=names(WITH_RECIPE))
def test_a_row_asks_as_its_published_recipe_does(task: Task) -> None:
    recipe = recipe_of(task)
    asking: Asking = task.asking
    assert asking.text_len == recipe["text_len"]
    assert asking.max_new_tokens == recipe["max_decode_len"]
    # NoCaps is asked by the beam of the COCO evaluator; the other zero-shot rows are greedy too.
    assert asking.num_beams == recipe["decode"].get("beam_size", 1)
    resize = recipe["image"].get("resize")
    if resize is None:  # frames, which are never antialiased
        assert asking.resize_method == BILINEAR
        return
    assert asking.resize_method == method(resize["antialias_eval"])
    trained = asking.train_resize_method or asking.resize_method
    assert trained == method(resize["antialias_train"])


@pytest.mark.parametrize("task", WITH_RECIPE, ids=names(WITH_RECIPE))
def test_a_row_reads_as_many_pictures_as_its_recipe(task: Task) -> None:
    image = recipe_of(task)["image"]
    assert task.asking.num_pictures == image.get("num_frames", image.get("num_images", 1))


@pytest.mark.parametrize("task", WITH_FIGURES, ids=names(WITH_FIGURES))
def test_every_published_key_finds_a_record(task: Task) -> None:
    assert [key for key in task.published if not records_of(key)] == []


@pytest.mark.parametrize("task", list(tasks().values()), ids=list(tasks()))
def test_every_row_is_complete(task: Task) -> None:
    assert task.title
    assert task.family in FAMILIES
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


def test_every_family_has_a_module_with_rows() -> None:
    assert len(set(FAMILY_MODULES)) == len(FAMILY_MODULES)
    assert all(name == task.name for name, task in tasks().items())


def test_a_benchmark_is_found_by_name_and_near_names_are_offered() -> None:
    assert find_task("vqav2").title == "VQAv2"
    with pytest.raises(ConfigError, match=r"no benchmark is named 'VQA2'; did you mean .*vqav2"):
        find_task("VQA2")
    with pytest.raises(ConfigError, match=r"it knows coco-captions, nocaps"):
        find_task("qqqqqqqqq")
