"""What the loop is given for a fine-tuning: a model made ready, batches, the loss, its options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from paligemma.adapt.checkpointing import checkpoint_blocks
from paligemma.adapt.lora import Adapter, attach, detach
from paligemma.example import Example
from paligemma.model import PaliGemmaModel
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.train.distributed import world
from paligemma.train.examples import ORDERS, ExampleSource, SuffixLoss
from paligemma.train.loop import LoopOptions
from paligemma.train.optim import Optimizer
from paligemma.train.sharding import shard
from paligemma.tuning.replay import Replay, asks, mixed_in
from paligemma.tuning.setup import SAVES, Setup, variety


def objective_of(setup: Setup, model: PaliGemmaModel, label_smoothing: float = 0.0) -> SuffixLoss:
    """The loss of a fine-tuning; what is measured with is not smoothed."""
    recipe = setup.recipe
    return SuffixLoss(
        label_smoothing, mean=recipe.mean, compute_dtype=recipe.compute_dtype(model.device)
    )


def require_trainable(
    model: PaliGemmaModel, adapter: Adapter | None, setup: Setup, options: LoopOptions
) -> None:
    """Set the update rule up and drop it, so that options that do not fit leave no run behind.

    Raises:
        ConfigError: as `Optimizer` does.
        MissingExtraError: the update rule needs a package that is not installed.
    """
    if adapter is not None:
        attach(model, adapter)
    Optimizer(
        model,
        replace(setup.recipe.optim(), average=None),
        total_steps=options.total_steps,
        batch_size=options.batch_size,
        data_size=options.data_size,
    )
    if adapter is not None and setup.init_from is None:
        detach(model)


def prepare(model: PaliGemmaModel, adapter: Adapter | None, setup: Setup) -> None:
    """Make a model ready for its first step: adapter, dropout, blocks computed again, shards."""
    recipe = setup.recipe
    if adapter is not None:
        attach(model, adapter)
    for block in model.text.blocks:
        block.dropout = recipe.dropout  # type: ignore[assignment]
    if recipe.checkpointing:
        checkpoint_blocks([*model.vision.blocks, *model.text.blocks])
    if setup.is_sharded:
        shard(model)


def source_of(
    setup: Setup,
    asked: PaliGemma,
    examples: Sequence[Example],
    *,
    is_drawn: bool = True,
    replayed: Replay | None = None,
) -> ExampleSource:
    """Batches of some rows; what is measured with is shown as it is."""
    recipe, is_trained = setup.recipe, is_drawn
    # Rows that are learnt by heart are shown as they are.
    is_drawn = is_drawn and recipe.overfit is None
    mixture = setup.mixture if is_drawn else None
    tasks = [setup.task] if mixture is None else [one.task for one in mixture.sources]
    source = ExampleSource(
        examples=examples,
        asking_of=setup.task.asks if replayed is None else partial(asks, setup.task),
        processor=asked.processor,
        batch_size=recipe.batch_size,
        micro_size=recipe.micro_size,
        order=recipe.order if is_drawn else ORDERS[0],
        mean=recipe.mean,
        drawing=frozenset(k for k, task in enumerate(tasks) if task.draws_targets),
        noise_piece=recipe.noise_piece,
        seed=recipe.seed,
        weights=() if mixture is None else mixture.weights,
        source_of=None if mixture is None else mixture.place_of,
        vary=variety(setup, examples) if is_drawn else None,
        max_tokens=recipe.batch_tokens,
        tokens_a_picture=asked.config.num_image_tokens,
        world=world(),
        aligned=setup.is_sharded and is_trained,
    )
    return source if replayed is None else mixed_in(source, replayed, recipe.replay)


def loop_options(setup: Setup, num_rows: int) -> LoopOptions:
    """How long the loop runs, and how often it logs and saves."""
    recipe = setup.recipe
    steps = recipe.num_steps(num_rows)
    return LoopOptions(
        total_steps=steps,
        log_every=max(1, min(50, steps // 20)),
        save_every=max(10, min(250, steps // 10)),
        num_workers=setup.num_workers,
        progress=setup.progress,
        hang_after=setup.hang_after,
        saves_in_background=setup.save == SAVES[0],
        keeps_frozen=recipe.lora is None,
        dropout_seed=recipe.seed,
        batch_size=recipe.batch_size,
        data_size=num_rows,
    )
