"""The one thread that computes: it admits, decodes and retires rows of all requests at every step.

    answer() ──▶ inbox ──▶ waiting, of each client ──encode──▶ queues of the models ──▶ events
                              │ fair between clients               │ one token a row and step
                              └── deadlines, cancellation ─────────┘

Everything that touches a model runs here. Events go back to the loop of the request.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace

from paligemma.errors import PaliGemmaError
from paligemma.outputs.detections import Detections
from paligemma.outputs.types import TextAnswer
from paligemma.pipeline.engine import Written
from paligemma.pipeline.engine_queue import EngineQueue, Progress
from paligemma.pipeline.pictures import EncodedImage, ReadPicture, about
from paligemma.pipeline.question import Question
from paligemma.pipeline.streaming import TextPieces
from paligemma.serve.errors import ServeError
from paligemma.serve.models import Lease, Loaded
from paligemma.serve.options import ServerOptions

logger = logging.getLogger(__name__)

# Image tokens that are encoded at once between two steps, so that running answers go on.
_ENCODED_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class Token:
    """One token of an answer.

    Attributes:
        answer: number of the question in its request.
        place: number of the request in its question.
        piece: what it adds to the text; empty inside a character of several tokens, and for tokens
            of requests after the first of a question.
        alternatives: see `TokenEvent`.
    """

    answer: int
    place: int
    token: int
    logprob: float
    piece: str
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Answered:
    """The whole answer to one question of a request.

    Attributes:
        piece: what its tokens held back of the text; joined with theirs it is the text.
    """

    answer: int
    piece: str
    result: TextAnswer | Detections
    written: tuple[Written, ...]
    encoded: EncodedImage | None

    @property
    def num_tokens(self) -> int:
        return sum(len(one.record.ids) for one in self.written)


Event = Token | Answered


@dataclass(eq=False)
class Job:
    """One request: some questions about one picture.

    Args:
        client: who asks; clients take turns.
        questions: each becomes an answer.
        picture: None for text alone.
        stop: an answer ends once its text contains one of these.
    """

    lease: Lease
    client: str
    questions: Sequence[Question]
    picture: ReadPicture | None = None
    stop: Sequence[str] = ()
    arrived: float = field(default_factory=time.monotonic)
    started: float | None = None
    # Of the worker's thread from here on.
    encoded: EncodedImage | None = None
    handles: dict[int, tuple[int, int]] = field(default_factory=dict)
    pieces: dict[int, TextPieces] = field(default_factory=dict)
    written: dict[tuple[int, int], Written] = field(default_factory=dict)
    deliver: Callable[[Event | BaseException | None], None] = field(default=lambda event: None)
    is_over: bool = False

    @property
    def num_rows(self) -> int:
        return sum(len(question.requests) for question in self.questions)


@dataclass(frozen=True)
class Load:
    """How busy the worker is."""

    running: int
    waiting: int


class Worker:
    """Owns the computation of a server; `start` before use, `close` afterwards."""

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._wake = threading.Condition()
        self._inbox: deque[tuple[Job, bool]] = deque()  # a job, and whether it is cancelled
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()
        self._running: dict[Job, None] = {}
        self._rows: dict[tuple[Loaded, int], Job] = {}
        self._num_waiting = 0
        self._num_of_client: dict[str, int] = {}
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def close(self) -> None:
        """Stop; requests that are not complete end with an error."""
        with self._wake:
            self._is_closed = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    @property
    def is_alive(self) -> bool:
        """Whether it computes."""
        return self._thread.is_alive()

    @property
    def load(self) -> Load:
        return Load(running=len(self._running), waiting=self._num_waiting)

    async def answer(self, job: Job) -> AsyncGenerator[Event, None]:
        """Tokens and answers of a request as they come; leaving the loop cancels it.

        Raises:
            ServeError: too many wait, or the request waited or took too long.
            PaliGemmaError: an option does not fit the model, or the model produced NaN.
        """
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event | BaseException | None]()

        def deliver(event: Event | BaseException | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        job.deliver = deliver
        self._take(job)
        try:
            while (event := await events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            if not job.is_over:
                self._put(job, cancelled=True)

    def _take(self, job: Job) -> None:
        """Let a job wait, or refuse it at once."""
        of_client = self._num_of_client.get(job.client, 0)
        options = self._options
        if job.num_rows > options.max_rows:
            raise ServeError(
                f"a request may have {options.max_rows} answers at once, got {job.num_rows}; "
                "ask for fewer",
                param="n",
            )
        if self._num_waiting >= options.max_waiting or of_client >= options.max_waiting_of_client:
            raise ServeError(
                f"{self._num_waiting} requests wait already; try again later",
                status=429,
                code="overloaded",
                retry_after_s=1,
            )
        self._put(job)

    def _put(self, job: Job, *, cancelled: bool = False) -> None:
        with self._wake:
            if not cancelled:
                self._num_waiting += 1
                self._num_of_client[job.client] = self._num_of_client.get(job.client, 0) + 1
            self._inbox.append((job, cancelled))
            self._wake.notify()

    # The worker's thread

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._inbox or self._running or self._num_waiting or self._is_closed):
                    self._wake.wait()
                taken = list(self._inbox)
                self._inbox.clear()
                closed = self._is_closed
            if closed:
                break
            try:
                self._turn(taken)
            except Exception as error:
                logger.exception("the worker failed; requests that were running are given up")
                for job in list(self._running):
                    self._end(job, error)
        for job in [*self._running, *(one for jobs in self._waiting.values() for one in jobs)]:
            self._end(job, ServeError("the server is stopping", status=503, code="stopping"))

    def _turn(self, taken: Sequence[tuple[Job, bool]]) -> None:
        """Take what arrived, admit what fits, and write one token of every running answer."""
        for job, cancelled in taken:
            if cancelled:
                self._end(job)
            else:
                self._waiting.setdefault(job.client, deque()).append(job)
        self._expire()
        admitted = self._admit()
        if admitted:
            self._begin(admitted)
        for loaded in {job.lease.loaded: None for job in self._running}:
            for progress in loaded.queue.step():
                self._went_on(loaded, progress)

    def _expire(self) -> None:
        now, options = time.monotonic(), self._options
        for jobs in self._waiting.values():
            for job in [job for job in jobs if now - job.arrived > options.queue_s]:
                self._end(
                    job,
                    ServeError(
                        f"no place became free in {options.queue_s:g} s; try again later",
                        status=503,
                        code="overloaded",
                        retry_after_s=5,
                    ),
                )
        for job in [job for job in self._running if now - job.arrived > options.answer_s]:
            self._end(
                job,
                ServeError(
                    f"the answer was not complete in {options.answer_s:g} s; ask for fewer tokens",
                    status=504,
                    code="timeout",
                ),
            )

    def _admit(self) -> list[Job]:
        """Jobs that begin now: of the client with the fewest running rows, the oldest first."""
        rows: dict[str, int] = {}
        for job in self._running:
            rows[job.client] = rows.get(job.client, 0) + job.num_rows
        total, num_image_tokens, admitted = sum(rows.values()), 0, list[Job]()
        while any(self._waiting.values()):
            client = min(
                (one for one, jobs in self._waiting.items() if jobs),
                key=lambda one: (rows.get(one, 0), self._waiting[one][0].arrived),
            )
            job = self._waiting[client][0]
            image = 0
            if job.picture is not None:
                config = job.lease.model.config
                frames = job.picture.pixels.shape[0] if job.picture.pixels.ndim == 4 else 1
                image = config.num_image_tokens * frames
            if total + job.num_rows > self._options.max_rows or (
                admitted and num_image_tokens + image > _ENCODED_AT_ONCE
            ):
                break
            self._waiting[client].popleft()
            self._left_waiting(job)
            admitted.append(job)
            total, num_image_tokens = total + job.num_rows, num_image_tokens + image
            rows[client] = rows.get(client, 0) + job.num_rows
        for client in [client for client, jobs in self._waiting.items() if not jobs]:
            del self._waiting[client]
        return admitted

    def _left_waiting(self, job: Job) -> None:
        with self._wake:
            self._num_waiting -= 1
            self._num_of_client[job.client] -= 1
            if not self._num_of_client[job.client]:
                del self._num_of_client[job.client]

    def _begin(self, jobs: Sequence[Job]) -> None:
        """Encode the pictures of some jobs together, and let their rows run."""
        groups: dict[tuple[Loaded, str | None], list[Job]] = {}
        for job in jobs:
            self._running[job] = None
            job.started = time.monotonic()
            tower = job.lease.model.adapters.of_pictures(job.lease.adapter)
            groups.setdefault((job.lease.loaded, tower), []).append(job)
        for (loaded, tower), group in groups.items():
            pictures = [job.picture for job in group if job.picture is not None]
            try:
                found = iter(
                    loaded.model.engine.encode([one.pixels for one in pictures], adapter=tower)
                )
            except PaliGemmaError as error:
                for job in group:
                    self._end(job, error)
                continue
            for job in group:
                if job.picture is not None:
                    owner = loaded.model
                    job.encoded = job.picture.encoded(next(found), owner=owner, adapter=tower)
            for job in group:
                self._submit(job)

    def _submit(self, job: Job) -> None:
        loaded = job.lease.loaded
        try:
            for number, question in enumerate(job.questions):
                job.pieces[number] = TextPieces(loaded.model.processor.tokenizer.decode)
                for place, plain in enumerate(question.requests):
                    request = about(replace(plain, adapter=job.lease.adapter), job.encoded)
                    if EngineQueue.serves(request):
                        handle = loaded.queue.submit(request)
                        job.handles[handle] = number, place
                        self._rows[loaded, handle] = job
                    else:
                        written = loaded.model.engine.answer([request])[0]
                        for token, logprob in zip(
                            written.record.ids.tolist(), written.record.logprobs, strict=True
                        ):
                            self._tell(job, number, place, token, float(logprob))
                        self._completed(job, number, place, written)
        except PaliGemmaError as error:
            self._end(job, error)

    def _went_on(self, loaded: Loaded, progress: Progress) -> None:
        job = self._rows.get((loaded, progress.handle))
        if job is None:
            return
        number, place = job.handles[progress.handle]
        if progress.fault is not None:
            self._end(job, ServeError(progress.fault, status=500, code="server_error"))
            return
        token, logprob = progress.token, progress.logprob
        self._tell(job, number, place, token, logprob, progress.alternatives)
        written = progress.written
        if written is None and any(stop in job.pieces[number].text for stop in job.stop):
            written = loaded.queue.end(progress.handle)
        if written is not None:
            del job.handles[progress.handle], self._rows[loaded, progress.handle]
            self._completed(job, number, place, written)

    def _tell(
        self,
        job: Job,
        number: int,
        place: int,
        token: int,
        logprob: float,
        alternatives: tuple[tuple[int, float], ...] = (),
    ) -> None:
        job.deliver(
            Token(
                answer=number,
                place=place,
                token=token,
                logprob=logprob,
                piece="" if place else job.pieces[number].push(token),
                alternatives=alternatives,
            )
        )

    def _completed(self, job: Job, number: int, place: int, written: Written) -> None:
        job.written[number, place] = written
        question = job.questions[number]
        places = range(len(question.requests))
        if not all((number, one) in job.written for one in places):
            return
        whole = tuple(job.written[number, one] for one in places)
        try:
            result = job.lease.model.reader.answer(question, whole, job.encoded)
        except PaliGemmaError as error:
            self._end(job, error)
            return
        piece = result.text[job.pieces[number].num_told :]
        job.deliver(
            Answered(answer=number, piece=piece, result=result, written=whole, encoded=job.encoded)
        )
        if len(job.written) == job.num_rows:
            self._end(job)

    def _end(self, job: Job, error: BaseException | None = None) -> None:
        """Forget a job, wherever it is, and tell its request."""
        if job.is_over:
            return
        job.is_over = True
        for handle in job.handles:
            job.lease.loaded.queue.cancel(handle)
            del self._rows[job.lease.loaded, handle]
        job.handles.clear()
        if job in self._running:
            del self._running[job]
        else:
            jobs = self._waiting.get(job.client)
            if jobs is not None and job in jobs:
                jobs.remove(job)
            self._left_waiting(job)
        job.deliver(error)
