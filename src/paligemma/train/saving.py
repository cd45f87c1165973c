"""When checkpoints are written: while the next steps run, one at a time, or between two steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from paligemma.train.checkpoint import (
    TrainState,
    save_checkpoint,
    take_snapshot,
    write_snapshot,
)
from paligemma.train.distributed import World, world
from paligemma.train.sharding import is_sharded

logger = logging.getLogger(__name__)


class Saver:
    """Saves the state of a run; every process calls the same methods in the same order.

    The first process writes; of a divided model all do, and exchange what they wrote apart from
    the steps.

    Args:
        folder: folder of the checkpoints.
        state: what is saved, as it is at that moment.
        meta: configuration of the run.
        in_background: write in a thread, from a copy; else before `save` returns.
    """

    def __init__(
        self, folder: Path, state: TrainState, meta: Mapping[str, Any], *, in_background: bool
    ) -> None:
        self._folder, self._state, self._meta = folder, state, meta
        self._is_divided = is_sharded(state.model)
        self._pool = ThreadPoolExecutor(1, "checkpoint") if in_background else None
        self._writers = world().apart() if in_background and self._is_divided else World()
        self._pending: Future[Path] | None = None

    @property
    def has_failed(self) -> bool:
        """Whether this process knows that what is under way was not written."""
        pending = self._pending
        return pending is not None and pending.done() and pending.exception() is not None

    def save(self, beside: Mapping[str, Any]) -> None:
        """Save the state; what is under way is finished first.

        Args:
            beside: further state of the loop, as JSON holds it.

        Raises:
            CheckpointError: this checkpoint, or the one under way, cannot be written.
        """
        self._by_writers(lambda: self._save(beside))

    def wait(self) -> None:
        """Return once what is under way is on the disk.

        Raises:
            CheckpointError: it cannot be written.
        """
        self._by_writers(self._finish)

    def close(self) -> None:
        """Finish what is under way, whatever else went wrong, and write no more."""
        if self._pool is not None:
            self._pool.shutdown()
        if self._pending is not None and (error := self._pending.exception()) is not None:
            logger.warning("%s", error)

    def _save(self, beside: Mapping[str, Any]) -> None:
        if self._pool is None:
            save_checkpoint(self._folder, self._state, self._meta, beside=beside)
            return
        self._finish()
        taken = take_snapshot(self._state, self._meta, beside)
        self._pending = self._pool.submit(write_snapshot, self._folder, taken, self._writers)

    def _finish(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _by_writers(self, work: Callable[[], None]) -> None:
        if self._is_divided:
            work()
        else:
            world().on_first(work)
