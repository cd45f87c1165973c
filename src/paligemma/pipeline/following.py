"""An answer that is shown while it is written, and which can be stopped between two tokens."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Protocol, Unpack

from paligemma.errors import ConfigError
from paligemma.outputs.types import TextAnswer
from paligemma.pipeline.engine import Engine, Written
from paligemma.pipeline.engine_queue import EngineQueue
from paligemma.pipeline.events import AnswerEvent, CompleteObject, Ended, WrittenToken
from paligemma.pipeline.notices import warn_of_cuts
from paligemma.pipeline.options import AskKeywords
from paligemma.pipeline.pictures import EncodedImage, Picture, about
from paligemma.pipeline.question import Question, Reader
from paligemma.pipeline.streaming import TextPieces
from paligemma.processing.processor import Processor
from paligemma.vocab import Vocab

if TYPE_CHECKING:
    from paligemma.outputs.detections import Detections


class Followed(Protocol):
    """What `PaliGemma` offers to follow an answer."""

    processor: Processor

    @property
    def engine(self) -> Engine: ...
    @property
    def reader(self) -> Reader: ...
    @property
    def vocab(self) -> Vocab: ...
    def question(self, prompt: str, **options: Unpack[AskKeywords]) -> Question: ...
    def encode_image(self, image: Picture, *, adapter: str | None = None) -> EncodedImage: ...


OnToken = Callable[[WrittenToken], None]


def follow(
    pg: Followed,
    image: Picture,
    prompt: str,
    on_token: OnToken,
    **options: Unpack[AskKeywords],
) -> TextAnswer | Detections:
    """What `PaliGemma.ask` gives.

    Args:
        on_token: called with each token before the next is computed, of beams and of the best of
            several draws when the answer is complete. What it raises ends the answer.

    Raises:
        PaliGemmaError: see `PaliGemma.ask`.
    """
    for event in events(pg, image, prompt, **options):
        if isinstance(event, WrittenToken):
            on_token(event)
        elif isinstance(event, Ended):
            answer = event.answer
    return answer


def events(
    pg: Followed, image: Picture, prompt: str, **options: Unpack[AskKeywords]
) -> Iterator[AnswerEvent]:
    """See `PaliGemma.stream_events`; what is wrong is raised before the first of them."""
    question = pg.question(prompt, **options)
    encoded = pg.encode_image(image, adapter=question.requests[0].adapter)
    return _events(pg, question, encoded)


def _events(pg: Followed, question: Question, encoded: EncodedImage) -> Iterator[AnswerEvent]:
    written: list[Written] = []
    for number in range(len(question.requests)):
        written.append((yield from _written(pg, question, number, encoded)))
    if num_cut := sum(one.is_cut for one in written):
        warn_of_cuts(num_cut, question.requests)
    yield Ended(pg.reader.answer(question, written, encoded))


def _written(
    pg: Followed, question: Question, number: int, encoded: EncodedImage
) -> Generator[AnswerEvent, None, Written]:
    pieces = TextPieces(pg.processor.tokenizer.decode)
    queue = EngineQueue(pg.engine)
    handle = queue.submit(about(question.requests[number], encoded))
    num_objects, was_loc = 0, False
    while True:
        for one in queue.step():
            if one.fault is not None:
                raise ConfigError(one.fault)
            text = pieces.push(one.token)
            done, is_loc = one.written, pg.vocab.is_loc(one.token)
            # A box after words begins the next object.
            so_far = queue.so_far(handle) if is_loc and not was_loc else None
            yield WrittenToken(
                id=one.token, text=text + (pieces.rest() if done else ""), logprob=one.logprob
            )
            if found := done or so_far:
                new, num_objects = pg.reader.objects(
                    question, number, found, encoded, start=num_objects
                )
                yield from map(CompleteObject, new)
            was_loc = is_loc
            if done is not None:
                return done
