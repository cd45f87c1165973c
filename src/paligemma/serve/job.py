"""A request between the loop that asks and the thread that computes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from paligemma.pipeline.engine import Written
from paligemma.pipeline.engine_queue import Progress
from paligemma.pipeline.pictures import EncodedImage, ReadPicture
from paligemma.pipeline.question import Question
from paligemma.pipeline.streaming import TextPieces
from paligemma.serve.errors import ServeError
from paligemma.serve.models import Lease
from paligemma.serve.options import ServerOptions


@dataclass(frozen=True, kw_only=True, eq=False)
class Wrote:
    """One token of one row of a request.

    Attributes:
        question, row: numbers of the question in its request, and of the row in its question.
        so_far: all that the row wrote, where this token begins the box of another object.
    """

    question: int
    row: int
    progress: Progress
    so_far: Written | None = None


@dataclass(eq=False)
class Job:
    """One request: some questions about one picture.

    Args:
        client: who asks; clients take turns.
        follows: whether every token is told, or only those that complete a row.
        shows_objects: whether an object is told when it is complete.
        stop: an answer ends once its text contains one of these.
        lease, questions, picture: known before it is submitted; no picture for text alone.
    """

    client: str
    follows: bool = True
    shows_objects: bool = False
    stop: Sequence[str] = ()
    lease: Lease | None = None
    questions: Sequence[Question] = ()
    picture: ReadPicture | None = None
    arrived: float = field(default_factory=time.monotonic)
    read_s: float = 0.0  # time that its picture and questions took
    started: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    num_written: int = 0
    encoded: EncodedImage | None = None
    is_left: bool = False  # by its client
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    told: asyncio.Queue[Wrote | BaseException | None] = field(default_factory=asyncio.Queue)
    # Of the worker's thread from here on.
    rows: dict[int, tuple[int, int]] = field(default_factory=dict)  # by handle
    texts: dict[int, TextPieces] = field(default_factory=dict)  # where some text ends it
    in_box: set[int] = field(default_factory=set)  # handles whose last token is a location
    is_over: bool = False

    @property
    def leased(self) -> Lease:
        """Its model, once it is known."""
        if self.lease is None:
            raise ValueError("the job has no model yet")
        return self.lease

    def begins_box(self, handle: int, token: int) -> bool:
        """Whether a token is the first location of a box: what stands before it is complete."""
        was_loc, is_loc = handle in self.in_box, self.leased.model.vocab.is_loc(token)
        (self.in_box.add if is_loc else self.in_box.discard)(handle)
        return is_loc and not was_loc

    @property
    def num_rows(self) -> int:
        return sum(one.num_rows for question in self.questions for one in question.requests)

    @property
    def num_image_tokens(self) -> int:
        if self.picture is None:
            return 0
        pixels = self.picture.pixels
        num_frames = pixels.shape[0] if pixels.ndim == 4 else 1
        return num_frames * self.leased.model.config.num_image_tokens

    @property
    def num_tokens(self) -> int:
        """Of picture, prompts and answers at the most."""
        return sum(
            one.num_rows * (self.num_image_tokens + len(one.row) + one.decoder.max_new_tokens)
            for question in self.questions
            for one in question.requests
        )


Letter = tuple[Job, Wrote | BaseException | None]


def deliver(letters: Sequence[Letter]) -> None:
    """Tell requests what a step wrote; in their loop."""
    for job, event in letters:
        job.told.put_nowait(event)


def too_slow(options: ServerOptions) -> ServeError:
    """The error of a request that took longer than it may."""
    return ServeError(
        f"the answer was not complete in {options.answer_s:g} s; ask for fewer tokens",
        status=504,
        code="timeout",
    )


def stopping() -> ServeError:
    """The error of a request that comes too late."""
    return ServeError(
        "the server is stopping; ask another, or later",
        status=503,
        code="stopping",
        retry_after_s=5,
    )
