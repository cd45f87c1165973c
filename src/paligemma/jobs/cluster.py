"""A job spread over several processes or machines, through Ray Data.

The unit of work is a batch of the plan, the same that one process would answer, so the answers are
the same. Workers only answer: the process that began the run alone writes its folder, and goes on
with it after a kill. Machines must see the pictures under the same paths.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from paligemma.errors import ConfigError, PaliGemmaError
from paligemma.example import Prediction
from paligemma.jobs.answerer import Answerer, NumberedAnswers, NumberedBatch
from paligemma.metrics.extras import missing_extra
from paligemma.stop_signals import handler_kept

MakeAnswerer = Callable[[], Answerer]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Processes that each hold an answerer.

    Attributes:
        make_answerer: makes what answers, once a process; must pickle.
        num_workers: number of processes.
        gpus_each: GPUs of each process; 0 for none.
        cpus_each: processor cores of each process.
        address: address of a Ray cluster, such as "auto"; None starts one on this machine.

    Raises:
        ConfigError: no worker, or a share of a machine that is none.
    """

    make_answerer: MakeAnswerer
    num_workers: int
    gpus_each: float = 0.0
    cpus_each: float = 1.0
    address: str | None = None

    def __post_init__(self) -> None:
        shares = (self.gpus_each, self.cpus_each)
        is_share = all(0 <= one < math.inf for one in shares)
        # Several GPUs are whole ones.
        if self.num_workers < 1 or not is_share or (self.gpus_each > 1 and self.gpus_each % 1):
            raise ConfigError(
                "a run needs at least 1 worker, and of machines neither a negative share nor GPUs "
                f"and a half, got {self.num_workers} workers with {self.gpus_each} GPUs and "
                f"{self.cpus_each} cores"
            )

    def settings(self) -> Mapping[str, Any]:
        """See `Answerer.settings`; a worker computes them, since this process may have no room.

        Raises:
            MissingExtraError: Ray is not installed.
            PaliGemmaError: the answerer cannot be made.
        """
        probe = self.connected().remote(_settings_of)
        probe = probe.options(num_cpus=self.cpus_each, num_gpus=self.gpus_each)
        settings: Mapping[str, Any] = _opened(
            self.connected().get(probe.remote(self.make_answerer))
        )
        return settings

    def answered(self, batches: Iterable[NumberedBatch]) -> Iterator[NumberedAnswers]:
        """Answer batches, in whatever order they are ready; errors as in `settings`."""
        rows = [{"number": number, "examples": pickle.dumps(one)} for number, one in batches]
        if not rows:
            return
        self.require_room()
        data = self.connected().data
        data.DataContext.get_current().enable_progress_bars = False
        # A block a batch, so that each is here and on disk as soon as it is answered.
        answers = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Worker,
            fn_constructor_args=(self.make_answerer,),
            batch_size=1,
            concurrency=min(self.num_workers, len(rows)),
            num_cpus=self.cpus_each,
            num_gpus=self.gpus_each,
        )
        for row in answers.iter_rows():
            yield int(row["number"]), _opened(row["predictions"])

    def require_room(self) -> None:
        """Check that all workers fit at once; Ray would wait for the rest without a word.

        A worker is on one machine, so cores of one and GPUs of another make no room for it.

        Raises:
            ConfigError: the cluster has too few cores or GPUs; names both numbers.
        """
        ray = self.connected()
        have = ray.cluster_resources()
        for name, what, each in (("CPU", "cores", self.cpus_each), ("GPU", "GPUs", self.gpus_each)):
            wanted, there = each * self.num_workers, have.get(name, 0.0)
            if wanted > there + 1e-6:
                raise ConfigError(
                    f"{self.num_workers} workers need {wanted:g} {what}, the cluster has "
                    f"{there:g}; ask for fewer with --processes, or add machines"
                )
        machines = [one["Resources"] for one in ray.nodes() if one["Alive"]]
        fitting = sum(map(self._num_on, machines))
        if fitting < self.num_workers:
            raise ConfigError(
                f"{self.num_workers} workers with {self.cpus_each:g} cores and "
                f"{self.gpus_each:g} GPUs each are asked for, the {len(machines)} machines of the "
                f"cluster have room for {fitting}; ask for fewer with --processes, or for less "
                "with --cpus-each"
            )

    def _num_on(self, machine: Mapping[str, float]) -> int:
        """How many workers a machine has room for."""
        room = [self.num_workers]
        if self.cpus_each:
            room.append(int(machine.get("CPU", 0.0) / self.cpus_each + 1e-6))
        if 0 < self.gpus_each < 1:  # A share is of one GPU.
            room.append(int(machine.get("GPU", 0.0)) * int(1 / self.gpus_each + 1e-6))
        elif self.gpus_each:
            room.append(int(machine.get("GPU", 0.0) / self.gpus_each + 1e-6))
        return min(room)

    def connected(self) -> Any:
        """Ray, connected.

        Raises:
            MissingExtraError: Ray is not installed.
            ConfigError: there is no cluster at the address.
        """
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise missing_extra("Ray", "ray", "a run over several processes") from error
        if not ray.is_initialized():
            local: dict[str, Any] = {}
            if self.address is None:
                num_cpus = max(1, math.ceil(self.num_workers * self.cpus_each))
                local = {"num_cpus": num_cpus, "include_dashboard": False}
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            try:
                # Ray sets one that ends the program.
                with handler_kept(signal.SIGTERM):
                    ray.init(
                        # "local": whatever cluster was left on this machine is not joined.
                        address=self.address or "local",
                        logging_level=logging.ERROR,
                        log_to_driver=False,
                        **local,
                    )
            except (ConnectionError, ValueError) as error:
                raise ConfigError(
                    f"a Ray cluster must run at {self.address!r} ({str(error)[:200]}); start it "
                    "with ray start --head, or leave --ray-address out"
                ) from error
        return ray


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
    """The result, or our own error, which travels as a value and keeps its class and its words."""
    try:
        return pickle.dumps(make())
    except PaliGemmaError as error:
        return pickle.dumps(error)


def _opened(data: bytes) -> Any:
    value = pickle.loads(data)
    if isinstance(value, PaliGemmaError):
        raise value
    return value
