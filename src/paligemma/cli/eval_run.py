"""`paligemma eval NAME`: a benchmark as a command, made from its row of the catalogue."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paligemma.cli.options import ModelChoice, NamedPath, model_options
from paligemma.cli.sections import ASKING, SectionedCommand, Sections
from paligemma.cli.show import echo_json
from paligemma.cli.stopping import when_stopped
from paligemma.errors import ConfigError, DataError, PaliGemmaError
from paligemma.example import ALL_CLASSES, NOISE

if TYPE_CHECKING:
    import numpy as np

    from paligemma.eval.options import EvalOptions
    from paligemma.eval.page_parts import Pictures
    from paligemma.example import Example
    from paligemma.jobs.run_folder import Run
    from paligemma.tasks.task import Task

RUNS = Path("runs") / "eval"
PAGE = "report.html"
# The rule that names a metric, where a benchmark offers one.
METRIC = "metric"
SECTIONS: Sections = {
    "Data": ("data", "split", "limit", "seed", "tasks"),
    "Model": ASKING["Model"],
    "Output": ("output", "as_json", "with_page", "max_failed"),
    "Instead of the benchmark's own": (
        "prompt",
        "max_new_tokens",
        "num_beams",
        "resize_method",
        "image_size_px",
        "noise_piece",
        "rules",
        "metric",
    ),
    "Speed": ("batch_size", "num_workers", "processes", "gpus_each", "ray_address"),
    "Model, in detail": ASKING["Model, in detail"],
}
# A picture on a page is small; one larger than this is left out of it.
_MAX_PIXELS = 2**28

run_folder = click.argument("run", type=NamedPath(file_okay=False), metavar="RUN")
data_option = click.option(
    "--data",
    type=NamedPath(),
    default=None,
    metavar="DIR",
    help="Folder of the benchmark's files, or its parquet copy: a folder or one file.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="One object on standard output.")
html_option = click.option(
    "--html/--no-html", "with_page", default=True, help=f"Write RUN/{PAGE}; yes by default."
)
rule_option = click.option(
    "--rule",
    "rules",
    multiple=True,
    metavar="NAME=VALUE",
    help="Of scoring, where no paper says; `paligemma eval list NAME` has them.",
)


def file_option(*names: str, **more: Any) -> Callable[..., Any]:
    """An option that names a file."""
    kind = NamedPath(dir_okay=False)
    return click.option(*names, type=kind, metavar="FILE", **more)


def show(body: Any, table: str, *, as_json: bool) -> None:
    """One JSON object or a text on standard output."""
    if as_json:
        echo_json(body)
    else:
        click.echo(table)


def write_result(path: Path, text: str) -> None:
    """A file of its own, named on standard error."""
    from paligemma.whole_file import write_whole

    write_whole(path, [text])
    click.echo(f"paligemma: wrote {path}", err=True)


def task_command(task: Task) -> click.Command:
    """The command of one benchmark."""
    splits = [*task.splits, *task.server_splits]

    @click.command(
        task.name,
        cls=SectionedCommand,
        sections=SECTIONS,
        help=_help(task),
        short_help=task.title,
    )
    @data_option
    @model_options
    @click.option(
        "--split",
        type=click.Choice(splits),
        help=f"Which; {splits[0]} by default, or else the first that a parquet copy holds.",
    )
    @click.option("--limit", type=int, metavar="N", help="Examples, drawn evenly; all by default.")
    @click.option("--seed", type=int, default=0, show_default=True, help="Of that draw.")
    @click.option("--batch-size", type=int, default=16, show_default=True, help="Examples at once.")
    @click.option(
        "--workers",
        "num_workers",
        type=int,
        default=2,
        show_default=True,
        help="Threads that read pictures.",
    )
    @click.option(
        "--processes",
        type=int,
        default=1,
        show_default=True,
        help="Models that answer at once, through Ray.",
    )
    @click.option("--gpus-each", type=float, default=0.0, help="GPUs of each of these; none.")
    @click.option("--ray-address", metavar="HOST:PORT", help="A Ray cluster; this machine alone.")
    @click.option("--beams", "num_beams", type=int, metavar="B", help="Instead of the benchmark's.")
    @click.option("--max-new-tokens", type=int, metavar="N", help="Instead of the benchmark's.")
    @click.option(
        "--prompt",
        metavar="TEXT",
        help="Other words; {prefix} stands for the benchmark's own, {question} for the bare "
        "question in them.",
    )
    @click.option(
        "--output",
        type=NamedPath(file_okay=False),
        metavar="RUN",
        help=f"Folder of the run; one below {RUNS} by default. A run that is there goes on.",
    )
    @click.option(
        "--max-failed",
        type=click.FloatRange(0, 1),
        default=0.01,
        show_default=True,
        metavar="SHARE",
        help="Examples that may lack a readable picture or prompt; beyond it the exit code is 1.",
    )
    @json_option
    @html_option
    @when_stopped("goes on where it stopped")
    def command(**values: Any) -> None:
        run_benchmark(task, **values)

    if task.asking.answer == ALL_CLASSES:
        command = click.option(
            "--noise-piece",
            metavar="TEXT",
            default=NOISE,
            show_default=True,
            help="Piece that pads answers, barred where it is a single token.",
        )(command)
    if task.rules:
        command = rule_option(command)
    if METRIC in task.rules:
        command = click.option(
            "--metric",
            type=click.Choice(task.rules[METRIC]),
            help=f"Of answers in words; the same as --rule {METRIC}=NAME.",
        )(command)
    for parameter in command.params:
        if parameter.name == "resize_method" and isinstance(parameter, click.Option):
            parameter.help = f"Instead of the benchmark's {task.asking.resize_method}."
        if parameter.name in ("allow_url", "background") and isinstance(parameter, click.Option):
            parameter.hidden = True
    return command


def _help(task: Task) -> str:
    asking = task.asking
    beams = "greedy" if asking.num_beams == 1 else f"beam {asking.num_beams}"
    files = [f"  {one.path}  ({one.source})" for one in task.files]
    traps = [f"  - {trap}" for trap in task.traps]
    parts = [
        f"{task.title}: {task.headline}, {beams}, {asking.resize_method}.",
        "\b\nFiles below DIR:\n" + "\n".join(files) if files else "Needs no files.",
        "\b\nTraps:\n" + "\n".join(traps) if traps else "",
        f"The same command goes on with a run that was cut. All else: paligemma eval list "
        f"{task.name}",
    ]
    return "\n\n".join(part for part in parts if part)


def default_split(task: Task, data: Path | None) -> str:
    """The split to measure where the user names none, with a notice if it is not the first."""
    split = task.default_split(data)
    if split != task.splits[0]:
        click.echo(f"paligemma: {data} holds no {task.splits[0]}; its {split} is taken", err=True)
    return split


def run_benchmark(
    task: Task,
    *,
    model: ModelChoice,
    data: Path | None,
    split: str | None,
    processes: int,
    gpus_each: float,
    ray_address: str | None,
    output: Path | None,
    max_failed: float,
    as_json: bool,
    with_page: bool,
    rules: tuple[str, ...] = (),
    metric: str | None = None,
    **asked: Any,
) -> None:
    """Answer, score and report; mistakes of the user are found before a model is loaded.

    Args:
        asked: fields of `EvalOptions`; the other arguments are the options of the command.
    """
    from paligemma.eval.options import EvalOptions, chosen_rules
    from paligemma.eval.runner import evaluate
    from paligemma.one_writer import one_writer

    if metric is not None:
        rules = (*rules, f"{METRIC}={metric}")
    split = split or default_split(task, data)
    loading = dict(model.options)
    # The benchmark's own filter, not the model's, unless one is asked for.
    resize_method = loading.pop("resize_method", None)
    options = EvalOptions(resize_method=resize_method, rules=chosen_rules(task, rules), **asked)
    _look_at_data(task, data, split, options)
    folder = output or default_folder(task, split, model, data, options)
    click.echo(f"paligemma: the run is kept in {folder}", err=True)
    with one_writer(folder):  # Whoever else writes there is named before the model loads.
        pass
    record: dict[str, Any] = {
        "model": model.label,
        "command": shlex.join(["paligemma", *sys.argv[1:]]),
        "progress": True,
    }
    if processes == 1 and ray_address is None:
        loaded = ModelChoice(name=model.name, options=loading).load()
        run = evaluate(task, loaded, data, split, options, folder, **record)
    else:
        from paligemma.jobs.cluster import Cluster
        from paligemma.jobs.model_answerer import load_answerer

        cluster = Cluster(
            make_answerer=partial(load_answerer, model.name, loading, **options.answering(task)),
            num_workers=processes,
            gpus_each=gpus_each,
            address=ray_address,
        )
        run = evaluate(task, cluster, data, split, options, folder, **record)
    if split in task.server_splits:
        click.echo(
            f"paligemma: only a server has the answers of {task.name} {split}; "
            f"`paligemma eval submission {folder} -o FILE` writes what it takes",
            err=True,
        )
        if as_json:
            echo_json({"task": task.name, "split": split, "run": str(folder)})
    else:
        report_run(task, run, as_json=as_json, with_page=with_page, rules=options.rules)
    _require_asked(run, max_failed)


def _require_asked(run: Run, max_failed: float) -> None:
    """End with exit code 1 where too many examples could not be asked."""
    from paligemma.eval.scored import some_ids

    failed = run.failed
    if len(failed) > max_failed * len(run.examples):
        click.echo(
            f"paligemma: {len(failed):,} of {len(run.examples):,} examples could not be asked, "
            f"more than the share of {max_failed:g} that --max-failed allows: "
            f"{some_ids([one.id for one in failed])}; mend what they lack and repeat the command, "
            "which asks them again",
            err=True,
        )
        click.get_current_context().exit(1)


def report_run(
    task: Task,
    run: Run,
    *,
    as_json: bool,
    with_page: bool,
    rules: Mapping[str, str] | None = None,
) -> None:
    """Score a run, write scores.json and the page, and show the figures.

    Args:
        task: benchmark of the run.
        run: its answers.
        as_json: print one object instead of a table.
        with_page: write the page.
        rules: rules of scoring; those of the run by default.
    """
    from paligemma.eval.page import report_page
    from paligemma.eval.report import SCORES, make_report, to_table
    from paligemma.eval.scored import score_run
    from paligemma.whole_file import write_json

    report = make_report(score_run(run, task, rules=rules))
    body = report.to_json()
    show({**body, "folder": str(run.path)}, to_table(report), as_json=as_json)
    # Later, so that the score is there even on a full disk.
    write_json(run.path / SCORES, body)
    if with_page:
        write_result(run.path / PAGE, report_page(report, pictures=partial(pictures_of, run)))


def task_of(run: Run) -> Task:
    """The benchmark of a run; drawn scenes as many, of the seed and size, as the run drew."""
    from paligemma.jobs.json_lines import read_rows
    from paligemma.jobs.run_folder import EXAMPLES
    from paligemma.tasks.catalog import find_task

    task = find_task(run.config.task)
    if task.name != "scenes":
        return task
    from paligemma.tasks.scenes.rows import scenes_task

    path = run.path / EXAMPLES
    last = seed = size_px = 0
    things: str | None = None
    for number, row in read_rows(path):
        match row.get("pictures"):
            case [{"index": int(index), "seed": int(seed), "size_px": int(size_px), **others}]:
                last = max(last, index)
                things = None if others.get("things") is None else str(others["things"])
            case other:
                raise DataError(
                    f"{path}, line {number} must name one picture by index, seed and size_px, got "
                    f"{other!r:.80}; restore the file or begin a new run"
                )
    return scenes_task(limit=last + 1, seed=seed, size_px=size_px, things=things)


def pictures_of(run: Run, ids: Sequence[str]) -> Pictures | None:
    """Reads the pictures of some examples; None where the data folder is no longer there."""
    from paligemma.eval.runner import read_again

    have: Mapping[str, Example] = {one.id: one for one in run.examples if one.pictures}
    if not set(ids) <= set(have):
        try:
            have = read_again(task_of(run), run, ids)
        except (PaliGemmaError, OSError) as error:
            click.echo(f"paligemma: the page has no pictures: {error}", err=True)
            return None

    return pictures_among(have)


def pictures_among(have: Mapping[str, Example]) -> Pictures:
    """Reads the pictures of examples that are at hand."""

    def read(name: str) -> list[np.ndarray]:
        if name not in have:
            return []
        return [picture.read(_MAX_PIXELS) for picture in have[name].pictures]

    return read


def default_folder(
    task: Task, split: str, model: ModelChoice, data: Path | None, options: Any
) -> Path:
    """`runs/eval/<task>-<split>-<model>-<hash8>`; the same command finds the same folder."""
    # Rules change no answer.
    changing = {name: value for name, value in vars(options).items() if name != "rules"}
    said = [task.name, split, model.name, model.options, str(data), changing]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()
    name = re.sub(r"[^\w.-]+", "-", Path(model.name).name or "model").strip("-.")[:60]
    return RUNS / f"{task.name}-{split}-{name or 'model'}-{digest[:8]}"


def _look_at_data(task: Task, data: Path | None, split: str, options: EvalOptions) -> None:
    """Read the first examples, so that a missing file is not found out after minutes."""
    from paligemma.eval.runner import NUM_TRIED, require_pictures

    if not task.files:
        return
    if data is None:
        needed = ", ".join(one.path for one in task.files)
        if task.hub_copy is not None:
            needed += f", or its parquet copy {' or '.join(task.hub_copy.names)}"
        raise ConfigError(
            f"{task.name} reads its files from a folder, got none; download {needed} (see "
            f"`paligemma eval list {task.name}`) and name the folder with --data"
        )
    where = f"{task.name} {split} in {data}"
    first = list(islice(options.prompted(task.read(data, split)), NUM_TRIED))
    if not first:
        raise DataError(f"{where} must hold at least one example, got none; check its file")
    require_pictures(first, where)
