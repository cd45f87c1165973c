"""/v1/chat/completions and /v1/models, as OpenAI's clients know them."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paligemma.outputs.words import token_json
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.pipeline.question import Question
from paligemma.serve.asking import Asking, Service, usage
from paligemma.serve.bodies import read_json
from paligemma.serve.errors import ServeError, as_serve_error
from paligemma.serve.native import TASKS, sse, validation_error
from paligemma.serve.pictures import picture_bytes
from paligemma.serve.schemas import MAX_PROMPT_CHARS
from paligemma.serve.worker import Answered, Token


class TextPart(BaseModel):
    type: Literal["text"]
    text: str = Field(max_length=MAX_PROMPT_CHARS)


class ImageUrl(BaseModel):
    url: str
    detail: str | None = None


class ImagePart(BaseModel):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None


class JsonSchema(BaseModel):
    name: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(BaseModel):
    type: Literal["text", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """A conversation; the last user message is the prompt, the last pictures are asked about."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(None, max_length=300)
    messages: list[Message] = Field(min_length=1, max_length=256)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**62)
    stop: str | list[str] | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    user: str | None = Field(None, max_length=300)


@dataclass(frozen=True)
class Asked:
    """What a conversation asks: by the rule that the last user message is the prompt, and that the
    pictures are those of the last message that has any, up to it."""

    prompt: str
    pictures: list[bytes]

    @classmethod
    def of(cls, messages: Sequence[Message], max_pictures: int) -> Asked:
        """Raises ServeError where there is no prompt, or too many pictures."""
        users = [message for message in messages if message.role == "user"]
        if not users:
            raise ServeError("a conversation needs a user message, got none", param="messages")
        prompt = " ".join(part.text for part in _parts(users[-1]) if isinstance(part, TextPart))
        urls: list[str] = []
        for message in reversed(users):
            urls = [part.image_url.url for part in _parts(message) if isinstance(part, ImagePart)]
            if urls:
                break
        if len(urls) > max_pictures:
            raise ServeError(
                f"a request may have {max_pictures} pictures, got {len(urls)}; send fewer",
                param="messages",
            )
        return cls(prompt, [picture_bytes(url, "messages") for url in urls])


def _parts(message: Message) -> Sequence[TextPart | ImagePart]:
    if message.content is None:
        return []
    if isinstance(message.content, str):
        return [TextPart(type="text", text=message.content)]
    return message.content


def chat_routes(service: Service) -> APIRouter:
    """/v1/chat/completions and /v1/models."""
    router = APIRouter(tags=["chat"])

    async def chat(request: Request) -> Response:
        try:
            wanted = ChatRequest.model_validate(read_json(await request.body()))
        except ValidationError as error:
            raise validation_error(error) from None
        asked = Asked.of(wanted.messages, service.options.max_pictures)
        options = _options(wanted, service)

        def make(model: PaliGemma, adapter: str | None) -> Sequence[Question]:
            return [
                model.question(
                    asked.prompt,
                    has_picture=bool(asked.pictures),
                    adapter=adapter,
                    **{**options, "seed": options["seed"] + number},
                )
                for number in range(wanted.n)
            ]

        asking = service.ask(
            model=wanted.model,
            client=request.state.client,
            pictures=asked.pictures,
            questions=make,
        )
        answer = _Chat(wanted)
        if not wanted.stream:
            async with asking as one:
                return JSONResponse(await answer.whole(one))
        context = await asking.__aenter__()

        async def events() -> AsyncIterator[str]:
            try:
                async for event in answer.streamed(context):
                    yield event
            except Exception as error:
                yield sse(as_serve_error(error).body())
            finally:
                await asking.__aexit__(None, None, None)
            yield sse("[DONE]")

        return StreamingResponse(events(), media_type="text/event-stream")

    router.add_api_route(
        "/v1/chat/completions",
        chat,
        methods=["POST"],
        summary="A chat about pictures.",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": ChatRequest.model_json_schema()}},
            }
        },
    )

    @router.get("/v1/models", summary="The models by name.")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(service, one) for one in service.models.names]}

    @router.get("/v1/models/{name:path}", summary="One model.")
    async def model(name: str) -> dict[str, Any]:
        return _model(service, name)

    return router


def _options(wanted: ChatRequest, service: Service) -> dict[str, Any]:
    limits = service.options
    if wanted.n > limits.max_answers:
        raise ServeError(
            f"n may be {limits.max_answers} here, got {wanted.n}; ask for fewer", param="n"
        )
    bound = wanted.max_completion_tokens or wanted.max_tokens
    if bound is not None and bound > limits.max_new_tokens:
        raise ServeError(
            f"max_tokens may be {limits.max_new_tokens} here, got {bound}; ask for fewer",
            param="max_tokens",
        )
    options: dict[str, Any] = {"seed": wanted.seed or 0}
    if bound is not None:
        options["max_new_tokens"] = bound
    # A chat is greedy unless it says otherwise: answers of this family are short and exact.
    if wanted.temperature is not None:
        options["temperature"] = wanted.temperature
    if wanted.top_p is not None and wanted.temperature != 0:
        options["top_p"] = wanted.top_p
    form = wanted.response_format
    if form is not None and form.type == "json_schema":
        if form.json_schema is None:
            raise ServeError("response_format json_schema needs a schema", param="response_format")
        options["json_schema"] = form.json_schema.schema_
    return options


def _model(service: Service, name: str) -> dict[str, Any]:
    spec, adapter = service.models.spec(name)
    loaded = service.models.loaded(name)
    facts: dict[str, Any] = {
        "quant": spec.quant,
        "adapter": adapter,
        "tasks": list(TASKS),
        "loaded": loaded is not None,
        "default": name == service.models.default,
    }
    if loaded is not None:
        model = loaded.model
        facts |= {
            "image_size_px": model.processor.image_size_px,
            "num_parameters": sum(one.numel() for one in model.model.parameters()),
            "has_masks": model.mask_codec is not None,
        }
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "paligemma",
        "paligemma": facts,
    }


class _Chat:
    """Makes the bodies of a chat's answers."""

    def __init__(self, wanted: ChatRequest) -> None:
        self.wanted = wanted
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def _body(self, asking: Asking, kind: str, choices: Sequence[Any]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": asking.lease.name,
            "choices": choices,
        }

    async def whole(self, asking: Asking) -> dict[str, Any]:
        """The body, once all answers are written."""
        found: dict[int, Answered] = {}
        async for event in asking.events:
            if isinstance(event, Answered):
                found[event.answer] = event
        choices = []
        for number, one in sorted(found.items()):
            choices.append(
                {
                    "index": number,
                    "message": {"role": "assistant", "content": one.result.text},
                    "finish_reason": _reason(one),
                    "logprobs": self._logprobs(asking, one) if self.wanted.logprobs else None,
                }
            )
        body = self._body(asking, "chat.completion", choices)
        num_written = sum(one.num_tokens for one in found.values())
        return body | {"usage": usage(asking.num_prompt_tokens, num_written)}

    async def streamed(self, asking: Asking) -> AsyncIterator[str]:
        """Chunks of all answers as they are written."""
        decode = asking.model.processor.tokenizer.decode
        for number in range(self.wanted.n):
            yield self._chunk(asking, number, {"role": "assistant", "content": ""})
        num_written = 0
        async for event in asking.events:
            if isinstance(event, Token):
                logprobs = None
                if self.wanted.logprobs:
                    logprobs = {"content": [_logprob(event.token, event.logprob, decode)]}
                if event.piece or logprobs:
                    delta = {"content": event.piece}
                    yield self._chunk(asking, event.answer, delta, logprobs=logprobs)
            else:
                num_written += event.num_tokens
                delta = {"content": event.piece} if event.piece else {}
                yield self._chunk(asking, event.answer, delta, reason=_reason(event))
        if self.wanted.stream_options is not None and self.wanted.stream_options.include_usage:
            last = self._body(asking, "chat.completion.chunk", [])
            yield sse(last | {"usage": usage(asking.num_prompt_tokens, num_written)})

    def _chunk(
        self,
        asking: Asking,
        number: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        reason: str | None = None,
    ) -> str:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return sse(self._body(asking, "chat.completion.chunk", [choice]))

    def _logprobs(self, asking: Asking, one: Answered) -> dict[str, Any]:
        decode = asking.model.processor.tokenizer.decode
        return {
            "content": [
                _logprob(token, logprob, decode)
                for written in one.written
                for token, logprob in zip(
                    written.record.ids.tolist(), written.record.logprobs.tolist(), strict=True
                )
            ]
        }


def _reason(one: Answered) -> str:
    return "length" if any(written.is_cut for written in one.written) else "stop"


def _logprob(token: int, logprob: float, decode: Any) -> dict[str, Any]:
    text = token_json(token, logprob, decode)["text"]
    return {
        "token": text,
        "logprob": logprob,
        "bytes": list(text.encode()),
        "top_logprobs": [],
    }
