"""A model on a server, asked as one in this process.

    model = Client("http://localhost:8000")     # instead of PaliGemma.from_pretrained("tiny")
    model.detect("desk.png", ["star", "digit"]).draw().show()

It needs neither torch nor another package than NumPy and Pillow.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import threading
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack, cast

import numpy as np

from paligemma.errors import (
    AccessError,
    ConfigError,
    ImageError,
    ModelNotFoundError,
    PaliGemmaError,
    PromptError,
    RunError,
)
from paligemma.json_file import parse_json
from paligemma.outputs.detections import Detections
from paligemma.outputs.types import TextAnswer
from paligemma.outputs.words import detection_from_json
from paligemma.pipeline.habits import for_asking
from paligemma.pipeline.task_methods import Answer, TaskMethods
from paligemma.processing.frames import Frames, several_of
from paligemma.processing.image import MAX_ENCODED_BYTES, ImageSource, load_image
from paligemma.processing.sources import encoded_bytes

if TYPE_CHECKING:
    from paligemma.pipeline.options import AnswerKeywords, AskKeywords

logger = logging.getLogger(__name__)

Picture: TypeAlias = "RemoteImage | ImageSource | Frames"

MAX_ANSWER_BYTES = 256 << 20
MAX_WAIT_S = 30.0
_KINDS: Mapping[str, type[PaliGemmaError]] = {
    "invalid_image": ImageError,
    "image_not_found": ImageError,
    "remote_image_off": ImageError,
    "invalid_prompt": PromptError,
    "model_not_found": ModelNotFoundError,
}
_KINDS_OF_STATUS: Mapping[int, type[PaliGemmaError]] = {
    **dict.fromkeys((401, 403), AccessError),
    **dict.fromkeys((400, 404), ConfigError),
    413: ImageError,
}


@dataclass(eq=False)
class RemoteImage:
    """A picture, or the frames of one example, that the server may still have: ask it as often as
    you like. Where the server no longer has it, it is sent again.

    Attributes:
        image_id: by which the server knows it; None until it was sent, and of several frames.
    """

    owner: Client = field(repr=False)
    frames: tuple[bytes, ...] = field(repr=False)
    image_id: str | None = None

    def ask(self, prompt: str, **options: Unpack[AskKeywords]) -> TextAnswer | Detections:
        """What the prompt asks for, with the options of `Client.ask`."""
        return self.owner.ask(self, prompt, **options)


class Client(TaskMethods[Picture]):
    """A model on a server of `paligemma serve`, with the methods of `PaliGemma`.

    A picture is a path, bytes, a Pillow image, an array, or what `encode_image` returned; `Frames`
    of pictures are one example, and a list of pictures is a batch, whose answers are a list.
    Errors are those of `PaliGemma`; a server that does not answer is a `RunError`. One client may
    be used by several threads.

    Args:
        url: of the server, such as "http://localhost:8000".
        api_key: one of the server's keys.
        model: a name among the server's models and adapters; None is its first.
        timeout_s: bound of a connection and of waiting for each part of an answer.
        num_retries: how often a request is sent again that the server had no place for.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout_s: float = 300.0,
        num_retries: int = 3,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise ConfigError(f"a server is 'http://HOST:PORT', got {url!r:.200}")
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._connect = partial(kind, parts.hostname, port, timeout=timeout_s)
        self._path = f"{parts.path.rstrip('/')}/v1/ask"
        self._model, self._num_retries = model, num_retries
        self._headers = {"Content-Type": "application/json", "User-Agent": "paligemma"}
        if api_key is not None:
            if not api_key.isascii() or not api_key.isprintable():
                raise ConfigError("a key consists of printable ASCII characters, got others")
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._of_thread = threading.local()

    # Asking

    def _answer_each(
        self,
        images: Iterable[Picture],
        prompt: str,
        options: Mapping[str, Any],
        *,
        in_words: bool = False,
    ) -> Iterator[tuple[Picture, Answer | ImageError]]:
        for image in images:
            try:
                yield image, self._answer(image, prompt, options, in_words=in_words)
            except ImageError as error:
                yield image, error

    def stream(
        self, image: Picture | None, prompt: str, **options: Unpack[AnswerKeywords]
    ) -> Iterator[str]:
        """Pieces of the answer as they are written; joined they are the text of `generate`."""
        shown = self._shown(image)
        asked = {"prompt": prompt, "in_words": True, "stream": True, **options}
        connection, response = self._sent(self._connect(), shown, asked)
        return _pieces(connection, response)

    def encode_image(self, image: Picture) -> RemoteImage:
        """A picture that is sent once and asked often; it goes wherever a picture does.

        Raises:
            ImageError: a bad picture, or one of another client.
        """
        found = self._shown(image)
        if found is None:
            raise ImageError("there is no picture to encode, got None; pass one")
        return found

    def _pixels(self, image: Any) -> np.ndarray:
        frames = cast(RemoteImage, self._shown(image)).frames
        return load_image(frames[0])

    def close(self) -> None:
        """Close this thread's connection; the next question opens another."""
        connection = getattr(self._of_thread, "connection", None)
        if connection is not None:
            connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # Sending and reading

    def _shown(self, image: Picture | None) -> RemoteImage | None:
        if image is None or isinstance(image, RemoteImage):
            if image is not None and image.owner is not self:
                raise ImageError(
                    "an encoded image belongs to the client that encoded it, got one of another; "
                    "pass the picture itself"
                )
            return image
        if several_of(image) is not None:
            raise ImageError(
                f"one picture is read here, got {len(cast(Any, image))}; the frames of one example "
                "are named as such: Frames([...])"
            )
        frames = image if isinstance(image, Frames) else [image]
        return RemoteImage(self, tuple(_encoded(cast(ImageSource, frame)) for frame in frames))

    def _answer(
        self, image: Picture | None, prompt: str, options: Mapping[str, Any], *, in_words: bool
    ) -> Answer:
        shown = self._shown(image)
        asked = {"prompt": prompt, "in_words": in_words, "tokens": True, **options}
        connection = getattr(self._of_thread, "connection", None)
        if connection is None:
            connection = self._of_thread.connection = self._connect()
        _, response = self._sent(connection, shown, asked)
        body = _body_of(response)
        try:
            return _read_answer(body, shown)
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise RunError(
                f"the server's answer lacks what it should have: {error!r:.200}"
            ) from None

    def _sent(
        self, connection: HTTPConnection, shown: RemoteImage | None, asked: Mapping[str, Any]
    ) -> tuple[HTTPConnection, HTTPResponse]:
        """The server's response of status 200, with the picture sent again where that is needed."""
        if "adapter" in asked:
            raise ConfigError(
                "a server offers an adapter as a model of its own, got adapter here; name it as "
                "model of the client"
            )
        asked = for_asking(asked)
        waits = 0
        while True:
            response = self._response(connection, self._body(shown, asked))
            if response.status == 200:
                return connection, response
            refusal, after_s = _refusal(response), response.headers.get("Retry-After", "")
            if shown is not None and shown.image_id and refusal.code == "image_not_found":
                shown.image_id = None
            elif response.status in (429, 503) and waits < self._num_retries:
                waits += 1
                time.sleep(min(float(after_s) if after_s.isdecimal() else 1.0, MAX_WAIT_S))
            else:
                raise refusal.error

    def _body(self, shown: RemoteImage | None, asked: Mapping[str, Any]) -> bytes:
        body = {name: value for name, value in asked.items() if value is not None}
        if self._model is not None:
            body["model"] = self._model
        if shown is not None and shown.image_id is not None:
            body["image_id"] = shown.image_id
        elif shown is not None:
            body["images"] = [base64.b64encode(frame).decode() for frame in shown.frames]
        try:
            return json.dumps(body, default=_plain, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise ConfigError(f"an option cannot be sent as JSON: {error!s:.200}") from None

    def _response(self, connection: HTTPConnection, body: bytes) -> HTTPResponse:
        is_kept = connection.sock is not None
        try:
            connection.request("POST", self._path, body, self._headers)
            return connection.getresponse()
        except (OSError, HTTPException) as error:
            connection.close()
            if is_kept and not isinstance(error, TimeoutError):  # closed by the server meanwhile
                return self._response(connection, body)
            raise RunError(
                f"the server at {connection.host}:{connection.port} does not answer "
                f"({str(error) or type(error).__name__:.200}); see whether it runs"
            ) from None


@dataclass(frozen=True)
class _Refusal:
    error: PaliGemmaError
    code: str | None


def _refusal(response: HTTPResponse) -> _Refusal:
    """What a response other than 200 says, as an error of ours."""
    status = response.status
    try:
        facts = _body_of(response)["error"]
        message, code = str(facts["message"]), facts["code"]
    except (RunError, KeyError, TypeError):
        message, code = f"the server answered with status {status}; see whether it is ours", None
    kind = _KINDS.get(code or "", _KINDS_OF_STATUS.get(status, RunError))
    return _Refusal(kind(message), code)


def _body_of(response: HTTPResponse) -> Any:
    try:
        data = response.read(MAX_ANSWER_BYTES + 1)
        if len(data) > MAX_ANSWER_BYTES:
            response.close()
            raise RunError(f"an answer may have {MAX_ANSWER_BYTES} bytes, the server sent more")
        return parse_json(data)
    except (OSError, HTTPException, ValueError) as error:
        raise RunError(f"the server's answer cannot be read: {error!s:.200}") from None


def _pieces(connection: HTTPConnection, response: HTTPResponse) -> Iterator[str]:
    """The text of server-sent events; leaving it closes the connection, which ends the answer."""
    try:
        event = ""
        while line := response.readline(MAX_ANSWER_BYTES):
            name, _, value = line.rstrip(b"\r\n").partition(b": ")
            if name == b"event":
                event = value.decode()
            elif name == b"data":
                data = parse_json(value)
                if event == "error":
                    kind = _KINDS.get(data["error"]["code"] or "", RunError)
                    raise kind(data["error"]["message"])
                if event == "token" and data["text"]:
                    yield data["text"]
                if event == "done":
                    _warn_if_cut(data)
                    return
        raise RunError("the server ended before the answer did; ask again")
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        raise RunError(f"the server's answer cannot be read: {error!s:.200}") from None
    finally:
        connection.close()


def _read_answer(body: Any, shown: RemoteImage | None) -> TextAnswer | Detections:
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
        open_picture=partial(load_image, shown.frames[0]),
    )


def _warn_if_cut(body: Any) -> None:
    if body["finish_reason"] == "length":
        logger.warning("the answer reached max_new_tokens and was cut there")


def _encoded(image: ImageSource) -> bytes:
    """The bytes of a picture: those of its file, or a PNG of its pixels."""
    from PIL import Image

    if not isinstance(image, np.ndarray | Image.Image):
        return encoded_bytes(
            image, allow_url=False, timeout_s=MAX_WAIT_S, max_bytes=MAX_ENCODED_BYTES
        )[0]
    memory = io.BytesIO()
    Image.fromarray(load_image(image)).save(memory, "PNG", compress_level=1)
    return memory.getvalue()


def _plain(value: Any) -> Any:
    """Options that are not JSON by themselves: NumPy's numbers, ranges and other sequences."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"got {type(value).__name__}")
