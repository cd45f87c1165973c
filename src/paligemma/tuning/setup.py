"""What a fine-tuning is asked for, before anything is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from paligemma.adapt.lora import LoraConfig
from paligemma.config import PaliGemmaConfig
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
from paligemma.train.distributed import world
from paligemma.train.optim import require_divisible
from paligemma.train.varied import Variety
from paligemma.tuning.folder import recipe_of_model, stored_recipe
from paligemma.tuning.recipe import Recipe, RecipeKeywords
from paligemma.tuning.rows import codec_of
from paligemma.tuning.stages import PUBLISHED_LR, recipe_values, swept_lr
from paligemma.tuning.watching import say
from paligemma.weights.catalog import resolve

logger = logging.getLogger(__name__)

# Learning a few rows by heart needs more than the defaults; it ends as soon as it is done. The
# rates are of the whole model and of an adapter.
OVERFIT: dict[str, Any] = {"steps": 300, "eval_every": 20, "label_smoothing": 0.0, "dropout": 0.0}
OVERFIT_LR = (1e-4, 1e-3)
PARALLEL = ("replicate", "shard")
SAVES = ("background", "inline")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One fine-tuning, as it is asked for.

    Attributes:
        model: name, folder or file of the model to begin with.
        processor: the model's processor.
        task: how rows are read, asked and scored.
        transfer: published transfer whose recipe is followed, or None.
        named: recipe of `tuning.stages` that is followed, or None.
        recipe: every number that changes the result.
        data: folder or file of the rows, or file of the mixture.
        folder: folder of the run.
        init_from: run, adapter or model whose weights are begun with; None is the model's own.
        resume: whether a run must have begun in the folder.
        extend: whether a finished run of the folder becomes a longer one.
        log_to: names of `loggers.LOGGERS`.
        device: as in `LoadOptions`.
        num_workers: processes that read pictures.
        progress: whether bars are shown.
        hang_after: see `LoopOptions`.
        save: one of `SAVES`.
        mixture: the sets that are learnt together, or None.
        parallel: one of `PARALLEL`; None replicates adapters and shards whole models.
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
    log_to: tuple[str, ...] = ()
    device: str | None = None
    named: str | None = None
    num_workers: int = 1
    progress: bool = True
    hang_after: float = 1800.0
    save: str = SAVES[0]
    mixture: Mixture | None = None
    parallel: str | None = None

    def __post_init__(self) -> None:
        if self.parallel not in (None, *PARALLEL):
            raise ConfigError(
                f"parallel must be one of {', '.join(PARALLEL)}, got {self.parallel!r}"
            )
        if self.save not in SAVES:
            raise ConfigError(f"save must be one of {', '.join(SAVES)}, got {self.save!r:.80}")
        if self.parallel == "shard" and self.recipe.lora is not None:
            raise ConfigError(
                "a whole model is divided among processes, an adapter and its base are not; leave "
                "parallel out, or train with --full"
            )
        if self.is_sharded:
            require_divisible(self.recipe.rule)
        if self.is_sharded and self.recipe.keeps_best:
            raise ConfigError(
                "a run of a divided model keeps its last state; leave --patience and --keep best "
                "out, or name --parallel replicate"
            )

    @property
    def is_sharded(self) -> bool:
        """Whether the model is divided among the processes of the run."""
        chosen = self.parallel or ("replicate" if self.recipe.lora is not None else "shard")
        return world().size > 1 and chosen == "shard"


def loaded(
    options: RecipeKeywords,
    model: str,
    transfer: str | None,
    named: str | None,
    *,
    init_from: str | Path | None,
    device: str | None,
    progress: bool,
) -> tuple[Processor, Recipe]:
    """The processor of a model and the recipe of a fine-tuning of it; see `finetune`."""
    if named is not None and transfer is not None:
        raise ConfigError("a fine-tuning follows a transfer or a recipe; give one of the two")
    size_px = options.get("size_px") or (named and recipe_values(named).get("size_px"))
    resolve(model).require_plain("a fine-tuning")
    if device is not None and "," in device:
        raise ConfigError(
            f"a fine-tuning computes on one device, got {device:.100}; start it with torchrun to "
            "use several GPUs"
        )
    processor, config = load_processor(
        model, LoadOptions(device=device, image_size_px=size_px or None)
    )
    recipe = recipe_of(
        options,
        transfer,
        processor.image_size_px,
        named=named,
        model=config,
        before=stored_recipe(Path(init_from)) if init_from else recipe_of_model(Path(model)),
        progress=progress,
    )
    return processor, recipe


def recipe_of(
    options: RecipeKeywords,
    transfer: str | None = None,
    size_px: int = 224,
    *,
    named: str | None = None,
    model: PaliGemmaConfig | None = None,
    before: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Recipe:
    """The recipe of some keywords; `lora=True` is the default adapter, `False` none.

    Args:
        transfer: published transfer that gives the values which `options` leave open.
        size_px: side of the model's pictures, by which a transfer's values differ.
        named: a recipe of `tuning.stages` that gives them.
        model: config of the model, by whose size learning rates differ.
        before: recipe of the run that made the model; a later stage goes on with its schedule.
        progress: show published figures that decide.

    Raises:
        ConfigError: an option, a transfer or a recipe is unknown, or a value out of its range.
    """
    lora = options.get("lora", transfer is None and named is None)
    config = LoraConfig() if lora is True else lora or None
    stated: dict[str, Any] = {**options, "lora": config}
    if isinstance(stated.get("lr"), str):
        stated["lr"], lines = _published_lr(stated["lr"], transfer, model)
        for line in lines:
            say(progress, line)
    if overfit := options.get("overfit"):
        by_heart = OVERFIT | {"batch_size": overfit, "lr": OVERFIT_LR[config is not None]}
        if "epochs" in options:
            by_heart["steps"] = None
        stated = by_heart | stated
    base: dict[str, Any] = {}
    if transfer is not None:
        published = Recipe.of_transfer(transfer, size_px)
        base = {field.name: getattr(published, field.name) for field in fields(Recipe)}
    elif named is not None:
        base = recipe_values(named, model, batch_size=options.get("batch_size"), before=before)
    if config is not None:
        base.pop("freeze", None)
    if "epochs" in stated:
        base.pop("steps", None)
    return chosen(Recipe, {**base, **stated})


def _published_lr(
    word: str, transfer: str | None, model: PaliGemmaConfig | None
) -> tuple[float, list[str]]:
    if word != PUBLISHED_LR or transfer is None or model is None:
        raise ConfigError(
            f"lr is a number, or {PUBLISHED_LR!r} beside a transfer for the choice of PaliGemma "
            f"2's sweep, got {word!r:.80}; give a number"
        )
    return swept_lr(transfer, model)


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
    policies, redraws = [Augmentation.of(recipe.augment)], [setup.task.redraw]
    if mixture is not None:
        redraws = [one.task.redraw for one in mixture.sources]
        stated = [one.augment for one in mixture.sources]
        policies = [policies[0] if one is None else Augmentation.of(one) for one in stated]
    if not (recipe.negatives or any(redraws) or any(one.strengths for one in policies)):
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
        redraws=tuple(redraws),
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
