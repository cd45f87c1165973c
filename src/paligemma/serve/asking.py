"""From a checked request to its answers: what every route has in common."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

from paligemma.errors import PromptError
from paligemma.outputs.detections import Detections
from paligemma.outputs.types import Detection, TextAnswer
from paligemma.pipeline.engine import Written
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.pipeline.pictures import EncodedImage, ReadPicture, read_picture
from paligemma.pipeline.question import Question
from paligemma.processing.frames import Frames
from paligemma.serve.job import Job, Wrote, too_slow
from paligemma.serve.library import Library
from paligemma.serve.models import Lease, Models
from paligemma.serve.options import ServerOptions
from paligemma.serve.pictures import KeptPictures, Sources
from paligemma.serve.record import current
from paligemma.serve.told_rows import ToldRows
from paligemma.serve.worker import Worker

logger = logging.getLogger(__name__)

T = TypeVar("T")
MakeQuestions = Callable[[PaliGemma, str | None], Sequence[Question]]


@dataclass(eq=False)
class Service:
    """What a server consists of, apart from HTTP."""

    options: ServerOptions
    models: Models
    worker: Worker
    kept: KeptPictures
    sources: Sources
    readers: ThreadPoolExecutor
    library: Library | None = None  # of pages that are searched

    @classmethod
    def of(
        cls, models: Models, options: ServerOptions, *, library: Library | None = None
    ) -> Service:
        """A service of these models, which does not compute yet."""
        return cls(
            options=options,
            models=models,
            worker=Worker(options),
            kept=KeptPictures(options.kept_picture_bytes),
            sources=Sources.of(options),
            readers=ThreadPoolExecutor(options.num_readers, thread_name_prefix="reader"),
            library=library,
        )

    def close(self) -> None:
        """Stop all threads."""
        self.worker.close()
        self.readers.shutdown(wait=False, cancel_futures=True)
        self.sources.close()
        self.models.close()
        if self.library is not None:
            self.library.close()

    @contextlib.asynccontextmanager
    async def ask(
        self,
        *,
        model: str | None,
        client: str,
        pictures: Sequence[bytes],
        questions: MakeQuestions,
        stop: Sequence[str] = (),
        follows: bool = True,
        shows_objects: bool = False,
    ) -> AsyncIterator[Asking]:
        """Questions about a picture, or several as frames of one example, checked and on their way.

        Leaving frees what the request holds, complete or not.

        Args:
            questions: makes them, given the model and the adapter that was named; in a thread.
            stop: texts that end an answer.
            follows: whether there is an event for every token.
            shows_objects: whether there is one for every object, too.

        Raises:
            PaliGemmaError: an unknown model, a bad picture or prompt, or too many requests.
        """
        job = Job(client=client, follows=follows, shows_objects=shows_objects, stop=stop)
        self.worker.enter(job)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.worker.leave, job)
            stack.callback(_note, job)
            try:
                async with asyncio.timeout(self.options.answer_s):
                    job.lease = await stack.enter_async_context(self.models.lease(model))
                    of = job.lease.model, job.lease.adapter
                    prepare = partial(_prepared, self.options, *of, tuple(pictures), questions)
                    before = time.monotonic()
                    job.questions, job.picture = await self.run(prepare)
                    job.read_s = time.monotonic() - before
            except TimeoutError:
                raise too_slow(self.options) from None
            self.worker.submit(job)
            yield Asking(service=self, lease=job.lease, job=job)

    async def run(self, work: Callable[[], T]) -> T:
        """A piece of work beside the loop, as drawing."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, work)


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token of an answer; those of a question's second request follow all of the first.

    Attributes:
        answer: number of the question in its request.
        place: number of the request in its question.
        piece: what it adds to the text; empty inside a character of several tokens. The first of a
            later request begins with the separator of objects.
        alternatives: see `TokenEvent`.
    """

    answer: int
    place: int
    token: int
    logprob: float
    piece: str
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """An object whose tokens are all there, of at least the threshold."""

    answer: int
    detection: Detection


@dataclass(frozen=True, kw_only=True, eq=False)
class Answered:
    """The whole answer to one question of a request.

    Attributes:
        piece: what its tokens did not tell of the text; joined with theirs it is the text.
    """

    answer: int
    piece: str
    result: TextAnswer | Detections
    written: tuple[Written, ...]
    encoded: EncodedImage | None

    @property
    def num_tokens(self) -> int:
        return sum(len(one.record.ids) for one in self.written)


Event = Token | Shown | Answered


@dataclass(frozen=True, kw_only=True, eq=False)
class Asking:
    """A request on its way."""

    service: Service
    lease: Lease
    job: Job

    @property
    def model(self) -> PaliGemma:
        return self.lease.model

    @property
    def num_prompt_tokens(self) -> int:
        """Of picture and prompt; once for every answer's own prompt."""
        first = self.job.questions[0].requests
        return sum(len(one.row) + self.job.num_image_tokens for one in first)

    @cached_property
    def events(self) -> AsyncIterator[Event]:
        """Tokens and answers as they come.

        Raises:
            PaliGemmaError: see `Worker.steps`.
        """
        return self._events()

    async def _events(self) -> AsyncIterator[Event]:
        decode = self.model.processor.tokenizer.decode
        told = [ToldRows(decode) for _ in self.job.questions]
        async for next_wrote in self.service.worker.steps(self.job):
            number = next_wrote.question
            for wrote in told[number].in_order(next_wrote):
                if self.job.follows:
                    yield Token(
                        answer=number,
                        place=wrote.row,
                        token=wrote.progress.token,
                        logprob=wrote.progress.logprob,
                        piece=told[number].piece(wrote.progress),
                        alternatives=wrote.progress.alternatives,
                    )
                for found in await self._shown(wrote, told[number]):
                    yield found
            question, written = self.job.questions[number], tuple(told[number].written)
            if len(written) == len(question.requests):
                read = partial(self.model.reader.answer, question, written, self.job.encoded)
                result = await self._read(question, read)
                yield Answered(
                    answer=number,
                    piece=result.text[told[number].num_chars :],
                    result=result,
                    written=written,
                    encoded=self.job.encoded,
                )

    async def _read(self, question: Question, read: Callable[[], T]) -> T:
        # Masks take their time; words and boxes are not worth another thread.
        return await self.service.run(read) if question.wants_masks else read()

    async def _shown(self, wrote: Wrote, told: ToldRows) -> list[Shown]:
        """The objects that a token completes."""
        so_far, encoded = wrote.so_far or wrote.progress.written, self.job.encoded
        if not self.job.shows_objects or so_far is None or encoded is None:
            return []
        question = self.job.questions[wrote.question]
        read = partial(
            self.model.reader.objects, question, wrote.row, so_far, encoded, start=told.num_objects
        )
        new, told.num_objects = await self._read(question, read)
        return [Shown(answer=wrote.question, detection=one) for one in new]


def _note(job: Job) -> None:
    """What the log and the metrics learn of a request, once it is left."""
    record = current.get()
    if record is None or job.lease is None:
        return
    record.model = job.lease.name
    if job.picture is not None:
        record.decoded_s = job.read_s
    for question in job.questions:
        for one in question.requests:
            record.num_prompt_tokens += len(one.row) + job.num_image_tokens
    record.num_tokens += job.num_written
    record.first_token, record.last_token = job.first_token, job.last_token
    if job.started is not None:
        record.queued_s = job.started - job.arrived - job.read_s


def _prepared(
    options: ServerOptions,
    model: PaliGemma,
    adapter: str | None,
    pictures: Sequence[bytes],
    questions: MakeQuestions,
) -> tuple[Sequence[Question], ReadPicture | None]:
    asked = questions(model, adapter)
    longest = max(len(one.row) for question in asked for one in question.requests)
    if longest > options.max_prompt_tokens:
        raise PromptError(
            f"a prompt may have {options.max_prompt_tokens} tokens here, got {longest}; shorten it"
        )
    if not pictures:
        return asked, None
    return asked, read_picture(
        Frames(*pictures) if len(pictures) > 1 else pictures[0], model.processor
    )


def usage(num_prompt: int, num_written: int) -> Mapping[str, int]:
    """As OpenAI counts."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_written,
        "total_tokens": num_prompt + num_written,
    }
