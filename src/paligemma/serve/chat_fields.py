"""What a chat may ask, and the rules by which a conversation becomes one prompt about pictures.

1. The last message but for those of the system is the user's; its text is the prompt, as it is.
2. The pictures are those of the last user message that has any; several are frames of one example.
3. Other text is not read: earlier turns, and messages of the system. `ignored` of the answer names
   what was left out.
4. Answers are greedy unless a temperature above 0 or a top_p below 1 is stated.
5. Fields that change no answer are ignored; unknown ones, and what cannot be obeyed, are refused.
"""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paligemma.serve.bodies import validation_error
from paligemma.serve.errors import ServeError
from paligemma.serve.options import ServerOptions
from paligemma.serve.schemas import MAX_PROMPT_CHARS, PIXEL

MAX_STOPS = 4

# Fields of OpenAI's API that change no answer of this family.
IGNORED = frozenset(
    {
        "metadata",
        "moderation",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "store",
        "verbosity",
    }
)
# Fields that ask for what there is not, and the value that asks for nothing.
REFUSED: Mapping[str, Any] = {
    "audio": None,
    "frequency_penalty": 0,
    "function_call": "none",
    "functions": [],
    "logit_bias": {},
    "modalities": ["text"],
    "prediction": None,
    "presence_penalty": 0,
    "tool_choice": "none",
    "tools": [],
    "web_search_options": None,
}


class TextPart(BaseModel):
    """Text."""

    type: Literal["text"]
    text: str = Field(max_length=MAX_PROMPT_CHARS)


class ImageUrl(BaseModel):
    """A picture as `data:image/png;base64,…`; `detail` is ignored."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(BaseModel):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(BaseModel):
    """One turn; parts of other types than text and image_url are refused."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None


class JsonSchema(BaseModel):
    """A schema that the answer obeys, whatever `strict` says."""

    name: str | None = Field(None, max_length=300)
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """Text, any object of JSON, or JSON by a schema; JSON is certain, not only asked for."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(BaseModel):
    """What a stream ends with."""

    include_usage: bool = False
    include_obfuscation: bool = False


_EXAMPLE = {
    "model": "tiny",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "detect star"},
                {"type": "image_url", "image_url": {"url": PIXEL}},
            ],
        }
    ],
}


def _with_other_fields(schema: dict[str, Any]) -> None:
    """Add what has a rule but no meaning here."""
    schema["properties"] |= {
        name: {"description": "Ignored."} for name in sorted(IGNORED - schema["properties"].keys())
    }
    schema["properties"] |= {
        name: {"enum": [None] if value is None else [None, value], "description": "Not here."}
        for name, value in REFUSED.items()
    }
    schema["additionalProperties"] = False
    schema["examples"] = [_EXAMPLE]


class ChatRequest(BaseModel):
    """A conversation. The last user message is the prompt, with the pictures of the last user
    message that has any; earlier turns and system messages are not read, which `paligemma.ignored`
    of the answer says. Greedy unless a temperature above 0 or a top_p below 1 is stated."""

    model_config = ConfigDict(json_schema_extra=_with_other_fields)

    model: str | None = Field(None, max_length=300)
    messages: list[Message] = Field(min_length=1, max_length=256)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    user: str | None = Field(None, max_length=300)

    @property
    def num_answers(self) -> int:
        """`n`, which is 1 where it is not stated."""
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


def chat_request(body: object) -> ChatRequest:
    """The checked fields of a body.

    Raises:
        ServeError: a field is wrong, unknown, or asks for what there is not.
    """
    if isinstance(body, dict):
        others = {name: body[name] for name in body if name not in ChatRequest.model_fields}
        for name, value in others.items():
            _require_needless(name, value)
        body = {name: value for name, value in body.items() if name not in others}
        _require_known_parts(body.get("messages"))
    try:
        wanted = ChatRequest.model_validate(body, strict=True)
    except ValidationError as error:
        raise validation_error(error) from None
    if not all(wanted.stops) or len(wanted.stops) > MAX_STOPS:
        raise ServeError(
            f"stop takes 1 to {MAX_STOPS} texts that are not empty, got {len(wanted.stops)}",
            param="stop",
        )
    if wanted.top_logprobs and not wanted.logprobs:
        raise ServeError("top_logprobs needs logprobs; state both", param="top_logprobs")
    if wanted.stream_options is not None and not wanted.stream:
        raise ServeError("stream_options needs stream; state both", param="stream_options")
    return wanted


def _require_needless(name: str, value: Any) -> None:
    """Raise ServeError for a field that would have to change the answer."""
    is_nothing = value is None or (value == REFUSED.get(name) and not isinstance(value, bool))
    if name in REFUSED and not is_nothing:
        raise ServeError(f"this family has no {name}; leave it out", code="unsupported", param=name)
    if name not in IGNORED and name not in REFUSED:
        near = difflib.get_close_matches(name, ChatRequest.model_fields, n=1)
        remedy = f"did you mean {near[0]}?" if near else "leave it out"
        raise ServeError(f"a chat has no field {name!r:.60}; {remedy}", param=f"{name!r:.60}")


def _require_known_parts(messages: object) -> None:
    """Raise ServeError that names parts and roles which other models have."""
    for number, message in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(message, dict):
            continue
        where = f"messages.{number}"
        if message.get("role") in ("tool", "function"):
            raise ServeError(
                f"this family calls no tools, got a message of role {message['role']}; leave it "
                "out",
                code="unsupported",
                param=where,
            )
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind not in ("text", "image_url"):
                raise ServeError(
                    f"a message has parts of type text and image_url, got {kind!r:.60}; send "
                    "pictures as image_url",
                    code="unsupported",
                    param=where,
                )


@dataclass(frozen=True)
class Conversation:
    """What a conversation asks.

    Attributes:
        ignored: which messages or parts of them are not read.
    """

    prompt: str
    pictures: list[str]
    ignored: tuple[str, ...]

    @classmethod
    def of(cls, messages: Sequence[Message], max_pictures: int) -> Conversation:
        """Raises ServeError where there is no prompt, or where there are too many pictures."""
        turns = [
            (number, message)
            for number, message in enumerate(messages)
            if message.role in ("user", "assistant")
        ]
        if not turns or turns[-1][1].role != "user":
            raise ServeError(
                "the last message must be the user's, whose text is the prompt, got "
                f"{turns[-1][1].role if turns else 'none'}; add one",
                param="messages",
            )
        last, asking = turns[-1]
        prompt = " ".join(part.text for part in _parts(asking) if isinstance(part, TextPart))
        shown, urls = last, list[str]()
        for number, message in reversed(turns):
            urls = [part.image_url.url for part in _parts(message) if isinstance(part, ImagePart)]
            if urls and message.role == "user":
                shown = number
                break
        else:
            urls = []
        if len(urls) > max_pictures:
            raise ServeError(
                f"a request may have {max_pictures} pictures, got {len(urls)}; send fewer",
                param="messages",
            )
        ignored = tuple(
            f"messages[{number}]: {message.role}" + (", but for its pictures" * (number == shown))
            for number, message in enumerate(messages)
            if number != last
        )
        return cls(prompt, urls, ignored)


def _parts(message: Message) -> Sequence[TextPart | ImagePart]:
    if isinstance(message.content, str):
        return [TextPart.model_construct(type="text", text=message.content)]
    return message.content or []


def answer_options(wanted: ChatRequest, limits: ServerOptions) -> dict[str, Any]:
    """The options of `AnswerOptions` that a chat states; the seed is that of the first answer.

    Raises:
        ServeError: more is asked for than the server allows.
    """
    if wanted.num_answers > limits.max_answers:
        raise ServeError(
            f"n may be {limits.max_answers} here, got {wanted.n}; ask for fewer", param="n"
        )
    bound = wanted.max_completion_tokens or wanted.max_tokens
    if bound is not None and bound > limits.max_new_tokens:
        raise ServeError(
            f"max_tokens may be {limits.max_new_tokens} here, got {bound}; ask for fewer",
            param="max_tokens",
        )
    options: dict[str, Any] = {"seed": 0}
    if bound is not None:
        options["max_new_tokens"] = bound
    if wanted.temperature:
        options["temperature"] = wanted.temperature
    if wanted.top_p not in (None, 1) and wanted.temperature != 0:
        options["top_p"] = wanted.top_p
    if wanted.seed is not None:
        options["seed"] = wanted.seed
    elif len(options.keys() & {"temperature", "top_p"}):  # draws differ from request to request
        options["seed"] = secrets.randbelow(2**62)
    form = wanted.response_format
    if form is not None and form.type == "json_object":
        options["json_schema"] = {"type": "object"}
    elif form is not None and form.type == "json_schema":
        if form.json_schema is None:
            raise ServeError("response_format json_schema needs a schema", param="response_format")
        options["json_schema"] = form.json_schema.schema_
    return options
