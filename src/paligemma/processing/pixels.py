"""From pictures of any kind to the pixels that the model reads.

Axes: F frames, R side of the model's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray

from paligemma.errors import ConfigError, ImageError
from paligemma.processing.frames import MAX_FRAMES, sample_frames
from paligemma.processing.image import ImageSource, load_image
from paligemma.processing.preparation import Preparation
from paligemma.processing.resize import BILINEAR

ExampleImages: TypeAlias = "ImageSource | torch.Tensor | Sequence[ImageSource | torch.Tensor]"


@dataclass(frozen=True, kw_only=True)
class PixelReader:
    """Decodes, bounds and resizes pictures for one model.

    Attributes:
        image_size_px: side of the square input, R.
        resize_method: `bicubic` (what the hub does), `bilinear` or `bilinear-antialias`.
        allow_url: whether pictures may be fetched from URLs.
        max_pixels: largest picture that is decoded.

    Raises:
        ConfigError: an unknown resize method, or a side that is not positive.
    """

    image_size_px: int
    resize_method: str
    allow_url: bool
    max_pixels: int

    def __post_init__(self) -> None:
        if self.image_size_px < 1:
            raise ConfigError(f"image_size_px must be positive, got {self.image_size_px}")
        _ = self._preparation

    @property
    def _preparation(self) -> Preparation:
        return Preparation(size_px=self.image_size_px, resize_method=self.resize_method)

    def load(self, source: ImageSource) -> NDArray[np.uint8]:
        """uint8[H, W, 3] of a picture, upright, within the bounds.

        Raises:
            ImageError: unreadable, too large, or a URL that is not allowed.
        """
        return load_image(source, allow_url=self.allow_url, max_pixels=self.max_pixels)

    def pixels(self, example: ExampleImages) -> torch.Tensor:
        """The picture or pictures of one example as the model reads them.

        Args:
            example: a picture, a list of F pictures, or a float tensor made by this method or by
                `video_pixels` earlier, which is passed through.

        Returns:
            float32[R, R, 3] or, for a list, [F, R, R, 3], in [-1, 1].

        Raises:
            ImageError: a bad picture, an empty list, or a tensor of another size.
        """
        if isinstance(example, torch.Tensor):
            return self._checked(example)
        if isinstance(example, list | tuple):
            if not 1 <= len(example) <= MAX_FRAMES:
                raise ImageError(
                    f"an example must have 1 to {MAX_FRAMES} pictures, got {len(example)}"
                )
            return self._checked(torch.stack([self.pixels(frame) for frame in example]))
        image = self.load(cast(ImageSource, example))
        return torch.from_numpy(self._preparation.prepare(image))

    def video_pixels(
        self, frames: Sequence[ImageSource], num_frames: int, stride: int, offset: int
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
                f"got {prepared.dtype} {list(prepared.shape)}; pass the picture itself"
            )
        return prepared


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
