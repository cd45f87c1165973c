"""`paligemma eval`: what a model scores, and how sure that is."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paligemma.cli.options import ModelChoice, model_options
from paligemma.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from paligemma.jobs.model_answerer import AskedModel
    from paligemma.tiny.scene_report import SceneReport

# A training step's own file beside the model; a model folder has config.json instead.
STEP_FILES = ("model.safetensors", "state.json")


@dataclass(frozen=True)
class Tool:
    """Where a command lives, and its line in the help of the group."""

    module: str
    function: str
    summary: str


_TOOLS_MODULE = "paligemma.cli.eval_tools"
TOOLS: dict[str, Tool] = {
    "list": Tool("paligemma.cli.eval_list", "list_command", "List the benchmarks, or tell of one."),
    "score": Tool(_TOOLS_MODULE, "score_command", "Score predictions that any program made."),
    "report": Tool(_TOOLS_MODULE, "report_command", "Score a run again, and write its page."),
    "compare": Tool(_TOOLS_MODULE, "compare_command", "Say which of two runs is better."),
    "calibrate": Tool(_TOOLS_MODULE, "calibrate_command", "Make a model's confidences honest."),
    "submission": Tool(_TOOLS_MODULE, "submission_command", "Write what a test server takes."),
    "vectors": Tool(_TOOLS_MODULE, "vectors_command", "Check the metrics on expected values."),
}


class EvalGroup(click.Group):
    """Tools, and every benchmark as a command; nothing is imported before it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*TOOLS, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        if cmd_name in TOOLS:
            entry = TOOLS[cmd_name]
            return getattr(importlib.import_module(entry.module), entry.function)
        return _benchmark(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            from paligemma.tasks.catalog import find_task

            find_task(args[0])  # raises, and offers what is near
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [("NAME", "A benchmark of `paligemma eval list`, on files of --data DIR.")]
        rows += [(name, command.short_help or "") for name, command in self.commands.items()]
        rows += [(name, entry.summary) for name, entry in TOOLS.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _benchmark(name: str) -> click.Command | None:
    from paligemma.cli.eval_run import task_command
    from paligemma.tasks.catalog import tasks

    task = tasks().get(name)
    return None if task is None else task_command(task)


@click.group("eval", cls=EvalGroup)
def eval_group() -> None:
    """Measure a model on a benchmark, and read what was measured.

    \b
    paligemma eval list
    paligemma eval docvqa --data docvqa/ --model google/paligemma-3b-ft-docvqa-896
    paligemma eval docvqa --help
    """


@eval_group.command("scenes", short_help="Pictures drawn from a seed; needs no download.")
@model_options
@click.option("--limit", default=1000, show_default=True, help="Pictures.")
@click.option("--seed", default=0, show_default=True, help="Which pictures.")
@click.option("--batch-size", default=64, show_default=True, help="Pictures at a time.")
@click.option("--tasks", default=None, metavar="A,B", help="Only these tasks; all by default.")
@click.option("--json", "as_json", is_flag=True, help="One object on standard output.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    metavar="DIR",
    help="Folder for the run, report.json and scenes.png; a run that was cut goes on.",
)
def scenes_command(
    model: ModelChoice,
    limit: int,
    seed: int,
    batch_size: int,
    tasks: str | None,
    as_json: bool,
    output: Path | None,
) -> None:
    """Pictures drawn from a seed, with held-out handwriting; needs no download.

    MODEL may also be a step_NNNNNNN folder of a training under way.
    """
    from paligemma.tasks.scenes.rows import KINDS, SIZE_PX
    from paligemma.tiny.scene_report import to_table, write_files
    from paligemma.tiny.scene_runner import SceneEvalOptions, evaluate_scenes

    asked = KINDS if tasks is None else tuple(part.strip() for part in tasks.split(","))
    # All that can be wrong is checked before a model is loaded for minutes.
    options = SceneEvalOptions(limit=limit, seed=seed, batch_size=batch_size, kinds=asked)
    if output is not None:
        _require_folder(output)
    bundle = _load(model)
    size_px = min(SIZE_PX, bundle.processor.image_size_px)
    options = replace(options, size_px=size_px)
    report = evaluate_scenes(bundle, options, name=model.name, folder=output, progress=True)
    if output is not None:
        write_files(report, output)
        click.echo(f"wrote {output}", err=True)
    click.echo(json.dumps(report.to_json()) if as_json else to_table(report))


def _require_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--output must name a folder that can be written, got {path} ({error}); name another"
        ) from error


def _load(choice: ModelChoice) -> AskedModel:
    """A model to publish, or a training checkpoint with the embedded tokenizer and codec."""
    if not is_step_folder(Path(choice.name)):
        return choice.load()
    stated = {name: value for name, value in choice.options.items() if value}
    embedded = Path(str(resources.files("paligemma"))) / "models" / "tiny"
    tokenizer = stated.pop("tokenizer", embedded / "tokenizer.model")
    codec = stated.pop("mask_codec", embedded / "mask_codec.safetensors")
    if stated:
        raise ConfigError(
            "a training checkpoint is measured as it is, with --tokenizer and --mask-codec alone, "
            f"got {', '.join(stated)}; leave these options out"
        )
    return load_step(Path(choice.name), Path(tokenizer), Path(codec))


def is_step_folder(path: Path) -> bool:
    """Whether this is a checkpoint of an unfinished training rather than a model to publish."""
    return all((path / name).is_file() for name in STEP_FILES)


def load_step(
    step_folder: Path,
    tokenizer_path: Path,
    codec_path: Path | None,
    *,
    image_size_px: int | None = None,
) -> AskedModel:
    """The model of a training checkpoint `step_NNNNNNN`, ready to be measured.

    Args:
        codec_path: mask codec; None leaves masks undecoded, so that segmentation scores 0.
        image_size_px: side of its input; read off the position table by default.

    Raises:
        CheckpointError: unreadable, or not of the embedded model's architecture.
    """
    from types import SimpleNamespace
    from typing import cast

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from paligemma.model import PaliGemmaModel
    from paligemma.outputs.vqvae import load_mask_codec
    from paligemma.pipeline.options import RunSettings
    from paligemma.processing.processor import Processor
    from paligemma.processing.tokenizer import Tokenizer
    from paligemma.tiny.start import PATCH_PX, tiny_config

    tokenizer = Tokenizer.from_file(tokenizer_path)
    path = step_folder / "model.safetensors"
    try:
        tensors = load_file(path)
        grid = round(tensors["vision.pos_embedding"].shape[1] ** 0.5)
        size_px = grid * PATCH_PX if image_size_px is None else image_size_px
        model = PaliGemmaModel(tiny_config(tokenizer.vocab, size_px))
        model.load_state_dict(tensors)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} must be a checkpoint of the embedded model's training, but it is not "
            f"({str(error)[:300]}); name a step_NNNNNNN folder and the tokenizer of that training"
        ) from error
    return cast(
        "AskedModel",
        SimpleNamespace(
            model=model.eval(),
            processor=Processor(tokenizer, size_px),
            mask_codec=None if codec_path is None else load_mask_codec(codec_path),
            settings=RunSettings(kv_cache_dtype="float32", weigh_locations=True),
        ),
    )


def evaluate_checkpoint(
    step_folder: Path,
    tokenizer_path: Path,
    codec_path: Path | None,
    *,
    limit: int = 200,
    seed: int = 0,
    image_size_px: int | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> SceneReport:
    """Measure a training checkpoint on pictures of its own size; arguments as for `load_step`."""
    from paligemma.tasks.scenes.rows import SIZE_PX
    from paligemma.tiny.scene_runner import SceneEvalOptions, evaluate_scenes

    bundle = load_step(step_folder, tokenizer_path, codec_path, image_size_px=image_size_px)
    options = SceneEvalOptions(
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        size_px=min(SIZE_PX, bundle.processor.image_size_px),
    )
    return evaluate_scenes(bundle, options, name=str(step_folder), progress=progress)
