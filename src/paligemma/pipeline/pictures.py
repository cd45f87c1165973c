"""From what a caller has, a picture or several frames, to the image tower's soft tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, Unpack, cast

import numpy as np
from torch import Tensor

from paligemma.errors import ImageError
from paligemma.pipeline.engine import Engine, Request
from paligemma.pipeline.options import AskKeywords
from paligemma.processing.image import ImageSource
from paligemma.processing.pixels import Layout
from paligemma.processing.processor import Processor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from paligemma.outputs.detections import Detections
    from paligemma.outputs.types import TextAnswer

Frames: TypeAlias = "Sequence[ImageSource | Tensor]"
Picture: TypeAlias = "EncodedImage | ImageSource | Tensor | Frames"


class Asked(Protocol):
    """A model that answers prompts about pictures, as `PaliGemma` does."""

    def ask(
        self, image: EncodedImage, prompt: str, **options: Unpack[AskKeywords]
    ) -> TextAnswer | Detections: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedImage:
    """A picture, or the frames of one example, after the image tower: ask it as often as you like.

    Exact, because only the tower is reused: the decoder reads picture and prompt together.

    Attributes:
        soft_tokens: float[1, F*I, D].
        image_wh: width and height of the (first) picture, pixels.
        open_picture: function that gives the (first) picture itself, uint8[H, W, 3], and reads a
            file again; None where it came as prepared pixels.
    """

    soft_tokens: Tensor = field(repr=False)
    image_wh: tuple[int, int]
    owner: Asked = field(repr=False)
    open_picture: Callable[[], NDArray[Any]] | None = field(default=None, repr=False)

    def ask(self, prompt: str, **options: Unpack[AskKeywords]) -> TextAnswer | Detections:
        """See `PaliGemma.ask`."""
        return self.owner.ask(self, prompt, **options)


def about(request: Request, encoded: EncodedImage | None) -> Request:
    """The request with its picture, if there is one."""
    return request if encoded is None else replace(request, soft_tokens=encoded.soft_tokens)


def encode_pictures(
    images: Sequence[Picture],
    engine: Engine,
    processor: Processor,
    *,
    owner: Asked,
    layout: Layout | None = None,
) -> list[EncodedImage]:
    """Encode what is not encoded yet.

    Args:
        images: pictures, lists of frames, prepared pixels or encoded images.
        engine: runs the model.
        processor: the model's processor.
        owner: the model that the results belong to.
        layout: see `PixelReader.pixels`.

    Raises:
        ImageError: a bad picture, or an image that another model encoded.
    """
    for image in images:
        if isinstance(image, EncodedImage) and image.owner is not owner:
            raise ImageError(
                "an encoded image belongs to the model that encoded it, got one of another model; "
                "encode the picture again"
            )
    read = [_read(one, processor, layout) for one in images if not isinstance(one, EncodedImage)]
    soft_tokens = engine.encode([one.pixels for one in read])
    new = iter(
        EncodedImage(
            soft_tokens=tokens,
            image_wh=one.image_wh,
            owner=owner,
            open_picture=one.open_picture,
        )
        for tokens, one in zip(soft_tokens, read, strict=True)
    )
    return [image if isinstance(image, EncodedImage) else next(new) for image in images]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Read:
    """One example as the model reads it, and what `EncodedImage` keeps of its (first) picture."""

    pixels: Tensor
    image_wh: tuple[int, int]
    open_picture: Callable[[], NDArray[Any]] | None


def _read(
    image: ImageSource | Tensor | Frames, processor: Processor, layout: Layout | None
) -> _Read:
    as_picture = layout is not None and layout != "prepared"
    if as_picture and getattr(image, "ndim", 0) == 4:
        image = list(cast(Any, image))
    many = isinstance(image, list | tuple)
    sources = cast(Frames, image) if many else [cast(ImageSource, image)]
    frames = [
        frame
        if isinstance(frame, Tensor) and not as_picture
        else processor.reader.load(frame, layout=layout if as_picture else None)
        for frame in sources
    ]
    pixels = processor.pixels(frames if many else frames[0], layout=None if as_picture else layout)
    first = frames[0]
    return _Read(
        pixels=pixels,
        image_wh=(first.shape[-2], first.shape[-3]),
        open_picture=None
        if isinstance(first, Tensor)
        else _opener(sources[0], first, processor, layout if as_picture else None),
    )


def _opener(
    source: ImageSource | Tensor,
    picture: NDArray[Any],
    processor: Processor,
    layout: Layout | None,
) -> Callable[[], NDArray[Any]]:
    """Gives the picture again: from its file or bytes, or else from memory."""
    is_url = isinstance(source, str) and source.lower().startswith(("http://", "https://"))
    if isinstance(source, bytes | str | Path) and not is_url:
        return partial(processor.reader.load, source, layout=layout)
    return partial(np.asarray, picture)


def chosen_frames(
    image: ImageSource, frames: int | Sequence[int] | Literal["all"], processor: Processor
) -> Picture:
    """One page or frame of a file, or several of them as the frames of one example."""
    if isinstance(frames, int):
        return processor.reader.load(image, frame=frames)
    return processor.reader.load_frames(image, None if frames == "all" else frames)
