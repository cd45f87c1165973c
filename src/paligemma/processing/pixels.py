"""From pictures of any kind to the pixels that the model reads.

Axes: F frames, R side of the model's input.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray

from paligemma.errors import ConfigError, ImageError
from paligemma.processing.colours import WHITE, require_background
from paligemma.processing.frames import MAX_FRAMES, FrameChoice, sample_frames
from paligemma.processing.image import ImageSource, load_frames, load_image
from paligemma.processing.preparation import Preparation
from paligemma.processing.resize import BILINEAR

# How the numbers of a tensor or array lie: as a picture, channels last or first, or prepared.
PixelLayout: TypeAlias = Literal["HWC", "CHW", "prepared"]
LAYOUTS = ("HWC", "CHW", "prepared")
ExampleImages: TypeAlias = "ImageSource | torch.Tensor | Sequence[ImageSource | torch.Tensor]"

_SLACK = 1e-3  # of rounding, beyond [-1, 1]
# A picture is cut into 4 x 4 tiles. In half of them, drawn scenes have fewer colours of 16 levels a
# channel: of 500 that show things, the most was 165 and 99 % had below 136; photographs mostly have
# more, those of much sky or blur do not.
_TILES_A_SIDE = 4
_MAX_DRAWN_COLOURS = 135


@dataclass(frozen=True, kw_only=True)
class PixelReader:
    """Decodes, bounds and resizes pictures for one model.

    Attributes:
        image_size_px: side of the square input, R.
        resize_method: `bicubic` (what the hub does), `bilinear` or `bilinear-antialias`.
        allow_url: whether pictures may be fetched from URLs.
        max_pixels: largest picture that is decoded.
        background: colour under transparent parts; "none" drops transparency.
        allow_video: whether frames of videos are read.

    Raises:
        ConfigError: an unknown resize method or background, or a side that is not positive.
    """

    image_size_px: int
    resize_method: str
    allow_url: bool
    max_pixels: int
    background: str = WHITE
    allow_video: bool = True

    def __post_init__(self) -> None:
        if self.image_size_px < 1:
            raise ConfigError(f"image_size_px must be positive, got {self.image_size_px}")
        _ = self._preparation
        require_background(self.background)

    @property
    def _preparation(self) -> Preparation:
        return Preparation(size_px=self.image_size_px, resize_method=self.resize_method)

    def load(
        self,
        source: ImageSource | torch.Tensor,
        *,
        frame: int | None = None,
        layout: PixelLayout | None = None,
    ) -> NDArray[np.uint8]:
        """uint8[H, W, 3] of a picture, upright, within the bounds.

        Args:
            source: see `load_image`; or a tensor of bool, uint8, uint16 or float in [0, 1].
            frame: number of the page or frame, from 0; by default the first.
            layout: how the axes of a tensor or array lie, "HWC" or "CHW"; of a tensor by default
                where its axis of channels stands.

        Raises:
            ImageError: unreadable, too large, or a URL that is not allowed.
        """
        layout = layout or self.evident_layout(source)
        if layout is not None:
            source = _channels_last(source, layout)
        elif isinstance(source, torch.Tensor):
            raise ImageError(
                "a tensor is a picture where its axes are stated, got none; pass layout='CHW' or "
                "layout='HWC'"
            )
        return load_image(
            source,
            frame=frame,
            allow_url=self.allow_url,
            allow_video=self.allow_video,
            max_pixels=self.max_pixels,
            background=self.background,
        )

    @staticmethod
    def evident_layout(source: object) -> PixelLayout | None:
        """The layout of a tensor that can only be one picture; None of all else."""
        if not isinstance(source, torch.Tensor) or source.ndim != 3:
            return None
        if source.is_nested:
            raise ImageError("a picture's tensor must be dense, got a nested one; take its parts")
        if source.is_floating_point() and source.shape[0] == source.shape[1]:
            return None  # as prepared pixels are, of this model or another
        first, last = (source.shape[axis] in (1, 3, 4) for axis in (0, 2))
        return None if first == last else "CHW" if first else "HWC"

    def load_frames(
        self, source: ImageSource, frames: FrameChoice | None = None
    ) -> list[NDArray[np.uint8]]:
        """Frames of a video or animation, pages of a TIFF; see `image.load_frames`."""
        return load_frames(
            source,
            frames,
            allow_url=self.allow_url,
            max_pixels=self.max_pixels,
            background=self.background,
        )

    def pixels(self, example: ExampleImages, *, layout: PixelLayout | None = None) -> torch.Tensor:
        """The picture or pictures of one example as the model reads them.

        Args:
            example: a picture, a list of F pictures, or a float tensor made by this method or by
                `video_pixels` earlier, which is passed through.
            layout: what a tensor or array is: a picture of axes "HWC" or "CHW", with an axis of
                frames before them or without, or "prepared". By default a float32 tensor of that
                shape is prepared, and refused where it looks like a picture in [0, 1].

        Returns:
            float32[R, R, 3] or, for a list, [F, R, R, 3], in [-1, 1].

        Raises:
            ImageError: a bad picture, an empty list, or a tensor of another size or range.
        """
        layout = layout or self.evident_layout(example)
        if isinstance(example, torch.Tensor) and layout in (None, "prepared"):
            _require_prepared_range(self._checked(example), stated=layout is not None)
            return example
        if layout is not None and getattr(example, "ndim", 0) == 4:
            example = list(cast(Any, example))
        if isinstance(example, list | tuple):
            if not 1 <= len(example) <= MAX_FRAMES:
                raise ImageError(
                    f"an example must have 1 to {MAX_FRAMES} pictures, got {len(example)}"
                )
            frames = [self.pixels(frame, layout=layout) for frame in example]
            return self._checked(torch.stack(frames))
        image = self.load(cast(ImageSource, example), layout=layout)
        return torch.from_numpy(self._preparation.prepare(image))

    def video_pixels(
        self,
        frames: Sequence[ImageSource],
        *,
        num_frames: int = 16,
        stride: int = 1,
        offset: int = 0,
    ) -> torch.Tensor:
        """Sampled frames of a clip; always resized bilinearly and not truncated to grey levels.

        Args:
            frames: pictures in time order.
            num_frames, stride, offset: which of them are taken, see `sample_frames`.

        Returns:
            float32[num_frames, R, R, 3] in [-1, 1].

        Source: big_vision pp/proj/paligemma/video.py.
        """
        preparation = Preparation(
            size_px=self.image_size_px, resize_method=BILINEAR, keep_fractions=True
        )
        picked = sample_frames(frames, num_frames, stride, offset)
        prepared: dict[int, NDArray[np.float32]] = {}
        for frame in picked:  # A repeated frame is decoded once.
            if id(frame) not in prepared:
                prepared[id(frame)] = preparation.prepare(self.load(frame))
        return torch.from_numpy(np.stack([prepared[id(frame)] for frame in picked]))

    def _checked(self, prepared: torch.Tensor) -> torch.Tensor:
        square = (self.image_size_px, self.image_size_px, 3)
        fits = prepared.ndim in (3, 4) and tuple(prepared.shape[-3:]) == square
        if prepared.dtype != torch.float32 or not fits:
            raise ImageError(
                f"prepared pixels must be float32 {list(square)}, with a frame axis or without, "
                f"got {prepared.dtype} {list(prepared.shape)}; pass the picture itself, or state "
                "layout='CHW' or 'HWC' where the tensor is one"
            )
        return prepared


def _channels_last(source: Any, layout: PixelLayout) -> NDArray[Any]:
    """A tensor or array with its channels last, as an array."""
    if layout not in LAYOUTS[:2]:
        raise ImageError(f"the layout of a picture is 'HWC' or 'CHW', got {layout!r:.80}")
    if isinstance(source, torch.Tensor):
        try:
            tensor = source.detach().cpu()
            source = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        except (TypeError, RuntimeError) as error:  # without values, sparse, of eight bits or fewer
            raise ImageError(
                f"a picture's tensor must be dense, of numbers that NumPy has, got {source.layout} "
                f"of {source.dtype} on {source.device}"
            ) from error
    if not isinstance(source, np.ndarray):
        raise ImageError(
            f"a layout belongs to a tensor or array, got {type(source).__name__}; leave it out"
        )
    if source.ndim == 3 and layout == "CHW":
        source = source.transpose(1, 2, 0)
    return source


def _require_prepared_range(prepared: torch.Tensor, *, stated: bool) -> None:
    """Prepared pixels lie in [-1, 1], and hardly a picture of them has nothing below middle grey.

    Raises:
        ImageError: out of the range, or probably a picture in [0, 1] unless `stated` otherwise.
    """
    if not prepared.numel() or prepared.is_meta or prepared.layout != torch.strided:
        raise ImageError("prepared pixels are a dense tensor with values, got one without")
    low, high = (float(bound) for bound in prepared.detach().aminmax())
    fits = low >= -1 - _SLACK and high <= 1 + _SLACK  # false for NaN
    if not fits or (low >= 0 and low < 1 and not stated):
        raise ImageError(
            f"prepared pixels lie in [-1, 1] and below 0 where they are dark, got {low:g}.."
            f"{high:g}; state layout='HWC' or 'CHW' where the tensor is a picture of uint8 or in "
            "[0, 1], layout='prepared' where it is that bright"
        )


def stack_pixels(pixels: Sequence[torch.Tensor]) -> torch.Tensor:
    """Pixels of several examples: float32[B, R, R, 3] or [B, F, R, R, 3].

    Raises:
        ImageError: the examples have different numbers of pictures.
    """
    shapes = sorted({tuple(example.shape) for example in pixels})
    if len(shapes) > 1:
        raise ImageError(
            f"all examples of a batch must have the same number of pictures, got shapes {shapes}; "
            "batch them apart"
        )
    return torch.stack(list(pixels))


def looks_photographed(pixels: torch.Tensor) -> bool:
    """Whether prepared pixels, or the first of several frames, have the colours of a photograph."""
    levels = ((pixels.reshape(-1, *pixels.shape[-3:])[0] + 1) * 7.999).long().clamp(0, 15)
    side = levels.shape[0] // _TILES_A_SIDE
    colours = (levels * torch.tensor([256, 16, 1])).sum(-1)
    tiles = colours.unfold(0, side, side).unfold(1, side, side).flatten(2).flatten(0, 1)
    counts = [int(tile.bincount().count_nonzero()) for tile in tiles]
    return statistics.median_high(counts) > _MAX_DRAWN_COLOURS
