"""/v1/chat/completions, as OpenAI's clients know it; `chat_fields` has the rules."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from paligemma.generate import DecodeOptions
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.pipeline.question import Question
from paligemma.processing.tokenizer import Tokenizer
from paligemma.serve.answers import ChatBody
from paligemma.serve.asking import Answered, Asking, Event, Service, Shown, Token, usage
from paligemma.serve.bodies import read_json
from paligemma.serve.chat_fields import ChatRequest, Conversation, answer_options, chat_request
from paligemma.serve.openapi import answers, body_of
from paligemma.serve.streams import event_stream, sse
from paligemma.serve.told_text import ToldText

_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


def chat_routes(service: Service) -> APIRouter:
    """/v1/chat/completions."""
    router = APIRouter(tags=["chat"])

    async def chat(request: Request) -> Response:
        wanted = chat_request(read_json(await request.body()))
        asked = Conversation.of(wanted.messages, service.options.max_pictures)
        options = answer_options(wanted, service.options)
        pictures = await service.sources.read(asked.pictures, "messages")

        def make(model: PaliGemma, adapter: str | None) -> Sequence[Question]:
            questions = [
                model.question(
                    asked.prompt,
                    has_picture=bool(asked.pictures),
                    adapter=adapter,
                    **{**options, "seed": (options["seed"] + number) % 2**63},
                )
                for number in range(wanted.num_answers)
            ]
            return [_telling(one, wanted.top_logprobs or 0) for one in questions]

        asking = service.ask(
            model=wanted.model,
            client=request.state.client,
            pictures=pictures,
            questions=make,
            stop=wanted.stops,
            follows=wanted.stream or wanted.logprobs or bool(wanted.stops),
        )
        answer = _Chat(wanted, asked, options["seed"])
        if wanted.stream:
            return await event_stream(asking, answer.streamed, last=sse("[DONE]"))
        async with asking as one:
            return JSONResponse(await answer.whole(one))

    router.add_api_route(
        "/v1/chat/completions",
        chat,
        methods=["POST"],
        summary="A chat about pictures.",
        responses=answers(ChatBody, streams=True),
        openapi_extra=body_of(ChatRequest),
    )
    return router


def _telling(question: Question, num_alternatives: int) -> Question:
    """The question, whose answer tells of the likeliest tokens beside the chosen ones."""
    requests = [
        replace(one, decoder=replace(one.decoder, num_alternatives=num_alternatives))
        if num_alternatives and isinstance(one.decoder, DecodeOptions)
        else one
        for one in question.requests
    ]
    return replace(question, requests=tuple(requests))


class _Growing:
    """One answer of a chat while it is written."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.told = ToldText(stops)
        self.text = ""
        self.logprobs: list[Any] = []
        self.reason: str | None = None

    def add(self, event: Event, logprob: Any) -> tuple[str, list[Any]]:
        """The text and the probabilities that one event lets be told."""
        if isinstance(event, Answered):
            piece, logprobs = self.told.finish(event.piece)
            is_cut = any(written.is_cut for written in event.written)
            self.reason = "length" if is_cut and not self.told.is_stopped else "stop"
        elif isinstance(event, Shown):
            return "", []
        else:
            piece, logprobs = self.told.push(event.piece, logprob)
        self.text += piece
        self.logprobs += logprobs
        return piece, logprobs


class _Chat:
    """Makes the bodies of a chat's answers."""

    def __init__(self, wanted: ChatRequest, asked: Conversation, seed: int) -> None:
        self.wanted = wanted
        self.facts = {"prompt": asked.prompt, "ignored": list(asked.ignored), "seed": seed}
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self._answers = [_Growing(wanted.stops) for _ in range(wanted.num_answers)]
        self._num_written = 0
        options = wanted.stream_options
        self._tells_usage = options is not None and options.include_usage

    def _body(self, asking: Asking, kind: str, choices: Sequence[Any]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": asking.lease.name,
            "system_fingerprint": None,
            "choices": choices,
        }

    def _add(self, asking: Asking, event: Event) -> tuple[str, list[Any]]:
        logprob = None
        if isinstance(event, Answered):
            self._num_written += event.num_tokens
        elif isinstance(event, Token) and self.wanted.logprobs:
            logprob = _logprob(event, asking.model.processor.tokenizer)
        return self._answers[event.answer].add(event, logprob)

    async def whole(self, asking: Asking) -> dict[str, Any]:
        """The body, once all answers are written."""
        async for event in asking.events:
            self._add(asking, event)
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": one.text, "refusal": None},
                "finish_reason": one.reason,
                "logprobs": self._logprobs(one.logprobs),
            }
            for number, one in enumerate(self._answers)
        ]
        body = self._body(asking, "chat.completion", choices)
        counts = usage(asking.num_prompt_tokens, self._num_written)
        return body | {"usage": counts, "paligemma": self.facts}

    async def streamed(self, asking: Asking) -> AsyncIterator[str]:
        """Chunks of all answers as they are written."""
        is_begun = False
        async for event in asking.events:
            if not is_begun:
                is_begun = True
                for number in range(self.wanted.num_answers):
                    delta = {"role": "assistant", "content": "", "refusal": None}
                    yield self._chunk(asking, number, delta, facts=self.facts)
            piece, logprobs = self._add(asking, event)
            reason = self._answers[event.answer].reason
            if piece or logprobs or reason:
                delta = {"content": piece} if piece or logprobs else {}
                yield self._chunk(asking, event.answer, delta, logprobs=logprobs, reason=reason)
        if self._tells_usage:
            last = self._body(asking, "chat.completion.chunk", [])
            yield sse(last | {"usage": usage(asking.num_prompt_tokens, self._num_written)})

    def _chunk(
        self,
        asking: Asking,
        number: int,
        delta: dict[str, Any],
        *,
        logprobs: Sequence[Any] = (),
        reason: str | None = None,
        facts: dict[str, Any] | None = None,
    ) -> str:
        choice = {
            "index": number,
            "delta": delta,
            "logprobs": self._logprobs(logprobs) if logprobs else None,
            "finish_reason": reason,
        }
        body = self._body(asking, "chat.completion.chunk", [choice])
        if self._tells_usage:
            body["usage"] = None
        return sse(body | ({"paligemma": facts} if facts else {}))

    def _logprobs(self, found: Sequence[Any]) -> dict[str, Any] | None:
        return {"content": list(found), "refusal": None} if self.wanted.logprobs else None


def _logprob(event: Token, tokenizer: Tokenizer) -> dict[str, Any]:
    """A token with its probability; the end token is the last of an answer and has no text."""
    likeliest = [_spelt(*one, tokenizer) for one in event.alternatives]
    return _spelt(event.token, event.logprob, tokenizer) | {"top_logprobs": likeliest}


def _spelt(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    text = tokenizer.decode([token])
    piece = _BYTE_PIECE.fullmatch(tokenizer.piece(token))
    data = bytes.fromhex(piece[1]) if piece else text.encode()
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(data)}
