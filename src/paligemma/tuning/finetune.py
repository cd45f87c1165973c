"""Fine-tuning in one call: read, scan, train, measure before and after, keep."""

from __future__ import annotations

import json
import logging
import math
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Unpack

import torch
from tqdm import tqdm

from paligemma.adapt.checkpointing import checkpoint_blocks
from paligemma.adapt.lora import Adapter, LoraConfig, attach
from paligemma.errors import ConfigError, DataError
from paligemma.example import Example, Prediction
from paligemma.jobs.answerer import answered
from paligemma.jobs.model_answerer import ModelAnswerer, fingerprint
from paligemma.json_file import read_json
from paligemma.one_writer import one_writer
from paligemma.pipeline.loading import LoadOptions, load_processor
from paligemma.pipeline.options import chosen
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.processing.processor import Processor
from paligemma.tasks.catalog import find_task, tasks
from paligemma.tasks.published import transfer_recipe
from paligemma.tasks.task import Task
from paligemma.train.examples import ExampleSource, SuffixLoss
from paligemma.train.loop import LoopOptions, train
from paligemma.tuning.folder import ADAPTER, BEFORE, MODEL, REPORT, TRAIN, begin, require_own
from paligemma.tuning.recipe import Recipe, RecipeKeywords, part_table
from paligemma.tuning.rows import codec_of, read_rows
from paligemma.weights.adapter import load_adapter, save_adapter
from paligemma.weights.catalog import resolve
from paligemma.weights.save import SIDE_FILES, save_model
from paligemma.whole_file import write_json

logger = logging.getLogger(__name__)

_BATCH = 8
_MAX_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class FigureChange:
    """One figure before and after, times 100 where it is a share."""

    name: str
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class FinetuneRun:
    """What a fine-tuning left.

    Attributes:
        folder: folder of the run.
        result: folder of the adapter, or of the model.
        figures: figures of held-out rows before and after.
        skipped: sentences on rows that were left out.
    """

    folder: Path
    result: Path
    figures: tuple[FigureChange, ...]
    skipped: tuple[str, ...]


def finetune(
    model: str = "tiny",
    *,
    data: str | Path,
    output: str | Path,
    task: str | None = None,
    transfer: str | None = None,
    device: str | None = None,
    num_workers: int = 1,
    progress: bool = True,
    **options: Unpack[RecipeKeywords],
) -> FinetuneRun:
    """Teach a model a task, or go on with a run that was cut.

    Args:
        model: name, folder or file, as `PaliGemma.from_pretrained` takes it.
        data: folder of the task's files; for "own", train.jsonl and perhaps valid.jsonl. Without
            held-out rows, a tenth of the rows is held out, at most 200.
        output: folder of the run; new, or of the same run.
        task: name of a benchmark whose files these are; a user's own rows by default.
        transfer: published transfer whose recipe is followed, such as "docvqa"; `options` replace
            single values of it.
        device: as in `LoadOptions`.
        num_workers: processes that read pictures.
        progress: show bars on standard error.
        options: fields of `Recipe`: lora (also True, the default, or False), epochs, lr, ...

    Raises:
        DataError: no good row to learn from.
        ConfigError: an option is unknown or out of its range, another process writes to the
            folder, it holds files of the user, or it cannot be written.
        CheckpointError: another run lies in the folder.
    """
    if not Path(data).exists():
        raise DataError(
            f"rows lie in a file or a folder, there is no {str(data)!r}; check the path"
        )
    processor, _ = load_processor(model, LoadOptions(device=device))
    found = _task_of(task, transfer)
    recipe = recipe_of(options, transfer, processor.image_size_px)
    folder = Path(output)
    with one_writer(folder):
        require_own(folder)
        return _run(
            model,
            found,
            recipe=recipe,
            data=Path(data),
            folder=folder,
            processor=processor,
            transfer=transfer,
            device=device,
            num_workers=num_workers,
            progress=progress,
        )


def _run(
    model: str,
    found: Task,
    *,
    recipe: Recipe,
    data: Path,
    folder: Path,
    processor: Processor,
    transfer: str | None,
    device: str | None,
    num_workers: int,
    progress: bool,
) -> FinetuneRun:
    learnt, held_out, skipped = read_rows(found, data, processor, codec_of(model))
    asked = PaliGemma.from_pretrained(
        model, device=device, mode=None if recipe.lora is not None else "exact"
    )
    for sentence in skipped[:_MAX_SHOWN]:
        logger.warning("skipped: %s", sentence)
    if len(skipped) > _MAX_SHOWN:
        logger.warning("skipped: %d rows more; see %s", len(skipped) - _MAX_SHOWN, folder / REPORT)
    described = {
        "model": model,
        "weights": fingerprint(asked.model),
        "task": found.name,
        "transfer": transfer,
        "data": str(data),
        "rows": _digest(learnt),
        **recipe.to_json(),
        "compute": str(recipe.compute_dtype(asked.model.device)).removeprefix("torch."),
    }
    begin(folder, described)
    adapter = None
    if recipe.lora is not None:
        adapter = Adapter.new(asked.model, recipe.lora, seed=recipe.seed)
    before = _measured(found, asked, held_out, folder / BEFORE, described, progress)
    if adapter is not None:
        attach(asked.model, adapter)
    _set_dropout(asked.model, recipe.dropout)
    if recipe.checkpointing:
        checkpoint_blocks([*asked.model.vision.blocks, *asked.model.text.blocks])
    source = ExampleSource(
        examples=learnt,
        asking_of=found.asks,
        processor=asked.processor,
        batch_size=recipe.batch_size,
        micro_size=recipe.micro_size,
        order=recipe.order,
        mean=recipe.mean,
        seed=recipe.seed,
    )
    steps = recipe.num_steps(len(learnt))
    train(
        asked.model,
        SuffixLoss(
            recipe.label_smoothing,
            mean=recipe.mean,
            compute_dtype=recipe.compute_dtype(asked.model.device),
        ),
        source,
        recipe.optim(),
        LoopOptions(
            total_steps=steps,
            log_every=max(1, min(50, steps // 20)),
            save_every=max(10, min(250, steps // 10)),
            num_workers=num_workers,
            progress=progress,
            keeps_frozen=adapter is None,
            dropout_seed=recipe.seed,
            batch_size=recipe.batch_size,
            data_size=len(learnt),
        ),
        folder / TRAIN,
        settings=described,
    )
    parts = part_table(asked.model, recipe.optim())
    after = _measured(found, asked, held_out, None, described, progress)
    result = _kept(asked, adapter, folder, model)
    figures = tuple(
        FigureChange(name=name, before=before[name], after=value)
        for name, value in after.items()
        if name in before
    )
    report = {
        "recipe": described,
        "steps": steps,
        "rows": {"learnt": len(learnt), "held_out": len(held_out), "skipped": len(skipped)},
        "parts": parts,
        "figures": [asdict(one) for one in figures],
        "skipped": list(skipped),
    }
    write_json(folder / REPORT, report)
    return FinetuneRun(folder=folder, result=result, figures=figures, skipped=tuple(skipped))


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
    if transfer is None:
        return chosen(Recipe, stated)
    published = Recipe.of_transfer(transfer, size_px)
    if config is not None:
        published = replace(published, freeze=())
    if "epochs" in stated:
        published = replace(published, steps=None)
    names = [field.name for field in fields(Recipe)]
    return chosen(Recipe, {**{name: getattr(published, name) for name in names}, **stated})


def _task_of(task: str | None, transfer: str | None) -> Task:
    """The benchmark of a name; of a transfer the one that it was trained for."""
    if task is not None or transfer is None:
        return find_task(task or "own")
    trained = [one for one in tasks().values() if one.transfer == transfer and not one.is_zero_shot]
    if not trained:
        transfer_recipe(transfer)
        raise ConfigError(f"no benchmark here has the transfer {transfer}; name one with task")
    return trained[0]


def _measured(
    task: Task,
    asked: PaliGemma,
    examples: Sequence[Example],
    cached: Path | None,
    described: dict[str, Any],
    progress: bool,
) -> dict[str, float]:
    """The figures of the task's own scorer, times 100 where they are shares."""
    if not examples:
        return {}
    key = {"run": json.loads(json.dumps(described)), "rows": _digest(examples)}
    if cached is not None and cached.is_file():
        # Figures that are damaged are measured again.
        with suppress(OSError, ValueError, TypeError, LookupError, AttributeError):
            stored = read_json(cached)
            if stored["key"] == key:
                return {str(name): float(value) for name, value in stored["figures"].items()}
    measures = task.score(examples, _answers(task, asked, examples, progress))
    # A value is computed anew whenever it is asked for.
    values = {one.name: one.value * one.scale for one in measures}
    found = {name: round(value, 4) for name, value in values.items() if not math.isnan(value)}
    if cached is not None:
        write_json(cached, {"key": key, "figures": found})
    return found


def _answers(
    task: Task, asked: PaliGemma, examples: Sequence[Example], progress: bool
) -> list[Prediction]:
    starts = range(0, len(examples), _BATCH)
    batches = [(start, list(examples[start : start + _BATCH])) for start in starts]
    found = answered(ModelAnswerer(asked, task.asks), batches, num_workers=1)
    shown = tqdm(found, desc="measuring", total=len(batches), unit="batch", disable=not progress)
    return [prediction for _, predictions in shown for prediction in predictions]


def _kept(asked: PaliGemma, adapter: Adapter | None, folder: Path, base: str) -> Path:
    """Write what was learnt, read it back, and refuse it unless it is the same."""
    if adapter is None:
        return save_model(
            asked.model,
            folder / MODEL,
            extra_files=side_files(base),
            overwrite=True,
        )
    target = folder / ADAPTER
    if not target.exists():
        save_adapter(adapter, asked.model, target, base=base)
    again = load_adapter(target, asked.model)
    written, read = dict(adapter.named_parameters()), dict(again.named_parameters())
    if written.keys() != read.keys() or not all(
        torch.equal(written[name].cpu(), read[name].cpu()) for name in written
    ):
        raise ConfigError(
            f"{target} holds another adapter than this run learnt; remove it or name another "
            "output folder"
        )
    if not adapter.is_active:
        logger.warning("the adapter changes nothing: train longer, or with a higher learning rate")
    return target


def _set_dropout(model: torch.nn.Module, dropout: float) -> None:
    for block in model.text.blocks:  # type: ignore[union-attr]
        block.dropout = dropout


def _digest(examples: Sequence[Example]) -> str:
    crc = 0
    for one in examples:
        crc = zlib.crc32(repr((one.id, one.prefix, one.targets)).encode(), crc)
    return f"{crc:08x}"


def side_files(base: str) -> list[Path]:
    """What belongs to a model beside its weights: tokenizer, mask codec, calibration."""
    folder = resolve(base).folder
    return [folder / name for name in SIDE_FILES if (folder / name).is_file()]
