"""Fine-tuning in one call: read, scan, train, measure before and after, keep."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch

from paligemma.adapt.lora import Adapter, LoraConfig, attach
from paligemma.errors import ConfigError, DataError
from paligemma.example import Example
from paligemma.jobs.model_answerer import fingerprint
from paligemma.model import PaliGemmaModel
from paligemma.one_writer import one_writer
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.tasks.mixture import MIXTURE, read_mixture
from paligemma.tasks.own.hub_set import is_hub_set, pinned
from paligemma.tasks.published import published
from paligemma.train.distributed import joined, world
from paligemma.train.loop import train
from paligemma.train.sharding import gathered
from paligemma.tuning.folder import REPORT, TRAIN, begin, require_own
from paligemma.tuning.going_on import become_longer, require_begun, start_from
from paligemma.tuning.keeping import keep, take_back, write
from paligemma.tuning.loggers import opened_loggers, require_loggers
from paligemma.tuning.loop_inputs import (
    loop_options,
    objective_of,
    prepare,
    require_trainable,
    source_of,
)
from paligemma.tuning.overfit import chosen_rows, inexact_answers
from paligemma.tuning.recipe import Recipe, RecipeKeywords, part_lines, part_table
from paligemma.tuning.replay import kept_share, replay_of
from paligemma.tuning.report import ReportInputs, report_page
from paligemma.tuning.result import FigureChange, FinetuneRun
from paligemma.tuning.rows import codec_of, read_rows
from paligemma.tuning.setup import Setup, loaded, task_of, with_text_len
from paligemma.tuning.watching import Judge, Look, Validation, digest, say
from paligemma.whole_file import write_json, write_whole

logger = logging.getLogger(__name__)

_MAX_SHOWN = 5
# Most of a GPU's memory that a divided model may take when it is gathered to be looked at.
_GATHERED_SHARE = 0.6


def finetune(
    model: str = "tiny",
    *,
    data: str | Path | None = None,
    mixture: str | Path | Mapping[str, Any] | None = None,
    output: str | Path,
    task: str | None = None,
    transfer: str | None = None,
    recipe: str | None = None,
    resume: bool = False,
    init_from: str | Path | None = None,
    extend: bool = False,
    log_to: Sequence[str] = (),
    device: str | None = None,
    num_workers: int = 1,
    progress: bool = True,
    hang_after: float = 1800.0,
    save: str = "background",
    parallel: str | None = None,
    **options: Unpack[RecipeKeywords],
) -> FinetuneRun:
    """Teach a model a task, or go on with a run that was cut.

    Args:
        model: name, folder or file, as `PaliGemma.from_pretrained` takes it.
        data: folder of the task's files; for "own", train.jsonl and perhaps valid.jsonl, labels in
            another format, or `hub:owner/name[@revision]`. Without held-out rows, a tenth of the
            rows is held out, at most 200.
        mixture: several sets with weights in the place of `data`: a file, or what it holds; see
            `tasks.mixture`.
        output: folder of the run; new, or of the same run.
        task: name of a benchmark whose files these are; a user's own rows by default.
        transfer: published transfer whose recipe is followed, such as "docvqa"; `options` replace
            single values of it.
        recipe: "stage1", "stage2a", "stage2b" or "simple", a table of `tuning.stages` that is
            followed likewise.
        resume: refuse to begin anew. The same call goes on with a run in any case.
        init_from: folder of a run, an adapter or a model, whose weights are begun with; optimiser
            and schedule are new. An adapter keeps its shape.
        extend: let the finished run of the folder become a longer one, see `become_longer`.
        log_to: "tensorboard", "trackio" or "wandb", which show the lines of metrics as well.
        device: as in `LoadOptions`.
        num_workers: processes that read pictures.
        progress: show bars on standard error.
        hang_after: seconds after which a step ends the run, and says what it hangs on.
        save: "background" writes checkpoints while the next steps run, from a copy of what is
            trained and of its moments in the host's memory; "inline" between two steps.
        parallel: of the processes that torchrun starts, "replicate" keeps the whole model in each,
            "shard" divides it; by default adapters are replicated and whole models divided.
        options: fields of `Recipe`: lora (also True, the default, or False), epochs, lr, ...

    Raises:
        DataError: no good row to learn from.
        ConfigError: an option is unknown or out of its range, another process writes to the
            folder, it holds files of the user, or it cannot be written.
        CheckpointError: another run lies in the folder.
    """
    if (data is None) == (mixture is None):
        raise ConfigError("a fine-tuning has data or a mixture; give one of the two")
    if data is not None and is_hub_set(data):
        data = pinned(data)
    elif data is not None and not Path(data).exists():
        raise DataError(
            f"rows lie in a file or a folder, there is no {str(data)!r}; check the path"
        )
    if mixture is not None and (task or transfer):
        raise ConfigError(
            "the sources of a mixture name their own tasks, got a task or a transfer beside it; "
            "leave it out"
        )
    if init_from is not None and isinstance(options.get("lora"), LoraConfig):
        raise ConfigError(
            "an adapter that is begun with keeps its shape, got another beside init_from; leave "
            "rank, alpha and parts out"
        )
    require_loggers(log_to)
    mixed = None
    if mixture is not None:
        mixed = read_mixture(mixture if isinstance(mixture, Mapping) else Path(mixture))
    processor, numbers = loaded(
        options, model, transfer, recipe, init_from=init_from, device=device, progress=progress
    )
    found = task_of(task, transfer) if mixed is None else mixed.task()
    setup = Setup(
        model=model,
        processor=processor,
        task=with_text_len(found, numbers.text_len),
        transfer=transfer,
        named=recipe,
        recipe=numbers,
        data=Path(mixture if isinstance(mixture, str | Path) else data or MIXTURE),
        mixture=mixed,
        folder=Path(output),
        init_from=None if init_from is None else str(init_from),
        resume=resume,
        extend=extend,
        log_to=tuple(log_to),
        device=device,
        num_workers=num_workers,
        progress=progress,
        hang_after=hang_after,
        save=save,
        parallel=parallel,
    )
    with joined(device) as own:
        shown = progress and world().is_first
        return _begun(replace(setup, device=own, progress=shown))


def _begun(setup: Setup) -> FinetuneRun:
    here = world()
    with ExitStack() as stack:
        here.on_first(lambda: stack.enter_context(one_writer(setup.folder)))
        here.on_first(lambda: require_own(setup.folder))
        for how in ("resume", "extend"):
            if getattr(setup, how):
                here.on_first(partial(require_begun, setup.folder, how))
        run, learnt = _run(setup)
        if setup.recipe.overfit is None:
            return run
        # The trained model is gone by now, which makes room for those that are loaded anew.
        again = partial(inexact_answers, setup.task, setup.model, run.result, learnt)
        inexact = here.on_first(lambda: again(is_adapter=run.adapter is not None))
        return replace(run, inexact=tuple(inexact))


def _run(setup: Setup) -> tuple[FinetuneRun, Sequence[Example]]:
    recipe, folder = setup.recipe, setup.folder
    learnt, held_out, skipped = read_rows(
        setup.task,
        setup.data,
        setup.processor,
        codec_of(setup.model),
        transfer=setup.transfer,
        progress=setup.progress,
    )
    if setup.mixture is not None:
        setup.mixture.require_rows(learnt)
    if recipe.overfit is not None:
        learnt = held_out = chosen_rows(learnt, recipe.overfit)
    asked = PaliGemma.from_pretrained(
        setup.model,
        device=setup.device,
        mode=None if recipe.lora is not None else "exact",
        quant=recipe.quant,
        image_size_px=recipe.size_px,
    )
    _say_skipped(skipped, folder)
    adapter = None
    if setup.init_from is not None:
        adapter = start_from(setup.init_from, asked.model, recipe.lora)
        if adapter is not None:
            attach(asked.model, adapter)
            recipe = replace(recipe, lora=adapter.config)
            setup = replace(setup, recipe=recipe)
    elif recipe.lora is not None:
        adapter = Adapter.new(asked.model, recipe.lora, seed=recipe.seed)
    described = _described(setup, asked.model, learnt, held_out)
    options = loop_options(setup, len(learnt))
    require_trainable(asked.model, adapter, setup, options)
    if setup.extend:
        world().on_first(lambda: become_longer(folder, described, options.total_steps))
    world().on_first(lambda: begin(folder, described))
    validation = _validation(setup, asked, adapter, held_out, options.total_steps)
    if validation is not None:
        validation.before()
    replayed = replay_of(setup.task, asked, learnt, folder) if recipe.replay else None
    prepare(asked.model, adapter, setup)
    parts = part_table(asked.model, recipe.optim())
    for line in part_lines(parts):
        say(setup.progress, line)
    shown_in = setup.log_to if world().is_first else ()
    with opened_loggers(shown_in, folder, described) as log:
        if validation is not None:
            validation.log = log
        ended = train(
            asked.model,
            objective_of(setup, asked.model, recipe.label_smoothing),
            source_of(setup, asked, learnt, replayed=replayed),
            recipe.optim(),
            options,
            folder / TRAIN,
            settings=described,
            watch=validation,
            log=log,
        )
    kept = None if validation is None else _choose(validation, recipe, asked.model, adapter)
    result = keep(asked.model, adapter, folder, base=setup.model)
    figures: tuple[FigureChange, ...] = ()
    if validation is not None and kept is not None:
        before = validation.before().figures
        figures = tuple(
            FigureChange(name=name, before=before[name], after=value)
            for name, value in kept.figures.items()
            if name in before
        )
    base_tasks = []
    if replayed is not None:
        with gathered(asked.model):
            base_tasks = kept_share(setup.task, asked, replayed.held_out)
    report = {
        "recipe": described,
        "steps": options.total_steps,
        "steps_done": ended["step"],
        "kept": None
        if kept is None
        else {"step": kept.step, "rule": "best" if recipe.keeps_best else "last"},
        "rows": {"learnt": len(learnt), "held_out": len(held_out), "skipped": len(skipped)},
        "parts": parts,
        "figures": [asdict(one) for one in figures],
        "base_tasks": base_tasks,
        "skipped": list(skipped),
    }
    run = FinetuneRun(
        folder=folder,
        result=result,
        figures=figures,
        skipped=tuple(skipped),
        updates=ended["step"] - ended["begun_at"],
    )

    def record() -> None:
        write_json(folder / REPORT, report)
        write_whole(run.report, [_page(setup, asked, validation, kept, report, run.metrics)])

    world().on_first(record)
    return run, learnt


def _page(
    setup: Setup,
    asked: PaliGemma,
    validation: Validation | None,
    kept: Look | None,
    record: dict[str, Any],
    metrics: list[dict[str, Any]],
) -> str:
    made = ReportInputs(record=record, metrics=metrics)
    if validation is not None and kept is not None:
        judge = validation.judge
        before, after = (validation.answers_of(one) for one in (0, kept.step))
        has_masks = any("<seg" in one.text for one in after)
        side_px = setup.processor.image_size_px
        names = {one["name"] for one in record["figures"]}
        beside = [one for one in published(setup.task) if one.measure in names]
        made = replace(
            made,
            looks=validation.looks,
            before=judge.scored(before) if before else None,
            after=judge.scored(after) if after else None,
            codec=asked.mask_codec if has_masks else None,
            published=sorted(beside, key=lambda one: one.resolution != side_px),
        )
    return report_page(made)


def _say_skipped(skipped: Sequence[str], folder: Path) -> None:
    for sentence in skipped[:_MAX_SHOWN]:
        logger.warning("skipped: %s", sentence)
    if len(skipped) > _MAX_SHOWN:
        logger.warning("skipped: %d rows more; see %s", len(skipped) - _MAX_SHOWN, folder / REPORT)


def _described(
    setup: Setup, model: PaliGemmaModel, learnt: Sequence[Example], held_out: Sequence[Example]
) -> dict[str, Any]:
    """Everything that changes the result, as recipe.json and checkpoints hold it."""
    return {
        "model": setup.model,
        "weights": fingerprint(model),
        "task": setup.task.name,
        "transfer": setup.transfer,
        "init_from": setup.init_from,
        "named": setup.named,
        "data": str(setup.data),
        "mixture": None
        if setup.mixture is None
        else [one.to_json() for one in setup.mixture.sources],
        "rows": digest(learnt),
        "held_out": digest(held_out),
        **setup.recipe.to_json(),
        "compute": str(setup.recipe.compute_dtype(model.device)).removeprefix("torch."),
    }


def _validation(
    setup: Setup,
    asked: PaliGemma,
    adapter: Adapter | None,
    held_out: Sequence[Example],
    num_steps: int,
) -> Validation | None:
    """What looks at the held-out rows; None where there are none."""
    recipe, device = setup.recipe, asked.model.device
    if setup.is_sharded and device.type == "cuda":
        needed = 4 * sum(p.numel() for p in asked.model.parameters())
        room = torch.cuda.get_device_properties(device).total_memory
        if needed > _GATHERED_SHARE * room:
            logger.warning(
                "held-out rows are measured with the whole model in every process: %.0f GB leave "
                "too little of %.0f GB; measure what is kept with `paligemma eval`",
                needed / 1e9,
                room / 1e9,
            )
            return None
    if not held_out:
        return None
    judge = Judge(
        task=setup.task,
        asked=asked,
        examples=held_out,
        source=source_of(setup, asked, held_out, is_drawn=False),
        objective=objective_of(setup, asked.model),
        noise_piece=recipe.noise_piece,
        name=setup.model,
        progress=setup.progress,
    )
    # A copy of a whole model is large, and is written only where it may be what is kept.
    saves = adapter is not None or recipe.keeps_best
    return Validation(
        judge,
        setup.folder,
        every=recipe.looks_every(num_steps),
        patience=recipe.patience,
        until_exact=recipe.overfit is not None,
        save=partial(write, asked.model, adapter, base=setup.model) if saves else None,
    )


def _choose(
    validation: Validation, recipe: Recipe, model: PaliGemmaModel, adapter: Adapter | None
) -> Look:
    """The look at what is kept, which the model then is: the last one, or the best."""
    last, best = validation.looks[-1], validation.best
    if not recipe.keeps_best or best is None or best.step == last.step:
        return last
    take_back(model, adapter, validation.best_folder(best.step))
    return best
