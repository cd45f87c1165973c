"""From a checked request to its answers: what every route has in common."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from paligemma.pipeline.paligemma import PaliGemma
from paligemma.pipeline.pictures import ReadPicture, read_picture
from paligemma.pipeline.question import Question
from paligemma.serve.models import Lease, Models
from paligemma.serve.options import ServerOptions
from paligemma.serve.pictures import KeptPictures
from paligemma.serve.worker import Event, Job, Worker

logger = logging.getLogger(__name__)

MakeQuestions = Callable[[PaliGemma, str | None], Sequence[Question]]


@dataclass(eq=False)
class Service:
    """What a server consists of, apart from HTTP."""

    options: ServerOptions
    models: Models
    worker: Worker
    kept: KeptPictures
    readers: ThreadPoolExecutor

    @classmethod
    def of(cls, models: Models, options: ServerOptions) -> Service:
        """A service of these models, which does not compute yet."""
        return cls(
            options=options,
            models=models,
            worker=Worker(options),
            kept=KeptPictures(options.kept_picture_bytes),
            readers=ThreadPoolExecutor(options.num_readers, thread_name_prefix="reader"),
        )

    def close(self) -> None:
        """Stop all threads."""
        self.worker.close()
        self.readers.shutdown(wait=False, cancel_futures=True)
        self.models.close()

    @contextlib.asynccontextmanager
    async def ask(
        self,
        *,
        model: str | None,
        client: str,
        pictures: Sequence[bytes],
        questions: MakeQuestions,
        stop: Sequence[str] = (),
    ) -> AsyncIterator[Asking]:
        """Questions about a picture, or several as frames of one example, checked and on their way.

        Args:
            questions: makes them, given the model and the adapter that was named; in a thread.
            stop: texts that end an answer.

        Raises:
            PaliGemmaError: an unknown model, a bad picture or prompt, or too many requests.
        """
        loop = asyncio.get_running_loop()
        async with self.models.lease(model) as lease:
            prepare = partial(_prepared, lease.model, lease.adapter, tuple(pictures), questions)
            asked, picture = await loop.run_in_executor(self.readers, prepare)
            job = Job(lease=lease, client=client, questions=asked, picture=picture, stop=stop)
            events = self.worker.answer(job)
            async with contextlib.aclosing(events):
                yield Asking(lease=lease, job=job, events=events)

    async def run(self, work: Callable[[], Any]) -> Any:
        """A piece of work beside the loop, as drawing."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, work)


@dataclass(frozen=True, kw_only=True, eq=False)
class Asking:
    """A request on its way."""

    lease: Lease
    job: Job
    events: AsyncIterator[Event]

    @property
    def model(self) -> PaliGemma:
        return self.lease.model

    @property
    def num_prompt_tokens(self) -> int:
        """Of picture and prompt; once for every answer's own prompt."""
        config, picture = self.model.config, self.job.picture
        frames = 0
        if picture is not None:
            frames = picture.pixels.shape[0] if picture.pixels.ndim == 4 else 1
        first = self.job.questions[0].requests
        return sum(len(one.row) + frames * config.num_image_tokens for one in first)


def _prepared(
    model: PaliGemma, adapter: str | None, pictures: Sequence[bytes], questions: MakeQuestions
) -> tuple[Sequence[Question], ReadPicture | None]:
    asked = questions(model, adapter)
    if not pictures:
        return asked, None
    frames = list(pictures)
    return asked, read_picture(frames if len(frames) > 1 else frames[0], model.processor)


def usage(num_prompt: int, num_written: int) -> Mapping[str, int]:
    """As OpenAI counts."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_written,
        "total_tokens": num_prompt + num_written,
    }
