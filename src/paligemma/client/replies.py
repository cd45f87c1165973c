"""What a server sends back: answers, events, and refusals as errors of ours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any, TypeVar

from paligemma.client.pictures import RemoteImage
from paligemma.errors import (
    AccessError,
    ConfigError,
    ImageError,
    MissingExtraError,
    ModelNotFoundError,
    PaliGemmaError,
    PromptError,
    RunError,
)
from paligemma.json_file import parse_json
from paligemma.outputs.boxes import SEPARATOR
from paligemma.outputs.detections import Detections
from paligemma.outputs.types import TextAnswer
from paligemma.outputs.words import detection_from_json
from paligemma.pipeline.events import AnswerEvent, CompleteObject, Ended, WrittenToken

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_ANSWER_BYTES = 256 << 20
_KINDS: Mapping[str, type[PaliGemmaError]] = {
    "invalid_image": ImageError,
    "image_not_found": ImageError,
    "remote_image_off": ImageError,
    "file_off": ImageError,
    "invalid_prompt": PromptError,
    "model_not_found": ModelNotFoundError,
    "not_installed": MissingExtraError,
}
_KINDS_OF_STATUS: Mapping[int, type[PaliGemmaError]] = {
    **dict.fromkeys((401, 403), AccessError),
    **dict.fromkeys((400, 404), ConfigError),
    413: ImageError,
}
# What is wrong with an answer that another program wrote.
_UNREADABLE = (OSError, HTTPException, KeyError, TypeError, IndexError, ValueError)


@dataclass(frozen=True)
class Refusal:
    """Why a server did not answer."""

    error: PaliGemmaError
    code: str | None


def refusal_of(response: HTTPResponse) -> Refusal:
    """What a response other than 200 says, read to its end."""
    status = response.status
    try:
        facts = body_of(response)["error"]
        message, code = str(facts["message"]), facts["code"]
    except (RunError, KeyError, TypeError):
        message, code = f"the server answered with status {status}; see whether it is ours", None
    kind = _KINDS.get(code or "", _KINDS_OF_STATUS.get(status, RunError))
    return Refusal(kind(message), code)


def body_of(response: HTTPResponse) -> Any:
    """The JSON of a response, read to its end.

    Raises:
        RunError: it cannot be read, or is too large.
    """
    try:
        data = response.read(MAX_ANSWER_BYTES + 1)
        if len(data) > MAX_ANSWER_BYTES:
            response.close()
            raise RunError(f"an answer may have {MAX_ANSWER_BYTES} bytes, the server sent more")
        return parse_json(data)
    except (OSError, HTTPException, ValueError) as error:
        raise RunError(f"the server's answer cannot be read: {error!s:.200}") from None


def read_answer(body: Any, shown: RemoteImage | None) -> TextAnswer | Detections:
    """The answer of a whole body; of a picture learns by which id the server keeps it.

    Raises:
        RunError: it lacks what an answer has.
    """
    try:
        return _answer(body, shown)
    except _UNREADABLE as error:
        raise RunError(f"the server's answer lacks what it should have: {error!r:.200}") from None


def _answer(body: Any, shown: RemoteImage | None) -> TextAnswer | Detections:
    _warn_if_cut(body)
    image = body["image"]
    if shown is not None and len(shown.frames) == 1:
        shown.image_id = str(image["id"])
    if "detections" not in body or shown is None:
        logprobs = tuple(float(token["logprob"]) for token in body["tokens"])
        return TextAnswer(text=body["text"], score=body["score"], token_logprobs=logprobs)
    image_wh = int(image["width"]), int(image["height"])
    return Detections(
        items=tuple(detection_from_json(one, image_wh) for one in body["detections"]),
        image_wh=image_wh,
        text=body["text"],
        rest=body["rest"],
        asked_labels=tuple(body["asked_labels"]),
        open_picture=shown.open_picture,
    )


def _warn_if_cut(body: Any) -> None:
    if body["finish_reason"] == "length":
        logger.warning("the answer reached max_new_tokens and was cut there")


def pieces(connection: HTTPConnection, response: HTTPResponse) -> Iterator[str]:
    """The text of a streamed answer; leaving it closes the connection, which ends the answer."""

    def read(name: str, data: Any) -> str | None:
        if name == "done":
            _warn_if_cut(data)
        return data["text"] or None if name == "token" else None

    return _stream(connection, response, read)


def answer_events(
    connection: HTTPConnection, response: HTTPResponse, shown: RemoteImage
) -> Iterator[AnswerEvent]:
    """A streamed answer as `PaliGemma.stream_events` tells it."""
    return _stream(connection, response, _EventReader(shown))


class _EventReader:
    """Reads the events of one answer about a picture."""

    def __init__(self, shown: RemoteImage) -> None:
        self._shown = shown
        self._image_wh = (0, 0)
        self._part = 0

    def __call__(self, name: str, data: Any) -> AnswerEvent | None:
        if name == "start":
            self._image_wh = int(data["image"]["width"]), int(data["image"]["height"])
        elif name == "token" and data["id"] is not None:
            text, part = data["text"], data.get("part", 0)
            if part != self._part:  # another prompt of several, with a text of its own
                self._part, text = part, text.removeprefix(SEPARATOR)
            return WrittenToken(id=int(data["id"]), text=text, logprob=float(data["logprob"]))
        elif name == "object":
            return CompleteObject(detection_from_json(data, self._image_wh))
        elif name == "done":
            return Ended(_answer(data, self._shown))
        return None


def _stream(
    connection: HTTPConnection, response: HTTPResponse, read: Callable[[str, Any], T | None]
) -> Iterator[T]:
    """What is read of server-sent events, up to the one that says that all is done.

    Raises:
        PaliGemmaError: an event says why the answer ends.
        RunError: what comes cannot be read, or ends too early.
    """
    try:
        name = ""
        while line := response.readline(MAX_ANSWER_BYTES):
            key, _, value = line.rstrip(b"\r\n").partition(b": ")
            if key == b"event":
                name = value.decode()
            elif key == b"data":
                data = parse_json(value)
                if name == "error":
                    kind = _KINDS.get(data["error"]["code"] or "", RunError)
                    raise kind(data["error"]["message"])
                found = read(name, data)
                if found is not None:
                    yield found
                if name == "done":
                    return
        raise RunError("the server ended before the answer did; ask again")
    except _UNREADABLE as error:
        raise RunError(f"the server's answer cannot be read: {error!s:.200}") from None
    finally:
        connection.close()
