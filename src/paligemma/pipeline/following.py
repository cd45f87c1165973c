"""An answer whose tokens are shown while it is written, and which can be stopped between two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

from paligemma.errors import ConfigError
from paligemma.outputs.types import TextAnswer
from paligemma.pipeline.engine import Request, Written
from paligemma.pipeline.engine_queue import EngineQueue
from paligemma.pipeline.notices import warn_of_cuts
from paligemma.pipeline.options import AskKeywords
from paligemma.pipeline.pictures import Picture, about
from paligemma.pipeline.streaming import TextPieces

if TYPE_CHECKING:
    from paligemma.outputs.detections import Detections
    from paligemma.pipeline.paligemma import PaliGemma


@dataclass(frozen=True, kw_only=True)
class WrittenToken:
    """One token of an answer.

    Attributes:
        text: what it adds to the text of the answer, "" where nothing or no whole character yet.
        logprob: its log-probability in the unmodified logits.
    """

    id: int
    text: str
    logprob: float


OnToken = Callable[[WrittenToken], None]


def follow(
    pg: PaliGemma,
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
    question = pg.question(prompt, **options)
    encoded = pg.encode_image(image, adapter=question.requests[0].adapter)
    written = [_written(pg, about(one, encoded), on_token) for one in question.requests]
    if num_cut := sum(one.is_cut for one in written):
        warn_of_cuts(num_cut, question.requests)
    return pg.reader.answer(question, written, encoded)


def _written(pg: PaliGemma, request: Request, on_token: OnToken) -> Written:
    pieces = TextPieces(pg.processor.tokenizer.decode)

    def show(token: int, logprob: float, *, is_last: bool) -> None:
        text = pieces.push(token) + (pieces.rest() if is_last else "")
        on_token(WrittenToken(id=token, text=text, logprob=logprob))

    queue = EngineQueue(pg.engine)
    queue.submit(request)
    while True:
        for one in queue.step():
            if one.fault is not None:
                raise ConfigError(one.fault)
            show(one.token, one.logprob, is_last=one.written is not None)
            if one.written is not None:
                return one.written
