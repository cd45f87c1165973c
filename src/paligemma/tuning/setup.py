"""What a fine-tuning is asked for, before anything is loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from paligemma.adapt.lora import LoraConfig
from paligemma.errors import ConfigError
from paligemma.example import Asking, Example
from paligemma.pipeline.loading import LoadOptions, load_processor
from paligemma.pipeline.options import chosen
from paligemma.processing.augment import MOVING, Augmentation
from paligemma.processing.processor import Processor
from paligemma.processing.prompts import object_prompt
from paligemma.tasks.catalog import find_task, tasks
from paligemma.tasks.mixture import Mixture
from paligemma.tasks.own.labels import OwnExample
from paligemma.tasks.published import transfer_recipe
from paligemma.tasks.task import Task
from paligemma.train.varied import Variety
from paligemma.tuning.recipe import Recipe, RecipeKeywords
from paligemma.tuning.rows import codec_of

logger = logging.getLogger(__name__)

# Learning a few rows by heart needs more than the defaults; it ends as soon as it is done. The
# rates are of the whole model and of an adapter.
OVERFIT: dict[str, Any] = {"steps": 300, "eval_every": 20, "label_smoothing": 0.0, "dropout": 0.0}
OVERFIT_LR = (1e-4, 1e-3)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One fine-tuning, as it is asked for.

    Attributes:
        model: name, folder or file of the model to begin with.
        processor: the model's processor.
        task: how rows are read, asked and scored.
        transfer: published transfer whose recipe is followed, or None.
        recipe: every number that changes the result.
        data: folder or file of the rows, or file of the mixture.
        folder: folder of the run.
        init_from: run, adapter or model whose weights are begun with; None is the model's own.
        resume: whether a run must have begun in the folder.
        extend: whether a finished run of the folder becomes a longer one.
        device: as in `LoadOptions`.
        num_workers: processes that read pictures.
        progress: whether bars are shown.
        mixture: the sets that are learnt together, or None.
    """

    model: str
    processor: Processor
    task: Task
    transfer: str | None
    recipe: Recipe
    data: Path
    folder: Path
    init_from: str | None = None
    resume: bool = False
    extend: bool = False
    device: str | None = None
    num_workers: int = 1
    progress: bool = True
    mixture: Mixture | None = None


def recipe_of(options: RecipeKeywords, transfer: str | None = None, size_px: int = 224) -> Recipe:
    """The recipe of some keywords; `lora=True` is the default adapter, `False` none.

    Args:
        transfer: published transfer that gives the values which `options` leave open.
        size_px: side of the model's pictures, by which a transfer's values differ.

    Raises:
        ConfigError: an option or a transfer is unknown, or a value out of its range.
    """
    lora = options.get("lora", transfer is None)
    config = LoraConfig() if lora is True else lora or None
    stated = {**options, "lora": config}
    if overfit := options.get("overfit"):
        by_heart = OVERFIT | {"batch_size": overfit, "lr": OVERFIT_LR[config is not None]}
        if "epochs" in options:
            by_heart["steps"] = None
        stated = by_heart | stated
    if transfer is None:
        return chosen(Recipe, stated)
    published = Recipe.of_transfer(transfer, size_px)
    if config is not None:
        published = replace(published, freeze=())
    if "epochs" in stated:
        published = replace(published, steps=None)
    names = [field.name for field in fields(Recipe)]
    return chosen(Recipe, {**{name: getattr(published, name) for name in names}, **stated})


def task_of(task: str | None, transfer: str | None) -> Task:
    """The benchmark of a name; of a transfer the one that it was trained for.

    Raises:
        ConfigError: no benchmark has the name, or none here was trained for with that transfer.
    """
    if task is not None or transfer is None:
        return find_task(task or "own")
    trained = [one for one in tasks().values() if one.transfer == transfer and not one.is_zero_shot]
    if not trained:
        transfer_recipe(transfer)
        raise ConfigError(f"no benchmark here has the transfer {transfer}; name one with task")
    return trained[0]


def with_text_len(task: Task, text_len: int | None) -> Task:
    """The task with another bound of the tokens of a row; None keeps its own."""
    if text_len is None:
        return task
    return replace(task, asking_for=partial(_asks, task, text_len))


def _asks(task: Task, text_len: int, example: Example) -> Asking:
    return replace(task.asks(example), text_len=text_len)


def variety(setup: Setup, examples: Sequence[Example]) -> Variety | None:
    """What changes rows from visit to visit; None where nothing does."""
    recipe, mixture = setup.recipe, setup.mixture
    policies = [Augmentation.of(recipe.augment)]
    if mixture is not None:
        stated = [one.augment for one in mixture.sources]
        policies = [policies[0] if one is None else Augmentation.of(one) for one in stated]
    if not (recipe.negatives or any(one.strengths for one in policies)):
        return None
    classes: list[dict[str, None]] = [{} for _ in policies]
    for one in examples:
        asked = object_prompt(one.prefix)
        place = 0 if mixture is None else mixture.place_of(one)
        classes[place].update(dict.fromkeys(asked.labels if asked else ()))
    has_masks = any(one.prefix.startswith("segment ") for one in examples)
    made = Variety(
        seed=recipe.seed,
        policies=tuple(policies),
        asking_of=setup.task.asks,
        processor=setup.processor,
        codec=codec_of(setup.model)() if has_masks else None,
        negatives=recipe.negatives,
        classes=tuple(map(tuple, classes)),
        source_of=None if mixture is None else mixture.place_of,
    )
    still = sum(map(made.keeps_codewords, examples))
    if still and any(name in MOVING for one in policies for name, _ in one.strengths):
        logger.warning(
            "%d of %d rows hold masks as codewords alone: their pictures are not flipped, cropped "
            "or zoomed; masks as outlines or run lengths could be moved",
            still,
            len(examples),
        )
    return made


def augmented(
    examples: Sequence[OwnExample], words: Sequence[str], model: str, seed: int
) -> list[OwnExample]:
    """Rows as a first visit shows them, for people to look at."""
    shown = Variety(
        seed=seed,
        policies=(Augmentation.of(words),),
        asking_of=find_task("own").asks,
        processor=load_processor(model, LoadOptions())[0],
    )
    return [cast(OwnExample, shown(one, 0)) for one in examples]
