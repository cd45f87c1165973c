"""`paligemma eval scenes`: the benchmark that draws its own pictures."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import click

from paligemma.cli.eval_run import SECTIONS, default_folder, html_option, json_option, report_run
from paligemma.cli.options import ModelChoice, NamedPath, model_options
from paligemma.cli.sections import SectionedCommand
from paligemma.cli.stopping import when_stopped
from paligemma.errors import ConfigError

if TYPE_CHECKING:
    from paligemma.pipeline.paligemma import PaliGemma

# Prompts about most pictures: four kinds, and for some captions too.
_PROMPTS_EACH = 4
_MAX_PICTURES = 1024
SHEET = "scenes.png"
# Files of a training checkpoint; a model folder has config.json instead of the second.
_STEP_FILES = ("model.safetensors", "state.json")


@click.command("scenes", cls=SectionedCommand, sections=SECTIONS)
@model_options
@click.option("--limit", default=1000, show_default=True, help="Pictures.")
@click.option("--seed", default=0, show_default=True, help="Which pictures.")
@click.option(
    "--things",
    metavar="known|FILE",
    help="Show everyday things too: those of the package, or the sprites of a zip file.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, _MAX_PICTURES),
    default=64,
    show_default=True,
    help="Pictures at a time.",
)
@click.option("--tasks", default=None, metavar="A,B", help="Only these tasks; all by default.")
@click.option(
    "--output",
    type=NamedPath(file_okay=False),
    metavar="RUN",
    help="Folder of the run; one below runs/eval by default. A run that is there goes on.",
)
@json_option
@html_option
@when_stopped("goes on where it stopped")
def scenes_command(
    model: ModelChoice,
    limit: int,
    seed: int,
    things: str | None,
    batch_size: int,
    tasks: str | None,
    output: Path | None,
    as_json: bool,
    with_page: bool,
) -> None:
    """Pictures drawn from a seed, with held-out handwriting; needs no download.

    MODEL may also be a step_NNNNNNN folder of a training under way.
    """
    from paligemma.eval.options import EvalOptions
    from paligemma.eval.runner import evaluate
    from paligemma.outputs.export import save_png
    from paligemma.scenes.things import KNOWN
    from paligemma.tasks.scenes.rows import SCENE_KINDS, SIZE_PX, scenes_task
    from paligemma.tiny.contact_sheet import contact_sheet
    from paligemma.whole_file import require_writable

    if things and things != KNOWN:
        things = os.path.abspath(things)  # a page is drawn anew from wherever its run is read
    kinds = SCENE_KINDS if tasks is None else tuple(part.strip() for part in tasks.split(","))
    # Everything that can be wrong is checked before a model is loaded.
    task = scenes_task(limit=limit, seed=seed, kinds=kinds, things=things)
    num_prompts = batch_size * min(_PROMPTS_EACH, len(kinds))
    options = EvalOptions(seed=seed, batch_size=num_prompts, num_workers=1)
    chosen = SimpleNamespace(limit=limit, seed=seed, batch_size=batch_size, kinds=kinds)
    if things is not None:
        chosen.things = things
    folder = output or default_folder(task, "heldout", model, None, chosen)
    require_writable(folder)
    click.echo(f"paligemma: the run is kept in {folder}", err=True)
    bundle = _load(model)
    processor = bundle.processor
    run = evaluate(
        scenes_task(
            limit=limit,
            seed=seed,
            size_px=min(SIZE_PX, processor.image_size_px),
            kinds=kinds,
            things=things,
        ),
        bundle,
        None,
        "heldout",
        replace(options, resize_method=processor.reader.resize_method),
        folder,
        model=model.label,
        command=shlex.join(["paligemma", *sys.argv[1:]]),
        progress=True,
    )
    report_run(task, run, as_json=as_json, with_page=with_page)
    save_png(contact_sheet(*run.answered()), folder / SHEET)
    click.echo(f"paligemma: wrote {folder / SHEET}", err=True)


def _load(choice: ModelChoice) -> PaliGemma:
    """A model to publish, or a training checkpoint with the embedded tokenizer and codec."""
    path = Path(choice.name)
    if not all((path / name).is_file() for name in _STEP_FILES):
        return choice.load()
    from paligemma.tiny.step_folder import load_step

    stated = {name: value for name, value in choice.options.items() if value}
    files = {name: Path(stated.pop(name)) for name in ("tokenizer", "mask_codec") if name in stated}
    if stated:
        raise ConfigError(
            "a training checkpoint is measured as it is, with --tokenizer and --mask-codec alone, "
            f"got {', '.join(stated)}; leave these options out"
        )
    return load_step(path, **files)
