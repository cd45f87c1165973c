"""Answers to a query, read on the pages that were found for it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial

from paligemma.retrieval.items import Hit
from paligemma.retrieval.page_picture import page_picture
from paligemma.serve.asking import Answered, Service
from paligemma.serve.errors import ServeError
from paligemma.serve.library import Library, Shelf
from paligemma.serve.schemas import AnswerRequest, SearchRequest
from paligemma.serve.tasks import TASKS


async def page_answers(
    service: Service, library: Library, client: str, asked: SearchRequest, hits: Sequence[Hit]
) -> list[str]:
    """What a model of the server reads on the first pages, one answer each.

    Raises:
        PaliGemmaError: a page that cannot be read, or as every request of this server.
    """
    request = AnswerRequest.model_validate({"question": asked.query, "model": asked.model})
    questions = TASKS["answer"].questions(request, service.options.max_new_tokens, has_picture=True)
    texts = []
    for hit in hits[: asked.answers]:
        picture = await library.run(partial(_picture, hit))
        async with service.ask(
            model=request.model,
            client=client,
            pictures=[picture],
            questions=questions,
            follows=False,
        ) as asking:
            found = [one.result.text async for one in asking.events if isinstance(one, Answered)]
        if not found:
            raise ServeError("the answer was cancelled", status=503, code="cancelled")
        texts.append(found[0])
    return texts


def _picture(hit: Hit, shelf: Shelf) -> bytes:
    """PNG of a page; in the library's thread."""
    picture, _ = page_picture(hit, shelf.model.image_size_px)
    memory = io.BytesIO()
    picture.save(memory, "PNG", compress_level=1)
    return memory.getvalue()
