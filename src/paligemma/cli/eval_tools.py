"""What can be done with runs and predictions that are there: score, report, compare, calibrate."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paligemma.cli.eval_run import (
    data_option,
    default_split,
    file_option,
    html_option,
    json_option,
    pictures_among,
    pictures_of,
    report_run,
    rule_option,
    run_folder,
    show,
    write_result,
)
from paligemma.cli.options import NamedPath, overwrite_option
from paligemma.cli.sections import BenchmarkName
from paligemma.cli.show import echo_json
from paligemma.errors import ConfigError, DataError
from paligemma.example import MASK
from paligemma.whole_file import require_free

if TYPE_CHECKING:
    from paligemma.eval.page_parts import Pictures
    from paligemma.eval.vectors import MetricSummary
    from paligemma.example import Example
    from paligemma.jobs.run_folder import Run, RunConfig
    from paligemma.tasks.task import Task


@click.command("score")
@click.argument("predictions", type=NamedPath(dir_okay=False))
@click.option(
    "--task",
    "name",
    type=BenchmarkName(),
    required=True,
    metavar="NAME",
    help="Benchmark they answer.",
)
@data_option
@click.option("--split", default=None, help="The benchmark's first by default.")
@click.option(
    "--missing",
    type=click.Choice(["empty", "refuse"]),
    default="empty",
    show_default=True,
    help="Examples without a prediction: counted as empty answers, or refused.",
)
@click.option(
    "--model", "model_name", default="", metavar="NAME", help="Whose; for published figures."
)
@file_option("--html", "page", help="Write the page there.")
@overwrite_option
@file_option(
    "--mask-codec", "codec_path", help="vae-oid.npz, for masks that are spelt in the text alone."
)
@rule_option
@json_option
def score_command(
    predictions: Path,
    name: str,
    data: Path | None,
    split: str | None,
    missing: str,
    model_name: str,
    page: Path | None,
    overwrite: bool,
    codec_path: Path | None,
    rules: tuple[str, ...],
    as_json: bool,
) -> None:
    """Score PREDICTIONS that any program made: JSON lines of id, text, and objects if any.

    Result files as the servers of VQA and captions take them, and COCO's list of detections, are
    read as they are. Ids are those of `examples.jsonl` of a run. Without --data, the examples of
    the run folder that PREDICTIONS lies in are taken.
    """
    from paligemma.eval.foreign import decoded_masks, match_examples, read_predictions
    from paligemma.eval.options import chosen_rules
    from paligemma.eval.report import make_report, to_table
    from paligemma.eval.scored import score_matched
    from paligemma.tasks.catalog import find_task

    if page is not None:
        require_free(page, overwrite=overwrite)
    task = find_task(name)
    chosen = chosen_rules(task, rules)
    if codec_path is not None and task.asking.answer != MASK:
        raise ConfigError(f"{task.name} scores no masks, so it takes no --mask-codec; leave it out")
    config, examples = _examples(task, predictions, data, split, model_name)
    if rules:
        config = replace(config, rules=chosen)
    found, notices = match_examples(
        read_predictions(predictions, examples), examples, missing=missing
    )
    if task.with_masks is not None and any(o.mask for one in found for o in one.objects):
        examples = [task.with_masks(one, None) for one in examples]
    if codec_path is not None:
        from paligemma.jobs.model_answerer import fingerprint
        from paligemma.outputs.vqvae import load_mask_codec

        codec = load_mask_codec(codec_path)
        found = decoded_masks(found, examples, codec)
        config = replace(config, settings={**config.settings, "mask_codec": fingerprint(codec)})
    report = make_report(score_matched(task, config, examples, found, notices=notices))
    show(report.to_json(), to_table(report), as_json=as_json)
    if page is not None:
        from paligemma.eval.page import report_page

        pictures = partial(_pictures, examples, predictions.parent)
        write_result(page, report_page(report, pictures=pictures))


def _pictures(examples: Sequence[Example], folder: Path, ids: Sequence[str]) -> Pictures | None:
    """Reads the pictures of some examples, which those of a run name in its data folder."""
    from paligemma.jobs.run_folder import load_run

    have = {one.id: one for one in examples if one.pictures}
    return pictures_among(have) if have else pictures_of(load_run(folder), ids)


def _require_scored(task: Task, split: str | None) -> None:
    if split is not None and split not in task.splits:
        raise ConfigError(
            f"{task.name} can be scored on {', '.join(task.splits)}, got {split!r}; name one"
        )


def _examples(
    task: Task, predictions: Path, data: Path | None, split: str | None, model_name: str
) -> tuple[RunConfig, list[Example]]:
    """The split's examples: from the data folder, or from the run that the file lies in."""
    from paligemma.jobs.plan import sample_examples
    from paligemma.jobs.run_folder import RUN, RunConfig, load_run

    _require_scored(task, split)
    if data is None and task.files and (predictions.parent / RUN).is_file():
        run = load_run(predictions.parent)
        if run.config.task != task.name or split not in (None, run.config.split):
            raise ConfigError(
                f"{predictions.parent} is a run of {run.config.task} {run.config.split}, not of "
                f"{task.name} {split or task.splits[0]}; name the data folder with --data"
            )
        return run.config, run.examples
    if data is None and task.files:
        raise ConfigError(
            f"predictions are scored against the files of {task.name}; name their folder with "
            "--data"
        )
    if split is None:
        split = default_split(task, data)
        _require_scored(task, split)
    words = click.get_current_context().find_root().obj or sys.argv[1:]
    config = RunConfig(
        task=task.name,
        split=split,
        model=model_name,
        data=None if data is None else str(data),
        settings={"predictions": str(predictions)},
        command=shlex.join(["paligemma", *map(str, words)]),
    )
    where = f"{task.name} {split}" + ("" if data is None else f" in {data}")
    return config, sample_examples(task.read(data or Path("."), split), where=where)


@click.command("report")
@run_folder
@rule_option
@html_option
@json_option
def report_command(run: Path, rules: tuple[str, ...], with_page: bool, as_json: bool) -> None:
    """Score RUN again, as far as it has come, and write its scores.json and page."""
    from paligemma.jobs.run_folder import load_run
    from paligemma.tasks.catalog import find_task

    loaded = load_run(run)
    task = find_task(loaded.config.task)
    chosen = _rules(loaded, rules)
    report_run(task, loaded, as_json=as_json, with_page=with_page, rules=chosen)


def _rules(run: Run, rules: tuple[str, ...]) -> dict[str, str] | None:
    """Rules of scoring that the user chose; None where those of the run hold."""
    from paligemma.eval.options import chosen_rules
    from paligemma.tasks.catalog import find_task

    return chosen_rules(find_task(run.config.task), rules) if rules else None


@click.command("compare")
@click.argument("first", type=NamedPath(file_okay=False))
@click.argument("second", type=NamedPath(file_okay=False))
@file_option("--html", "page", help="Write a page with both answers beside each other.")
@overwrite_option
@click.option("--seed", type=int, default=0, show_default=True, help="Of the resampling.")
@rule_option
@json_option
def compare_command(
    first: Path,
    second: Path,
    page: Path | None,
    overwrite: bool,
    seed: int,
    rules: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say whether the run SECOND is better than FIRST, by the paired bootstrap.

    Examples that only one of them has answered are left out and counted.
    """
    from paligemma.eval.compare import compare, to_table
    from paligemma.eval.scored import score_run
    from paligemma.jobs.run_folder import load_run

    if page is not None:
        require_free(page, overwrite=overwrite)
    runs = [load_run(path) for path in (first, second)]
    scored = [score_run(run, rules=_rules(run, rules)) for run in runs]
    found = compare(*scored, seed=seed)
    show(found.to_json(), to_table(found), as_json=as_json)
    if page is not None:
        from paligemma.eval.compare_page import compare_page

        write_result(page, compare_page(found, pictures=partial(pictures_of, runs[0])))


@click.command("calibrate")
@run_folder
@click.option(
    "--model",
    "model_folder",
    type=NamedPath(file_okay=False),
    metavar="FOLDER",
    help="Where calibration.json goes: the model's folder; RUN by default.",
)
@click.option(
    "--precision",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="P",
    help="Thresholds at which this share of the boxes is right; by default the best F1.",
)
@json_option
def calibrate_command(
    run: Path, model_folder: Path | None, precision: float | None, as_json: bool
) -> None:
    """Fit a temperature, and for boxes a threshold a label, on RUN.

    Use a run on a split that you do not report. What the file holds of the other kind of answers
    stays.
    """
    from paligemma.eval.calibration import calibrate
    from paligemma.eval.scored import score_run
    from paligemma.jobs.run_folder import load_run
    from paligemma.outputs.calibration import FILE_NAME, load_calibration, save_calibration

    path = (model_folder or run) / FILE_NAME
    before = load_calibration(path) if path.exists() else None
    fitted = calibrate(score_run(load_run(run)), precision=precision, before=before)
    save_calibration(fitted, path)
    click.echo(f"paligemma: wrote {path}", err=True)
    if as_json:
        echo_json(json.loads(path.read_text(encoding="utf-8")))
        return
    for part in (fitted.objects, fitted.text):
        if part is not None and part.fitted_on.get("run"):
            click.echo(_calibration_lines(part))


def _calibration_lines(part: Any) -> str:
    fit = part.fitted_on
    lines = [f"temperature {part.temperature:.3f}, fitted on {fit['task']} {fit['split']}"]
    before, after = fit["before"], fit.get("held_out")
    lines.append(f"expected calibration error {before['ece']:.4f} before")
    if after is not None:
        lines[-1] += f", {after['ece']:.4f} after, on examples the fit had not seen"
    thresholds = getattr(part, "thresholds", None)
    if thresholds is not None:
        lines.append(
            f"thresholds for {fit['goal']}: {part.default_threshold:.3f} by default, "
            f"{len(thresholds)} labels with their own"
        )
        width = max(map(len, thresholds), default=0)
        for label, value in sorted(thresholds.items()):
            shown = f"{value:.3f}" if value <= 1 else "none is shown"
            lines.append(f"  {label:{width}} {shown}")
    return "\n".join(lines)


@click.command("submission")
@run_folder
@file_option("--output", "-o", required=True, help="Where it goes.")
@overwrite_option
@json_option
def submission_command(run: Path, output: Path, overwrite: bool, as_json: bool) -> None:
    """Write the answers of RUN as the benchmark's test server takes them."""
    from paligemma.eval.scored import some_ids
    from paligemma.jobs.run_folder import load_run
    from paligemma.tasks.catalog import find_task, tasks

    require_free(output, overwrite=overwrite)
    loaded = load_run(run)
    task = find_task(loaded.config.task)
    if task.submission is None:
        known = ", ".join(one.name for one in tasks().values() if one.submission is not None)
        raise ConfigError(f"{task.name} has no test server; {known} have one")
    if loaded.missing:
        raise DataError(
            f"a submission answers every example, {run} misses {len(loaded.missing):,} of "
            f"{len(loaded.examples):,}; go on with the run first"
        )
    if failed := loaded.failed:
        click.echo(
            f"paligemma: {len(failed):,} answers are empty because their examples could not be "
            f"asked: {some_ids([one.id for one in failed])}; go on with the run to ask them again",
            err=True,
        )
    body = task.submission(*loaded.answered())
    write_result(output, json.dumps(body, ensure_ascii=False) + "\n")
    num = len(loaded.examples)
    body = {"task": task.name, "file": str(output), "num": num}
    show(body, f"{num:,} answer{'s' if num != 1 else ''}", as_json=as_json)


@click.command("vectors")
@click.argument("file", type=NamedPath(dir_okay=False))
@json_option
def vectors_command(file: Path, as_json: bool) -> None:
    """Compute every vector of FILE with the metrics here: a line a metric.

    FILE is JSON, {"vectors": [{"id", "metric", "predictions", "references", "params"?, "expected",
    "tolerance"?}]}. The exit code is 1 if any vector differs.
    """
    from paligemma.eval.vectors import check_vectors, summarize

    found = summarize(check_vectors(file))
    failed = sum(one.num - one.num_passed for one in found)
    rows = [_vector_row(one) for one in found]
    body = {"file": str(file), "num_failed": failed, "metrics": rows}
    show(body, _vector_lines(found), as_json=as_json)
    if failed:
        click.get_current_context().exit(1)


def _vector_row(one: MetricSummary) -> dict[str, Any]:
    largest = one.largest_difference
    return {
        "metric": one.metric,
        "num": one.num,
        "num_passed": one.num_passed,
        "largest_difference": None if math.isnan(largest) else largest,
        "failures": [{"id": failed.id, "message": failed.message} for failed in one.failures],
    }


def _vector_lines(found: Sequence[MetricSummary]) -> str:
    width = max((len(one.metric) for one in found), default=0)
    lines = []
    for one in found:
        largest = one.largest_difference
        off = "" if math.isnan(largest) else f"  largest difference {largest:.1e}"
        word = "ok    " if one.num == one.num_passed else "FAILED"
        lines.append(f"{word}  {one.metric:{width}}  {one.num_passed:4} of {one.num:4}{off}")
        lines += [f"        {failed.id}: {failed.message}" for failed in one.failures]
    passed, num = sum(one.num_passed for one in found), sum(one.num for one in found)
    return "\n".join([*lines, f"{passed} of {num} vectors agree"])
