"""From what a caller has, a picture or several frames, to the bytes that a server is sent."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from paligemma.errors import ImageError
from paligemma.outputs.detections import Detections
from paligemma.outputs.types import TextAnswer
from paligemma.processing.frames import FrameChoice, Frames, several_of
from paligemma.processing.image import (
    MAX_ENCODED_BYTES,
    MAX_PIXELS,
    URL_TIMEOUT_S,
    ImageSource,
    load_frames,
    load_image,
)
from paligemma.processing.sources import encoded_bytes

if TYPE_CHECKING:
    from paligemma.pipeline.options import AskKeywords
    from paligemma.pipeline.pictures import ChosenFrames
    from paligemma.processing.pixels import PixelLayout

Picture: TypeAlias = "RemoteImage | ImageSource | Frames"


class Asked(Protocol):
    """A model on a server that answers prompts about pictures, as `Client` does."""

    def ask(
        self, image: RemoteImage, prompt: str, **options: Unpack[AskKeywords]
    ) -> TextAnswer | Detections: ...


@dataclass(eq=False)
class RemoteImage:
    """A picture, or the frames of one example, that the server may still have: ask it as often as
    you like. Where the server no longer has it, it is sent again.

    Attributes:
        image_id: by which the server knows it; None until it was sent, and of several frames.
    """

    owner: Asked = field(repr=False)
    frames: tuple[bytes, ...] = field(repr=False)
    image_id: str | None = None

    @property
    def image_wh(self) -> tuple[int, int]:
        """Width and height of the (first) picture, pixels."""
        picture = self.open_picture()
        return picture.shape[1], picture.shape[0]

    def open_picture(self) -> NDArray[np.uint8]:
        """uint8[H, W, 3] of the (first) picture."""
        return load_image(self.frames[0])

    def ask(self, prompt: str, **options: Unpack[AskKeywords]) -> TextAnswer | Detections:
        """What the prompt asks for, with the options of `Client.ask`."""
        return self.owner.ask(self, prompt, **options)


def read_picture(
    image: Any,
    owner: Asked,
    *,
    frames: ChosenFrames | None = None,
    layout: PixelLayout | None = None,
) -> RemoteImage:
    """A picture to be sent; arguments as of `PaliGemma.encode_image`.

    Raises:
        ImageError: a bad picture, prepared pixels, or a picture of another client.
    """
    if isinstance(image, RemoteImage):
        if image.owner is not owner:
            raise ImageError(
                "an encoded image belongs to the client that encoded it, got one of another; "
                "pass the picture itself"
            )
        return image
    if image is None:
        raise ImageError("there is no picture to encode, got None; pass one")
    if layout is not None and getattr(image, "ndim", 0) == 4:  # an axis of frames
        image = Frames(image)
    if several_of(image) is not None:
        raise ImageError(
            f"one picture is read here, got {len(image)}; the frames of one example "
            "are named as such: Frames([...])"
        )
    if frames is not None:
        image = _chosen_frames(image, frames)
    every = image if isinstance(image, Frames) else [image]
    return RemoteImage(owner, tuple(_encoded(one, layout) for one in every))


def open_picture(
    source: ImageSource, *, frame: int | None = None, layout: PixelLayout | None = None
) -> NDArray[np.uint8]:
    """uint8[H, W, 3] of a picture; see `PaliGemma.open_picture`."""
    if layout is None and not _is_tensor(source):
        return load_image(source, frame=frame)
    if layout == "prepared":
        raise ImageError(
            "prepared pixels are for a model in this process; send the picture itself, or as an "
            "array with layout='HWC'"
        )
    from paligemma.processing.pixels import PixelReader

    # The side of a model's input, which plays no part here.
    reader = PixelReader(
        image_size_px=1, resize_method="bicubic", allow_url=False, max_pixels=MAX_PIXELS
    )
    return reader.load(source, frame=frame, layout=layout)


def _is_tensor(image: object) -> bool:
    """Whether it is a tensor of torch, which is not imported to find out."""
    return type(image).__module__.partition(".")[0] == "torch"


def _chosen_frames(image: ImageSource, frames: ChosenFrames) -> ImageSource | Frames:
    if isinstance(frames, int | np.integer):
        return load_image(image, frame=int(frames))
    is_all = isinstance(frames, str) and frames == "all"
    return Frames(load_frames(image, None if is_all else cast(FrameChoice, frames)))


def read_bytes(image: ImageSource) -> bytes:
    """The bytes of one picture: those of its file, or a PNG of its pixels."""
    return _encoded(image, None)


def _encoded(image: ImageSource, layout: PixelLayout | None) -> bytes:
    """The bytes of a picture: those of its file, or a PNG of its pixels."""
    from PIL import Image

    has_pixels = isinstance(image, np.ndarray | Image.Image) or _is_tensor(image)
    if layout is None and not has_pixels:
        return encoded_bytes(
            image, allow_url=False, timeout_s=URL_TIMEOUT_S, max_bytes=MAX_ENCODED_BYTES
        )[0]
    memory = io.BytesIO()
    picture = open_picture(image, layout=layout)
    Image.fromarray(picture).save(memory, "PNG", compress_level=1)
    return memory.getvalue()
