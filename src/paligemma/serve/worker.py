"""The one thread that computes: it admits, decodes and retires rows of all requests at every step.

    enter() ──▶ submit() ──▶ waiting, of each client ──encode──▶ queues of the models ──▶ steps()
                                 │ fair between clients               │ one token a row and step
                                 └── deadlines, cancellation ─────────┘

Everything that touches a model runs here. What a step wrote goes back to the loop of its request.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from paligemma.errors import PaliGemmaError
from paligemma.generate.generation import NOT_NUMBERS
from paligemma.pipeline.engine_queue import Progress
from paligemma.pipeline.pictures import about
from paligemma.pipeline.streaming import TextPieces
from paligemma.serve.errors import ServeError
from paligemma.serve.job import Job, Letter, Wrote, deliver, stopping, too_slow
from paligemma.serve.models import Loaded
from paligemma.serve.options import ServerOptions

logger = logging.getLogger(__name__)

# Image tokens that are encoded at once between two steps, so that running answers go on.
_ENCODED_AT_ONCE = 1024
# Tokens of pictures, prompts and answers of all running requests of a model.
TOKENS_OF_MODEL = 65_536


@dataclass(frozen=True)
class Load:
    """How busy the worker is: requests that are being answered, and those that came before that."""

    running: int
    waiting: int


class Worker:
    """Owns the computation of a server; `start` before use, `close` afterwards."""

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._wake = threading.Condition()
        self._inbox: deque[Job] = deque()  # submitted, or left by their clients
        self._num_waiting = 0
        self._num_of_client: dict[str, int] = {}
        self._is_closed = False
        # Of the thread from here on.
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()
        self._running: dict[Job, None] = {}
        self._rows: dict[tuple[Loaded, int], Job] = {}
        self._letters: dict[asyncio.AbstractEventLoop, list[Letter]] = {}
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

    def num_free_tokens(self, model: str) -> int:
        """Tokens that requests which begin now may hold in the key-value cache of a model."""
        running = list(self._running)  # the thread changes it meanwhile
        held = sum(job.num_tokens for job in running if job.leased.loaded.name == model)
        return max(0, TOKENS_OF_MODEL - held)

    # Of the loops of requests

    def enter(self, job: Job) -> None:
        """Count a request among those that wait, before anything is read for it; `leave` it then.

        Raises:
            ServeError: too many wait already, or the server is stopping.
        """
        options = self._options
        with self._wake:
            if self._is_closed:
                raise stopping()
            of_client = self._num_of_client.get(job.client, 0)
            if (
                self._num_waiting >= options.max_waiting
                or of_client >= options.max_waiting_of_client
            ):
                raise ServeError(
                    f"{self._num_waiting} requests wait already, {of_client} of them yours; try "
                    "again later",
                    status=429,
                    code="overloaded",
                    retry_after_s=1,
                )
            self._num_waiting += 1
            self._num_of_client[job.client] = of_client + 1

    def submit(self, job: Job) -> None:
        """Let a request with its questions be answered.

        Raises:
            ServeError: it has too many answers, or the server is stopping.
        """
        if job.num_rows > self._options.max_rows:
            raise ServeError(
                f"a request may have {self._options.max_rows} answers or beams at once, got "
                f"{job.num_rows}; ask for fewer",
                param="n",
            )
        self._put(job)

    def leave(self, job: Job) -> None:
        """Forget a request; where it is not complete, its rows are free within a step."""
        job.is_left = True
        if not job.is_over:
            with suppress(ServeError):  # Closed: nothing is left to be freed.
                self._put(job)

    async def steps(self, job: Job) -> AsyncIterator[Wrote]:
        """What a request's rows write, until all are complete.

        Raises:
            ServeError: the request waited or took too long.
            PaliGemmaError: an option does not fit the model, or the model produced NaN.
        """
        while (event := await job.told.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event

    def _put(self, job: Job) -> None:
        with self._wake:
            if self._is_closed:
                raise stopping()
            self._inbox.append(job)
            self._wake.notify()

    # Of the worker's thread

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._inbox or self._running or self._waiting or self._is_closed):
                    self._wake.wait()
                taken = list(self._inbox)
                self._inbox.clear()
                if self._is_closed:
                    break
            try:
                self._turn(taken)
            except Exception as error:
                logger.exception("the worker failed; what was running is given up")
                for job in [*taken, *self._running]:
                    self._end(job, error)
            self._send()
        waiting = [job for jobs in self._waiting.values() for job in jobs]
        for job in [*taken, *self._running, *waiting]:
            self._end(job, stopping())
        self._send()

    def _turn(self, taken: Sequence[Job]) -> None:
        """Take what arrived, admit what fits, and write one token of every running answer."""
        for job in taken:
            if job.is_left:
                self._end(job)
            else:
                self._waiting.setdefault(job.client, deque()).append(job)
        self._expire()
        admitted = self._admit()
        if admitted:
            self._begin(admitted)
        for loaded in {job.leased.loaded: None for job in self._running}:
            try:
                steps = loaded.queue.step()
            except Exception as error:
                self._give_up(loaded, error)
                continue
            for progress in steps:
                self._went_on(loaded, progress)
            self._send()

    def _give_up(self, loaded: Loaded, error: Exception) -> None:
        """End the requests of one model, whose queue failed; those of others go on."""
        logger.error("a step of %s failed; its requests are given up", loaded.name, exc_info=error)
        loaded.queue = loaded.new_queue()
        for job in [job for job in self._running if job.leased.loaded is loaded]:
            self._end(job, error)

    def _expire(self) -> None:
        now, options = time.monotonic(), self._options
        waiting = [job for jobs in self._waiting.values() for job in jobs]
        for job in [job for job in waiting if now - job.arrived > options.queue_s]:
            message = f"no place became free in {options.queue_s:g} s; try again later"
            fault = ServeError(message, status=503, code="overloaded", retry_after_s=5)
            self._end(job, fault)
        for job in [job for job in self._running if now - job.arrived > options.answer_s]:
            self._end(job, too_slow(options))

    def _admit(self) -> list[Job]:
        """Jobs that begin now: of the client with the fewest running rows, the oldest first."""
        if not self._waiting:
            return []
        rows: dict[str, int] = {}
        tokens: dict[Loaded, int] = {}
        for job in self._running:
            rows[job.client] = rows.get(job.client, 0) + job.num_rows
            loaded = job.leased.loaded
            tokens[loaded] = tokens.get(loaded, 0) + job.num_tokens
        total, num_image_tokens, admitted = sum(rows.values()), 0, list[Job]()
        while self._waiting:
            client = min(
                self._waiting, key=lambda one: (rows.get(one, 0), self._waiting[one][0].arrived)
            )
            job = self._waiting[client][0]
            loaded, image = job.leased.loaded, job.num_image_tokens
            of_model = tokens.get(loaded, 0)
            if (
                total + job.num_rows > self._options.max_rows
                or (admitted and num_image_tokens + image > _ENCODED_AT_ONCE)
                or (of_model and of_model + job.num_tokens > TOKENS_OF_MODEL)
            ):
                break
            self._left_waiting(job)
            self._running[job] = None
            job.started = time.monotonic()
            admitted.append(job)
            total, num_image_tokens = total + job.num_rows, num_image_tokens + image
            rows[client] = rows.get(client, 0) + job.num_rows
            tokens[loaded] = of_model + job.num_tokens
        return admitted

    def _left_waiting(self, job: Job) -> None:
        """A job begins, or ends before it began."""
        jobs = self._waiting.get(job.client, deque())
        if job in jobs:
            jobs.remove(job)
            if not jobs:
                del self._waiting[job.client]
        with self._wake:
            self._num_waiting -= 1
            self._num_of_client[job.client] -= 1
            if not self._num_of_client[job.client]:
                del self._num_of_client[job.client]

    def _begin(self, jobs: Sequence[Job]) -> None:
        """Encode the pictures of some jobs together, and let their rows run."""
        groups: dict[tuple[Loaded, str | None], list[Job]] = {}
        for job in jobs:
            tower = job.leased.model.adapters.of_pictures(job.leased.adapter)
            groups.setdefault((job.leased.loaded, tower), []).append(job)
        for (loaded, tower), group in groups.items():
            self._encode([job for job in group if job.picture is not None], loaded, tower)
            for job in group:
                if not job.is_over:
                    self._queue_rows(job)

    def _encode(self, jobs: Sequence[Job], loaded: Loaded, tower: str | None) -> None:
        """Encode pictures together; where that fails, one by one, so that one loses no other."""
        jobs = [job for job in jobs if not job.is_left]
        pictures = [job.picture for job in jobs if job.picture is not None]
        try:
            found = loaded.model.engine.encode([one.pixels for one in pictures], adapter=tower)
        except Exception as error:
            if len(jobs) == 1:
                self._failed(jobs[0], error)
            else:
                for job in jobs:
                    self._encode([job], loaded, tower)
            return
        for job, picture, soft_tokens in zip(jobs, pictures, found, strict=True):
            job.encoded = picture.encoded(soft_tokens, owner=loaded.model, adapter=tower)

    def _queue_rows(self, job: Job) -> None:
        if job.is_left:
            self._end(job)
            return
        loaded = job.leased.loaded
        try:
            for number, question in enumerate(job.questions):
                for row, plain in enumerate(question.requests):
                    request = replace(plain, adapter=job.leased.adapter)
                    handle = loaded.queue.submit(about(request, job.encoded))
                    job.rows[handle] = number, row
                    self._rows[loaded, handle] = job
        except Exception as error:
            self._failed(job, error)

    def _failed(self, job: Job, error: Exception) -> None:
        if not isinstance(error, PaliGemmaError):
            logger.error("a request failed before its first token", exc_info=error)
        self._end(job, error)

    def _went_on(self, loaded: Loaded, progress: Progress) -> None:
        job = self._rows.get((loaded, progress.handle))
        if job is None:
            return  # it ended in this very step
        if progress.fault is not None:
            # Otherwise what the request asked for leaves nothing to choose.
            is_ours = progress.fault == NOT_NUMBERS
            self._end(
                job,
                ServeError(progress.fault, status=500, code="server_error")
                if is_ours
                else ServeError(progress.fault),
            )
            return
        job.last_token = time.monotonic()
        job.first_token = job.first_token or job.last_token
        job.num_written += 1
        number, row = job.rows[progress.handle]
        if job.stop and not row and progress.written is None and _stops(job, number, progress):
            progress = replace(progress, written=loaded.queue.end(progress.handle))
        is_last = progress.written is not None
        if job.follows or is_last:
            so_far = None
            if job.shows_objects and job.begins_box(progress.handle, progress.token):
                so_far = loaded.queue.so_far(progress.handle)
            wrote = Wrote(question=number, row=row, progress=progress, so_far=so_far)
            self._tell(job, wrote)
        if is_last:
            del job.rows[progress.handle], self._rows[loaded, progress.handle]
            if not job.rows:
                self._end(job)

    def _end(self, job: Job, error: BaseException | None = None) -> None:
        """Forget a job, wherever it is, and tell its request."""
        if job.is_over:
            return
        job.is_over = True
        for handle in job.rows:
            del self._rows[job.leased.loaded, handle]
            try:
                job.leased.loaded.queue.cancel(handle)
            except Exception as failure:
                logger.error("a row was not freed", exc_info=failure)
        job.rows.clear()
        if job in self._running:
            del self._running[job]
        else:
            self._left_waiting(job)
        self._tell(job, error)

    def _tell(self, job: Job, event: Wrote | BaseException | None) -> None:
        self._letters.setdefault(job.loop, []).append((job, event))

    def _send(self) -> None:
        """Wake every loop once for all that a step wrote."""
        letters, self._letters = self._letters, {}
        for loop, of_loop in letters.items():
            try:
                loop.call_soon_threadsafe(deliver, of_loop)
            except RuntimeError:
                logger.info("%d answers have no reader any more", len(of_loop))


def _stops(job: Job, number: int, progress: Progress) -> bool:
    """Whether the text of an answer ends with this token, as its request asked."""
    decode = job.leased.model.processor.tokenizer.decode
    text = job.texts.setdefault(number, TextPieces(decode))
    text.push(progress.token)
    return any(stop in text.text for stop in job.stop)
