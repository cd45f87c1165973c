"""From what a caller has, a picture or several frames, to the image tower's soft tokens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, Unpack, cast

import numpy as np
from torch import Tensor

from paligemma.errors import ImageError
from paligemma.pipeline.engine import Engine, Request
from paligemma.pipeline.options import AskKeywords
from paligemma.processing.frames import FrameChoice, Frames, several_of
from paligemma.processing.image import ImageSource
from paligemma.processing.pixels import PixelLayout
from paligemma.processing.processor import Processor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from paligemma.outputs.detections import Detections
    from paligemma.outputs.types import TextAnswer

# Number of a page or frame of a file, from 0, or several of them.
ChosenFrames: TypeAlias = "int | FrameChoice | Literal['all']"
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
        adapter: name of the adapter that changed the tower; None where none did.
    """

    soft_tokens: Tensor = field(repr=False)
    image_wh: tuple[int, int]
    owner: Asked = field(repr=False)
    open_picture: Callable[[], NDArray[Any]] | None = field(default=None, repr=False)
    adapter: str | None = None

    def ask(self, prompt: str, **options: Unpack[AskKeywords]) -> TextAnswer | Detections:
        """What the prompt asks for, with the options of `PaliGemma.ask`: `TextAnswer`, or
        `Detections` where it asks for objects."""
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
    frames: ChosenFrames | None = None,
    layout: PixelLayout | None = None,
    adapter: str | None = None,
) -> list[EncodedImage]:
    """Encode what is not encoded yet.

    Args:
        images: pictures, `Frames`, prepared pixels or encoded images.
        engine: runs the model.
        processor: the model's processor.
        owner: the model that the results belong to.
        frames: pages or frames to take of every file.
        layout: see `PixelReader.pixels`.
        adapter: that the soft tokens are for.

    Raises:
        ConfigError: the model has no such adapter.
        ImageError: a bad picture, or an image that another model or adapter encoded.
    """
    engine.adapters.require(adapter)
    tower = engine.adapters.of_pictures(adapter)
    no_list = isinstance(images, str | bytes) or getattr(images, "ndim", 1) == 0
    if no_list or not isinstance(images, Iterable):
        raise ImageError(
            f"several examples are a list, got {type(images).__name__}; "
            "encode a single picture with encode_image"
        )
    if frames is not None:
        images = [_chosen_frames(cast(ImageSource, one), frames, processor) for one in images]
    for image in images:
        _require_own(image, owner, tower)
    read = [
        one if isinstance(one, EncodedImage) else read_picture(one, processor, layout)
        for one in images
    ]
    return _encoded(read, engine, owner, tower)


def encode_readable(
    images: Sequence[Picture],
    engine: Engine,
    processor: Processor,
    *,
    owner: Asked,
    adapter: str | None,
) -> list[EncodedImage | ImageError]:
    """As `encode_pictures`, with the error in the place of a picture that is bad."""
    tower = engine.adapters.of_pictures(adapter)
    found: list[EncodedImage | ReadPicture | ImageError] = []
    for image in images:
        try:
            _require_own(image, owner, tower)
            found.append(
                image if isinstance(image, EncodedImage) else read_picture(image, processor)
            )
        except ImageError as error:
            found.append(error)
    good = [one for one in found if not isinstance(one, ImageError)]
    encoded = iter(_encoded(good, engine, owner, tower))
    return [one if isinstance(one, ImageError) else next(encoded) for one in found]


def _encoded(
    read: Sequence[EncodedImage | ReadPicture], engine: Engine, owner: Asked, tower: str | None
) -> list[EncodedImage]:
    new = [one for one in read if isinstance(one, ReadPicture)]
    soft_tokens = iter(engine.encode([one.pixels for one in new], adapter=tower))
    return [
        one.encoded(next(soft_tokens), owner=owner, adapter=tower)
        if isinstance(one, ReadPicture)
        else one
        for one in read
    ]


def _require_own(image: Picture, owner: Asked, tower: str | None) -> None:
    """Raise ImageError for an image that another model or tower encoded."""
    if not isinstance(image, EncodedImage):
        return
    if image.owner is not owner:
        raise ImageError(
            "an encoded image belongs to the model that encoded it, got one of another model; "
            "encode the picture again"
        )
    if image.adapter != tower:
        raise ImageError(
            "an encoded image belongs to the image tower that encoded it, got one of the "
            f"{_tower(image.adapter)} for the {_tower(tower)}; encode the picture again, with "
            "adapter in encode_image"
        )


def _tower(adapter: str | None) -> str:
    return "model's own tower" if adapter is None else f"tower under the adapter {adapter}"


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadPicture:
    """One example as the model reads it, before the image tower.

    Attributes:
        pixels: float32[R, R, 3] or [F, R, R, 3] in [-1, 1].
        image_wh, open_picture: as those of `EncodedImage`.
    """

    pixels: Tensor
    image_wh: tuple[int, int]
    open_picture: Callable[[], NDArray[Any]] | None

    def encoded(self, soft_tokens: Tensor, *, owner: Asked, adapter: str | None) -> EncodedImage:
        """The example behind the tower; see `EncodedImage`."""
        return EncodedImage(
            soft_tokens=soft_tokens,
            image_wh=self.image_wh,
            owner=owner,
            open_picture=self.open_picture,
            adapter=adapter,
        )


def read_picture(
    image: ImageSource | Tensor | Frames, processor: Processor, layout: PixelLayout | None = None
) -> ReadPicture:
    """Decode one picture, or the frames of one example, and make it what the image tower reads.

    Raises:
        ImageError: a bad picture.
    """
    layout = layout or processor.reader.evident_layout(image)
    as_picture = layout is not None and layout != "prepared"
    if layout is not None and getattr(image, "ndim", 0) == 4:  # an axis of frames
        image = Frames(image)
    if several_of(image) is not None:
        raise ImageError(
            f"one picture is read here, got {len(cast(Any, image))}; the frames of one example are "
            "named as such: Frames([...])"
        )
    many = isinstance(image, Frames)
    sources = image if isinstance(image, Frames) else [cast(ImageSource, image)]
    first_file = _file_of(sources[0])

    def loaded(frame: ImageSource | Tensor) -> NDArray[Any] | Tensor:
        if isinstance(frame, Tensor) and not as_picture:
            return frame
        return processor.reader.load(frame, layout=layout if as_picture else None)

    # Only the first is held; each other one is decoded, made small, and dropped.
    first = loaded(sources[0])
    others = [loaded(frame) for frame in sources[1:]] if as_picture else sources[1:]
    pixels = processor.pixels(
        [first, *others] if many else first, layout=None if as_picture else layout
    )
    return ReadPicture(
        pixels=pixels,
        image_wh=(first.shape[-2], first.shape[-3]),
        open_picture=None
        if isinstance(first, Tensor)
        else _opener(first_file, first, processor, layout if as_picture else None),
    )


def _file_of(source: ImageSource | Tensor) -> Any:
    """The file of a Pillow image that was opened and nothing else, which holds the same; the source
    itself otherwise."""
    name = getattr(source, "filename", "")
    is_fresh = bool(getattr(source, "tile", ())) and getattr(source, "n_frames", 1) == 1
    return name if is_fresh and isinstance(name, str) and os.path.isfile(name) else source


def _opener(
    source: ImageSource | Tensor,
    picture: NDArray[Any],
    processor: Processor,
    layout: PixelLayout | None,
) -> Callable[[], NDArray[Any]]:
    """Gives the picture again: from its file or bytes, or else from memory, as of a pipe."""
    if isinstance(source, bytes):
        return partial(processor.reader.load, source, layout=layout)
    if isinstance(source, str | Path) and os.path.isfile(source):
        path = os.path.abspath(source)
        return partial(_reopened, path, _stamp(path), processor, layout)
    return partial(np.asarray, picture)


def _reopened(
    path: str, stamp: object, processor: Processor, layout: PixelLayout | None
) -> NDArray[Any]:
    if stamp != _stamp(path):
        raise ImageError(
            f"detections belong to the picture that was asked about, and {path[:200]} was changed "
            "or removed since; pass that picture, or ask again"
        )
    return processor.reader.load(path, layout=layout)


def _stamp(path: str) -> object:
    """What differs once a file is changed or replaced; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _chosen_frames(image: ImageSource, frames: ChosenFrames, processor: Processor) -> Picture:
    """One page or frame of a file, or several of them as the frames of one example."""
    if isinstance(frames, int | np.integer):
        return processor.reader.load(image, frame=cast(int, frames))
    return Frames(
        processor.reader.load_frames(
            image, None if isinstance(frames, str) and frames == "all" else frames
        )
    )
