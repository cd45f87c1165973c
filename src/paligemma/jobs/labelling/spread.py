"""A labelling spread over processes and machines by Ray: workers answer, this process writes.

Each worker holds the model and has at most two parts, the second of which is read while the first
is answered; no more is planned ahead, so memory stays flat however slow the workers are. A worker
that dies is started again elsewhere, and its parts are asked again. A part over which workers died
is asked row by row, and a row over which they died again is quarantined.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from paligemma.errors import PaliGemmaError, RunError
from paligemma.jobs.answerer import Answerer, answered
from paligemma.jobs.cluster import Cluster, MakeAnswerer
from paligemma.jobs.labelling.kept import Kept
from paligemma.jobs.labelling.labeller import Refused
from paligemma.jobs.labelling.work import MAX_DEATHS, Plan, Work, died_reason

_PARTS_AHEAD = 2
_PAUSE_S = 0.2
# How often each worker, of two or more, may die without an answer from any; this is for workers
# that never come up, since every row of a part may be asked while it dies, and a lost machine takes
# all of its workers with it.
_MAX_DEATHS_EACH = 6


@dataclass(kw_only=True, eq=False)
class _Task:
    """Batches of one part that travel together: all of them, or a row that is asked alone."""

    work: Work
    numbers: list[int]
    deaths: int = 0

    @property
    def is_suspect(self) -> bool:
        """Whether it may kill its process, which it then shares with nothing."""
        return self.work.is_alone or self.deaths > 0


class _Worker:
    """One process of the run, with a model; two parts at once, of which one computes."""

    def __init__(self, make_labeller: MakeAnswerer, num_threads: int) -> None:
        self._make_labeller, self._num_threads = make_labeller, num_threads
        self._made: Any = None
        self._computing = threading.Lock()

    def _labeller(self) -> Any:
        with self._computing:  # an error of ours travels as an answer's value
            if self._made is None:
                self._made = self._make_labeller()
            return self._made

    def ping(self) -> None:
        """Nothing, by which a worker that was started again is known."""

    def settings(self) -> bytes:
        """Pickled settings of the labeller, or our own error."""
        try:
            return pickle.dumps(dict(self._labeller().settings()))
        except PaliGemmaError as error:
            return pickle.dumps(error)

    def label(self, data: bytes) -> bytes:
        """Answers to pickled batches: process, then number -> (answers, seconds), or an error."""
        try:
            timed = _Timed(self._labeller(), self._computing)
            batches = iter(pickle.loads(data))
            found = dict(answered(cast(Answerer, timed), batches, self._num_threads))
            seconds = dict(zip(found, timed.seconds, strict=True))
            return pickle.dumps((os.getpid(), found, seconds))
        except PaliGemmaError as error:
            return pickle.dumps(error)


class _Timed:
    """A labeller that computes for one part at a time, while the pictures of another are read."""

    def __init__(self, labeller: Any, lock: threading.Lock) -> None:
        self._labeller, self._lock = labeller, lock
        self.seconds: list[float] = []

    def read(self, examples: Any) -> Any:
        return self._labeller.read(examples)

    def answer(self, examples: Any, prepared: Any) -> Any:
        with self._lock:
            began = time.perf_counter()
            found = self._labeller.answer(examples, prepared)
            self.seconds.append(time.perf_counter() - began)
            return found


class Workers:
    """The processes of a labelling, from here to the end of the block.

    Raises:
        ConfigError: the cluster has too little room for all of them at once.
        MissingExtraError: Ray is not installed.
    """

    def __init__(self, cluster: Cluster, num_threads: int) -> None:
        self._cluster, self._num_threads = cluster, num_threads
        self._workers: list[Any] = []

    def __enter__(self) -> Workers:
        cluster = self._cluster
        self._ray = cluster.connected()
        cluster.require_room()
        make = self._ray.remote(_Worker).options(
            num_cpus=cluster.cpus_each,
            num_gpus=cluster.gpus_each,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=_PARTS_AHEAD,
        )
        num = range(cluster.num_workers)
        self._workers = [make.remote(cluster.make_answerer, self._num_threads) for _ in num]
        return self

    def __exit__(self, *raised: object) -> None:
        for worker in self._workers:
            self._ray.kill(worker)

    def settings(self) -> dict[str, Any]:
        """See `Labeller.settings`; the first worker computes them.

        Raises:
            PaliGemmaError: the labeller cannot be made.
            RunError: the worker died.
        """
        try:
            value = pickle.loads(self._ray.get(self._workers[0].settings.remote()))
        except self._ray.exceptions.RayActorError as error:
            raise RunError(
                f"a worker died before it answered ({str(error)[:300]}); see to its memory"
            ) from error
        if isinstance(value, PaliGemmaError):
            raise value
        found: dict[str, Any] = value
        return found

    def answer(self, plan: Plan, kept: Kept) -> None:
        """Answer all open parts.

        Raises:
            PaliGemmaError: the labeller cannot be made.
            RunError: workers die again and again before they answer anything.
        """
        with kept:
            _Spread(plan, kept, self._ray, self._workers).run()


class _Spread:
    """Which worker has which task."""

    def __init__(self, plan: Plan, kept: Kept, ray: Any, workers: list[Any]) -> None:
        self._kept, self._ray, self._workers = kept, ray, workers
        self._works = plan.works(kept.folder)
        self._again: deque[_Task] = deque()
        self._under_way: dict[Any, tuple[int, _Task]] = {}
        # Workers that are being started again, by the call that returns once they are.
        self._starting: dict[Any, int] = {}
        self._deaths_in_a_row = 0

    def run(self) -> None:
        """Hand out tasks and keep what comes back, until all is there."""
        while True:
            self._hand_out()
            waiting = [*self._under_way, *self._starting]
            if not self._under_way and not self._again:
                return
            for reference in self._ray.wait(waiting, num_returns=1)[0]:
                if reference in self._starting:
                    self._started(reference, self._starting.pop(reference))
                else:
                    self._take(reference, *self._under_way.pop(reference))

    def _hand_out(self) -> None:
        while (number := self._free()) is not None and (task := self._next(number)) is not None:
            data = pickle.dumps([(k, task.work.batch(k)) for k in task.numbers])
            reference = self._workers[number].label.remote(data)
            self._under_way[reference] = number, task

    def _load(self, number: int) -> int:
        return sum(at == number for at, _ in self._under_way.values())

    def _free(self) -> int | None:
        """The worker with the least to do; none where all have enough."""
        taken = {number for number, task in self._under_way.values() if task.is_suspect}
        taken |= set(self._starting.values())
        free = [k for k in range(len(self._workers)) if k not in taken]
        number = min(free, key=self._load, default=None)
        return number if number is not None and self._load(number) < _PARTS_AHEAD else None

    def _next(self, number: int) -> _Task | None:
        """What the worker does next."""
        if self._again:
            return None if self._load(number) else self._again.popleft()
        for work in self._works:
            self._kept.begin(work)
            if work.is_alone:
                self._again.extend(_alone(work))
                return self._next(number)
            if work.batches:
                return _Task(work=work, numbers=list(range(len(work.batches))))
        return None

    def _started(self, reference: Any, number: int) -> None:
        """A worker that died is there again, or is asked once more."""
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayActorError:
            time.sleep(_PAUSE_S)
            self._starting[self._workers[number].ping.remote()] = number

    def _take(self, reference: Any, number: int, task: _Task) -> None:
        try:
            value = pickle.loads(self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            self._died(number, task, error)
            return
        if isinstance(value, PaliGemmaError):
            raise value
        self._deaths_in_a_row = 0
        process, found, seconds = value
        for batch, answers in found.items():
            self._kept.take(task.work, batch, answers, seconds[batch], f"process {process}")

    def _died(self, number: int, task: _Task, error: Exception) -> None:
        """Ask again what a dead worker had, in the end row by row."""
        if isinstance(error, self._ray.exceptions.RayTaskError):
            raise error
        if number not in self._starting.values():
            self._starting[self._workers[number].ping.remote()] = number
            self._deaths_in_a_row += 1  # Once for all that the worker had.
        task.deaths += 1
        if self._deaths_in_a_row > _MAX_DEATHS_EACH * max(2, len(self._workers)):
            raise RunError(
                f"workers died {self._deaths_in_a_row} times without an answer between "
                f"({str(error)[:300]}); see to their memory, or ask fewer rows with --batch-size"
            ) from error
        if task.deaths < MAX_DEATHS:
            self._again.append(task)
        elif task.work.is_alone:
            refused = Refused(reason=died_reason(task.deaths))
            self._kept.take(task.work, task.numbers[0], [refused], 0.0)
        else:
            task.work.ask_alone()
            self._again.extend(_alone(task.work))


def _alone(work: Work) -> Iterator[_Task]:
    return (_Task(work=work, numbers=[number]) for number in range(len(work.batches)))
