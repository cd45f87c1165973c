"""One run over several processes or machines, through Ray Data.

The unit of work is a batch of the plan, the same that one process would answer, so the answers are
the same. Workers only answer: the process that began the run alone writes its folder, and goes on
with it after a kill. Machines must see the benchmark's files under the same paths.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paligemma.errors import ConfigError, PaliGemmaError
from paligemma.eval.options import EvalOptions
from paligemma.eval.runner import Answerer, Prepared, finished, keep, prepare
from paligemma.example import MASK, Prediction
from paligemma.jobs.run_folder import Run
from paligemma.metrics.extras import missing_extra
from paligemma.tasks.task import Task

MakeAnswerer = Callable[[], Answerer]


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Where a run is spread.

    Attributes:
        num_workers: processes that each hold a model.
        gpus_each: GPUs of each; 0 for none.
        cpus_each: processor cores of each.
        address: of a Ray cluster, such as "auto"; None starts one on this machine.
    """

    num_workers: int
    gpus_each: float = 0.0
    cpus_each: float = 1.0
    address: str | None = None

    def __post_init__(self) -> None:
        if self.num_workers < 1 or self.gpus_each < 0 or self.cpus_each < 0:
            raise ConfigError(
                "a run needs at least 1 worker, and no negative share of machines, got "
                f"{self.num_workers} workers with {self.gpus_each} GPUs and {self.cpus_each} cores"
            )


@dataclass(frozen=True, kw_only=True)
class LoadedAnswerer:
    """Loads a model by name in whichever process it is called.

    Attributes:
        model: name, folder or file, as `PaliGemma.from_pretrained` takes it.
        loading: its options.
        task: the benchmark.
        options: of the run.
    """

    model: str
    task: Task
    options: EvalOptions
    loading: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self) -> Answerer:
        from paligemma.jobs.model_answerer import ModelAnswerer
        from paligemma.pipeline.paligemma import PaliGemma

        return ModelAnswerer(
            PaliGemma.from_pretrained(self.model, **self.loading),
            self.options.asking_of(self.task),
            noise_piece=self.options.noise_piece,
            needs_masks=self.task.asking.answer == MASK,
        )


def evaluate_distributed(
    task: Task,
    make_answerer: MakeAnswerer,
    data: str | Path | None,
    split: str,
    options: EvalOptions,
    folder: str | Path,
    cluster: ClusterOptions,
    *,
    model: str = "",
    command: str = "",
    progress: bool = False,
) -> Run:
    """`runner.evaluate` with many processes; other arguments as there.

    Args:
        make_answerer: makes what answers, once a process; must pickle.
        cluster: where.

    Raises:
        MissingExtraError: Ray is not installed.
        PaliGemmaError: as `runner.evaluate`, wherever it arose.
    """
    ray = _started(cluster)
    # A worker knows what it would answer with; this process may have no room for a model.
    probe = ray.remote(_settings_of).options(num_cpus=cluster.cpus_each, num_gpus=cluster.gpus_each)
    settings = _opened(ray.get(probe.remote(make_answerer)))
    prepared = prepare(task, settings, data, split, options, folder, model=model, command=command)
    with prepared.folder:
        keep(prepared, _answered(prepared, make_answerer, cluster), progress=progress)
    return finished(prepared)


def _started(cluster: ClusterOptions) -> Any:
    """Ray, connected."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise missing_extra("Ray", "ray", "an evaluation over several processes") from error
    if not ray.is_initialized():
        local: dict[str, Any] = {}
        if cluster.address is None:
            local = {
                "num_cpus": max(1, round(cluster.num_workers * cluster.cpus_each)),
                "include_dashboard": False,
            }
        ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False, **local)
    return ray


def _answered(
    prepared: Prepared, make_answerer: MakeAnswerer, cluster: ClusterOptions
) -> Iterator[tuple[int, list[Prediction]]]:
    """Answers of the open batches, in whatever order they are ready."""
    import ray.data

    if not prepared.open:
        return
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [
        {"number": number, "examples": pickle.dumps(prepared.batch(number))}
        for number in prepared.open
    ]
    # A block a batch, so that each is here and on disk as soon as it is answered.
    answers = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Worker,
        fn_constructor_args=(make_answerer,),
        batch_size=1,
        concurrency=min(cluster.num_workers, len(rows)),
        num_cpus=cluster.cpus_each,
        num_gpus=cluster.gpus_each,
    )
    for row in answers.iter_rows():
        yield int(row["number"]), _opened(row["predictions"])


class _Worker:
    """One process of the run."""

    def __init__(self, make_answerer: MakeAnswerer) -> None:
        self._answerer = make_answerer()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        answerer = self._answerer

        def answer() -> list[Prediction]:
            examples = pickle.loads(batch["examples"][0])
            return answerer.answer(examples, answerer.read(examples))

        return {"number": batch["number"], "predictions": [_closed(answer)]}


def _settings_of(make_answerer: MakeAnswerer) -> bytes:
    return _closed(lambda: dict(make_answerer().settings()))


def _closed(make: Callable[[], Any]) -> bytes:
    """What came, or our own error, which travels as a value and keeps its class and its words."""
    try:
        return pickle.dumps(make())
    except PaliGemmaError as error:
        return pickle.dumps(error)


def _opened(data: bytes) -> Any:
    value = pickle.loads(data)
    if isinstance(value, PaliGemmaError):
        raise value
    return value
