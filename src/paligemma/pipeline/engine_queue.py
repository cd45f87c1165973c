"""Requests of one model answered side by side, each as it would be answered alone.

The engine's queue for those whose requests come and go: a server, and jobs that stream. Rows under
one adapter share steps; adapters take turns, and so do beams and the best of several draws.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from math import nan
from typing import cast

import numpy as np

from paligemma.errors import PaliGemmaError
from paligemma.generate import BeamOptions, DecodeQueue, QueueOptions, TokenEvent
from paligemma.outputs.types import TokenRecord
from paligemma.pipeline.engine import Engine, Request, Written
from paligemma.vocab import NUM_LOC


@dataclass(frozen=True, kw_only=True, eq=False)
class Progress:
    """One token of one answer; those of a search all come when it is complete.

    Attributes:
        handle: of the request, as `submit` returned it.
        token, logprob, alternatives: what was written; see `TokenEvent`.
        written: the whole answer, with its last token.
        fault: why the answer ends without this token and without an answer.
    """

    handle: int
    token: int
    logprob: float
    written: Written | None
    fault: str | None
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class _Growing:
    """An answer that is being written."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    loc_probs: dict[int, np.ndarray] = field(default_factory=dict)
    records_loc_probs: bool = False

    def add(self, event: TokenEvent) -> None:
        if event.loc_probs is not None:
            self.loc_probs[len(self.ids)] = event.loc_probs.float().cpu().numpy()
        self.ids.append(event.token)
        self.logprobs.append(event.logprob)

    def written(self, *, is_cut: bool) -> Written:
        loc_probs = None
        if self.records_loc_probs:
            loc_probs = np.zeros((len(self.ids), NUM_LOC), np.float32)
            for place, probs in self.loc_probs.items():
                loc_probs[place] = probs
        record = TokenRecord(
            ids=np.array(self.ids, np.int64),
            logprobs=np.array(self.logprobs, np.float32),
            loc_probs=loc_probs,
        )
        return Written(record=record, logprob=float(sum(self.logprobs)), is_cut=is_cut)


class EngineQueue:
    """Answers a changing set of requests; for one thread, which alone uses the engine meanwhile.

    Args:
        engine: of the model.
        options: bounds, of the rows of each adapter.
    """

    def __init__(self, engine: Engine, options: QueueOptions | None = None) -> None:
        self.engine = engine
        self._options = options or QueueOptions(kv_cache_dtype=engine.settings.kv_cache_dtype)
        self._queues: dict[str | None, DecodeQueue] = {}
        self._growing: dict[tuple[str | None, int], tuple[int, _Growing]] = {}
        self._places: dict[int, tuple[str | None, int]] = {}
        self._searches: dict[int, Generator[None, None, Written]] = {}
        self._num_submitted = 0

    def __len__(self) -> int:
        """The number of answers that are not complete."""
        return len(self._places) + len(self._searches)

    def submit(self, request: Request) -> int:
        """Let a request wait for its turn.

        Returns:
            Handle of the request, a number that no other request of this queue has.

        Raises:
            ConfigError: an option does not fit the model or the bounds of the queue, or the adapter
                is unknown.
        """
        self.engine.adapters.require(request.adapter)
        if isinstance(request.decoder, BeamOptions) or request.best_of != 1:
            handle = self._new_handle()
            self._searches[handle] = self.engine.search(request)
            return handle
        queue = self._queues.get(request.adapter)
        if queue is None:
            queue = self._queues[request.adapter] = DecodeQueue(self.engine.model, self._options)
        inner = queue.submit(
            request.row,
            request.decoder,
            soft_tokens=request.soft_tokens,
            constraint=request.constraint,
        )
        handle = self._new_handle()
        growing = _Growing(records_loc_probs=request.decoder.record_loc_probs)
        self._places[handle] = request.adapter, inner
        self._growing[request.adapter, inner] = handle, growing
        return handle

    def _new_handle(self) -> int:
        self._num_submitted += 1
        return self._num_submitted

    def cancel(self, handle: int) -> bool:
        """Drop a request and free its place at once; returns whether it was not complete."""
        return self._searches.pop(handle, None) is not None or self.end(handle) is not None

    def end(self, handle: int) -> Written | None:
        """Drop a request and free its place at once.

        Returns:
            What it has written so far, as a complete answer; None where it was complete before,
            and of a search, which goes on.
        """
        place = self._places.pop(handle, None)
        if place is None:
            return None
        self._queues[place[0]].cancel(place[1])
        return self._growing.pop(place)[1].written(is_cut=False)

    def so_far(self, handle: int) -> Written | None:
        """What a request has written; None where it is complete, and of a search."""
        place = self._places.get(handle)
        return None if place is None else self._growing[place][1].written(is_cut=False)

    def step(self) -> list[Progress]:
        """One token of every answer for which there is room, and one step of every search."""
        found = []
        for adapter, queue in list(self._queues.items()):
            if not len(queue):
                del self._queues[adapter]  # and its cache
                continue
            with self.engine.computing(adapter):
                events = queue.step()
            found += [self._progress(adapter, event) for event in events]
        for handle, search in list(self._searches.items()):
            found += self._searched(handle, search)
        return found

    def _searched(self, handle: int, search: Generator[None, None, Written]) -> list[Progress]:
        written, fault = None, None
        try:
            next(search)
            return []
        except StopIteration as end:
            written = cast(Written, end.value)
        except PaliGemmaError as error:
            fault = str(error)
        del self._searches[handle]
        if written is None:
            return [Progress(handle=handle, token=0, logprob=nan, written=None, fault=fault)]
        ids, logprobs = written.record.ids.tolist(), written.record.logprobs.tolist()
        return [
            Progress(
                handle=handle,
                token=token,
                logprob=logprob,
                written=written if place == len(ids) else None,
                fault=None,
            )
            for place, (token, logprob) in enumerate(zip(ids, logprobs, strict=True), 1)
        ]

    def _progress(self, adapter: str | None, event: TokenEvent) -> Progress:
        handle, growing = self._growing[adapter, event.handle]
        written = None
        if event.fault is None:
            growing.add(event)
            if event.is_last:
                written = growing.written(is_cut=event.cut)
        if event.is_last:
            del self._growing[adapter, event.handle], self._places[handle]
        return Progress(
            handle=handle,
            token=event.token,
            logprob=event.logprob,
            written=written,
            fault=event.fault,
            alternatives=event.alternatives,
        )
