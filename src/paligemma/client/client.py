"""The façade over HTTP.

    model = Client("http://localhost:8000")     # instead of PaliGemma.from_pretrained("tiny")
    model.detect("desk.png", ["star", "digit"]).draw().show()

It needs neither torch nor another package than NumPy and Pillow.
"""

from __future__ import annotations

import base64
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection, HTTPResponse
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from paligemma.client.connections import Connections
from paligemma.client.pictures import Picture, RemoteImage, open_picture, read_picture
from paligemma.client.replies import (
    Refusal,
    answer_events,
    body_of,
    pieces,
    read_answer,
    refusal_of,
)
from paligemma.client.search import SearchMethods
from paligemma.errors import ConfigError, ImageError
from paligemma.outputs.types import TextAnswer
from paligemma.pipeline.events import AnswerEvent
from paligemma.pipeline.habits import for_asking
from paligemma.pipeline.task_methods import Answer, TaskMethods, one_a_prompt, require_prompts
from paligemma.processing.image import ImageSource

if TYPE_CHECKING:
    from paligemma.pipeline.options import AnswerKeywords, AskKeywords
    from paligemma.pipeline.pictures import ChosenFrames
    from paligemma.processing.pixels import PixelLayout

T = TypeVar("T")

MAX_WAIT_S = 30.0


class Client(TaskMethods[Picture], SearchMethods):
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
        num_at_once: requests of one list of pictures or prompts that are sent side by side.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout_s: float = 300.0,
        num_retries: int = 3,
        num_at_once: int = 8,
    ) -> None:
        if isinstance(num_at_once, bool) or not 1 <= num_at_once <= 64:
            raise ConfigError(f"num_at_once must lie in 1..64, got {num_at_once!r:.100}")
        self._connections = Connections(url, "/v1/ask", api_key=api_key, timeout_s=timeout_s)
        self._model, self._num_retries, self._num_at_once = model, num_retries, num_at_once

    # Asking

    def _answer_each(
        self,
        images: Iterable[Picture],
        prompt: str,
        options: Mapping[str, Any],
        *,
        in_words: bool = False,
    ) -> Iterator[tuple[Picture, Answer | ImageError]]:
        def ask(image: Picture) -> tuple[Picture, Answer | ImageError]:
            try:
                return image, self._answer(image, prompt, options, in_words=in_words)
            except ImageError as error:
                return image, error

        return self._side_by_side(partial(ask, image) for image in images)

    def generate_batch(
        self,
        images: Sequence[Picture] | RemoteImage | None,
        prompts: Sequence[str],
        **options: Unpack[AnswerKeywords],
    ) -> list[TextAnswer]:
        """Answers to many prompts, `num_at_once` side by side.

        Args:
            images: a picture for each prompt, or one encoded image for all.
        """
        require_prompts(prompts)
        if images is None or isinstance(images, RemoteImage):
            pictures: Sequence[Picture | None] = [images] * len(prompts)
        else:
            pictures = one_a_prompt(images, prompts)
        calls = [
            partial(self._answer, image, prompt, options, in_words=True)
            for image, prompt in zip(pictures, prompts, strict=True)
        ]
        # The others name a picture that the first has sent.
        first = [calls.pop(0)()] if calls and isinstance(images, RemoteImage) else []
        return cast("list[TextAnswer]", [*first, *self._side_by_side(calls)])

    def stream(
        self, image: Picture | None, prompt: str, **options: Unpack[AnswerKeywords]
    ) -> Iterator[str]:
        """Pieces of the answer as they are written; joined they are the text of `generate`."""
        shown = None if image is None else self.encode_image(image)
        return pieces(*self._sent(shown, prompt, options, in_words=True, stream=True))

    def stream_events(
        self, image: Picture, prompt: str, **options: Unpack[AskKeywords]
    ) -> Iterator[AnswerEvent]:
        """What `ask` answers, as it is written: tokens, objects and the end.

        Yields:
            `WrittenToken`, `CompleteObject` and last `Ended`, see `PaliGemma.stream_events`.
        """
        shown = self.encode_image(image)
        sent = self._sent(shown, prompt, options, tokens=True, objects=True, stream=True)
        return answer_events(*sent, shown)

    # Reading pictures

    def encode_image(
        self,
        image: Picture,
        *,
        frames: ChosenFrames | None = None,
        layout: PixelLayout | None = None,
        adapter: str | None = None,
    ) -> RemoteImage:
        """A picture that is sent once and asked often; it goes wherever a picture does.

        Args:
            image: a picture, or `Frames`.
            frames: see `PaliGemma.encode_image`.
            layout: see `PaliGemma.encode_image`; prepared pixels are not sent.
            adapter: is the client's `model`, and not stated here.

        Raises:
            ImageError: a bad picture, or one of another client.
        """
        _require_no_adapter(adapter)
        return read_picture(image, self, frames=frames, layout=layout)

    def encode_images(
        self,
        images: Sequence[Picture],
        *,
        frames: ChosenFrames | None = None,
        layout: PixelLayout | None = None,
        adapter: str | None = None,
    ) -> list[RemoteImage]:
        """Several examples; see `encode_image`."""
        if isinstance(images, str | bytes) or not isinstance(images, Iterable):
            raise ImageError(
                f"several examples are a list, got {type(images).__name__}; "
                "encode a single picture with encode_image"
            )
        how: Any = {"frames": frames, "layout": layout, "adapter": adapter}
        return [self.encode_image(image, **how) for image in images]

    def open_picture(
        self, source: ImageSource, *, frame: int | None = None, layout: PixelLayout | None = None
    ) -> NDArray[Any]:
        """uint8[H, W, 3] of a picture, upright; see `encode_image`."""
        return open_picture(source, frame=frame, layout=layout)

    def _pixels(self, image: Any) -> NDArray[Any]:
        return image.open_picture() if isinstance(image, RemoteImage) else open_picture(image)

    def close(self) -> None:
        """Close the connections; the next question opens another."""
        self._connections.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # Sending

    def _answer(
        self, image: Picture | None, prompt: str, options: Mapping[str, Any], *, in_words: bool
    ) -> Answer:
        shown = None if image is None else self.encode_image(image)
        sent = self._sent(shown, prompt, options, in_words=in_words, tokens=True)
        return read_answer(self._body_of(*sent), shown)

    def _side_by_side(self, calls: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Results in order, of so many calls at once; what one raises is raised in its place."""
        left, running = iter(calls), deque[Future[T]]()
        threads = ThreadPoolExecutor(self._num_at_once, thread_name_prefix="paligemma-client")
        try:
            while True:
                some = islice(left, self._num_at_once - len(running))
                running.extend(threads.submit(call) for call in some)
                if not running:
                    return
                yield running.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)

    def _sent(
        self,
        shown: RemoteImage | None,
        prompt: str,
        options: Mapping[str, Any],
        **more: bool,
    ) -> tuple[HTTPConnection, HTTPResponse]:
        """The server's response of status 200, with the picture sent again where that is needed."""
        _require_no_adapter(options.get("adapter"))
        asked = {"prompt": prompt, **more, **for_asking(options)}
        while True:
            found = self._taken(lambda: self._connections.send(self._body(shown, asked)))
            if not isinstance(found, Refusal):
                return found
            if shown is None or not shown.image_id or found.code != "image_not_found":
                raise found.error
            shown.image_id = None

    def _taken(
        self, send: Callable[[], tuple[HTTPConnection, HTTPResponse]]
    ) -> tuple[HTTPConnection, HTTPResponse] | Refusal:
        """The response of status 200, or why there is none; asks again where there was no place."""
        for waits in itertools.count():
            connection, response = send()
            if response.status == 200:
                break
            after_s = response.headers.get("Retry-After", "")
            refusal = refusal_of(response)
            self._connections.keep(connection)
            if response.status not in (429, 503) or waits >= self._num_retries:
                return refusal
            time.sleep(min(float(after_s) if after_s.isdecimal() else 1.0, MAX_WAIT_S))
        return connection, response

    def _call(self, path: str, fields: Mapping[str, Any] | None) -> Any:
        body = None if fields is None else json.dumps(fields).encode()
        found = self._taken(lambda: self._connections.send(body, path))
        if isinstance(found, Refusal):
            raise found.error
        return self._body_of(*found)

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

    def _body_of(self, connection: HTTPConnection, response: HTTPResponse) -> Any:
        try:
            body = body_of(response)
        except BaseException:
            connection.close()
            raise
        self._connections.keep(connection)
        return body


def _require_no_adapter(adapter: object) -> None:
    if adapter is not None:
        raise ConfigError(
            "a server offers an adapter as a model of its own, got adapter here; name it as "
            "model of the client"
        )


def _plain(value: Any) -> Any:
    """Options that are not JSON by themselves: NumPy's numbers, ranges and other sequences."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"got {type(value).__name__}")
