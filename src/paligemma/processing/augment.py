"""Changes of a picture that training draws, and how boxes, outlines and masks move along.

    zoom-out -> crop -> flip -> colour -> jpeg -> resize

Everything that moves is one window of the picture and perhaps a flip, so pixels and coordinates
move by the same numbers. A policy is a word, `crop` or `crop=0.7`: its name and its strength.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from paligemma.errors import ConfigError
from paligemma.processing.resize import KERNELS, resize_by_kernel

# Name -> default strength, its bounds, and what it is.
POLICIES: dict[str, tuple[float, float, float, str]] = {
    "flip": (0.5, 0.0, 1.0, "share of visits that are mirrored, left to right"),
    "crop": (0.1, 0.01, 1.0, "smallest area that is kept; objects stay whole"),
    "zoom-out": (1.5, 1.0, 4.0, "largest factor by which the picture is set into a plain one"),
    "colour": (0.3, 0.0, 1.0, "largest change of brightness, contrast and saturation"),
    "jpeg": (75.0, 1.0, 95.0, "lowest quality of a second encoding, up to 95"),
    "resize": (1.0, 0.0, 1.0, "share of visits with a drawn method of resizing"),
}
# Those that move what lies on the picture.
MOVING = ("flip", "crop", "zoom-out")
# Share of visits in which crop, zoom-out, colour and JPEG act; ours, since none is published.
_SHARE = 0.5
_BEST_QUALITY = 95
# Width over height of a crop. Source: `zic_mild` of big_vision's refcoco_seg.py, its area too.
_ASPECTS = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Move:
    """Where a picture goes: a window of it, in pixels, which may reach beyond it, and a flip.

    Attributes:
        size_hw: height and width of the picture.
        window_yxyx: upper left and lower right corner of the window.
        flip: whether the window is mirrored.
    """

    size_hw: tuple[int, int]
    window_yxyx: tuple[int, int, int, int]
    flip: bool = False

    @property
    def is_still(self) -> bool:
        """Whether nothing moves."""
        return self.window_yxyx == (0, 0, *self.size_hw) and not self.flip

    def array(self, image: NDArray[np.generic], fill: Sequence[int] | bool) -> NDArray[np.generic]:
        """The pixels of the window: [H, W, ...] -> [h, w, ...].

        Args:
            image: picture or mask.
            fill: what lies beyond it.
        """
        y0, x0, y1, x1 = self.window_yxyx
        height, width = image.shape[:2]
        moved = np.empty((y1 - y0, x1 - x0, *image.shape[2:]), image.dtype)
        moved[...] = fill
        top, left = max(y0, 0), max(x0, 0)
        inside = image[top : min(y1, height), left : min(x1, width)]
        rows, columns = inside.shape[:2]
        moved[top - y0 : top - y0 + rows, left - x0 : left - x0 + columns] = inside
        return np.ascontiguousarray(moved[:, ::-1]) if self.flip else moved

    def points(self, points_xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Normalised points (x, y) of the picture as points of the window: float64[N, 2]."""
        y0, x0, y1, x1 = self.window_yxyx
        height, width = self.size_hw
        scaled = (points_xy * (width, height) - (x0, y0)) / (x1 - x0, y1 - y0)
        return scaled * (-1, 1) + (1, 0) if self.flip else scaled

    def box(self, box_yxyx: Sequence[float]) -> tuple[float, float, float, float]:
        """A normalised box of the picture as a box of the window."""
        y0, x0, y1, x1 = box_yxyx
        (ax, ay), (bx, by) = self.points(np.array([(x0, y0), (x1, y1)], np.float64)).tolist()
        edges = (ay, min(ax, bx), by, max(ax, bx))
        return tuple(min(max(edge, 0.0), 1.0) for edge in edges)


@dataclass(frozen=True)
class Augmentation:
    """Policies by name with their strengths."""

    strengths: tuple[tuple[str, float], ...] = ()

    @classmethod
    def of(cls, words: Sequence[str]) -> Augmentation:
        """Read policies as they are written.

        Raises:
            ConfigError: an unknown name, a name twice, or a strength out of its bounds.
        """
        found: dict[str, float] = {}
        for word in words:
            name, _, number = word.strip().partition("=")
            if name not in POLICIES or name in found:
                raise ConfigError(
                    f"augment takes each of {', '.join(POLICIES)} once, got {word!r:.80}; correct "
                    "or remove it"
                )
            default, low, high, meaning = POLICIES[name]
            try:
                found[name] = float(number) if number else default
            except ValueError:
                found[name] = math.nan
            if not low <= found[name] <= high:
                raise ConfigError(
                    f"the strength of {name} is the {meaning}, in {low:g}..{high:g}, got "
                    f"{word!r:.80}"
                )
        return cls(tuple(found.items()))

    def __getitem__(self, name: str) -> float | None:
        return dict(self.strengths).get(name)

    def move(
        self,
        size_hw: tuple[int, int],
        boxes_yxyx: Sequence[Sequence[float]],
        rng: np.random.Generator,
        *,
        may_flip: bool,
    ) -> Move:
        """Draw where a picture goes; its boxes stay whole."""
        window = (0, 0, *size_hw)
        draws, sides = rng.random(3), rng.random((2, 4))
        factor, kept, flips = self["zoom-out"], self["crop"], self["flip"]
        if factor is not None and draws[0] < _SHARE:
            height, width = (round(size * (1 + (factor - 1) * sides[0, 0])) for size in size_hw)
            y0 = -round((height - size_hw[0]) * sides[0, 1])
            x0 = -round((width - size_hw[1]) * sides[0, 2])
            window = (y0, x0, y0 + height, x0 + width)
        if kept is not None and draws[1] < _SHARE:
            window = _cropped(window, size_hw, boxes_yxyx, kept, sides[1])
        return Move(size_hw, window, may_flip and flips is not None and draws[2] < flips)

    def recoloured(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Draw other colours and another encoding: uint8[H, W, 3] -> the same."""
        draws, factors = rng.random(2), rng.uniform(-1, 1, 3)
        lowest, colour = self["jpeg"], self["colour"]
        recodes = lowest is not None and draws[1] < _SHARE
        recolours = colour is not None and draws[0] < _SHARE
        if not (recodes or recolours):
            return image
        picture = Image.fromarray(image)
        if recolours and colour is not None:
            enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
            for enhancer, factor in zip(enhancers, factors, strict=True):
                picture = enhancer(picture).enhance(1 + colour * float(factor))
        if recodes and lowest is not None:
            stored = io.BytesIO()
            picture.save(stored, "JPEG", quality=int(rng.integers(int(lowest), _BEST_QUALITY + 1)))
            with Image.open(stored) as opened:
                picture = opened.convert("RGB")
        return np.asarray(picture)

    def resized(
        self, image: NDArray[np.uint8], size_px: int, rng: np.random.Generator
    ) -> NDArray[np.uint8]:
        """Draw a method of resizing, as stages 1 and 2 do; the image itself where none is drawn.

        Source: big_vision pp/proj/paligemma/robustness.py: five kernels, with antialias or without.
        """
        share = self["resize"]
        draw, kernel, antialias = rng.random(), rng.integers(len(KERNELS)), rng.random() < 0.5
        if share is None or draw >= share:
            return image
        return resize_by_kernel(image, size_px, KERNELS[int(kernel)], antialias=bool(antialias))


def _cropped(
    window: tuple[int, int, int, int],
    size_hw: tuple[int, int],
    boxes_yxyx: Sequence[Sequence[float]],
    kept: float,
    draws: NDArray[np.float64],
) -> tuple[int, int, int, int]:
    """A window in the window with every box, and with at least `kept` of its area.

    Its aspect lies in `_ASPECTS`. Where boxes or the shape of the picture leave no such window, it
    is the window itself.
    """
    low, size = np.array(window[:2]), np.array(window[2:]) - window[:2]
    first, last = low + size, low
    if len(boxes_yxyx):
        edges = np.array(boxes_yxyx, np.float64).reshape(-1, 2, 2) * size_hw
        first = np.floor(edges[:, 0].min(0)).astype(int)
        last = np.ceil(edges[:, 1].max(0)).astype(int)
    height, width = size
    span_y, span_x = np.maximum(last - first, 1)
    narrowest, widest = max(_ASPECTS[0], span_x / height), min(_ASPECTS[1], width / span_y)
    if narrowest > widest:
        return window
    aspect = narrowest * (widest / narrowest) ** draws[0]
    lowest = max(span_y, span_x / aspect, math.sqrt(kept * height * width / aspect))
    highest = min(height, width / aspect)
    if lowest > highest:
        return window
    tall = math.sqrt(lowest**2 + (highest**2 - lowest**2) * draws[1])
    side = np.rint((tall, tall * aspect)).astype(int).clip((span_y, span_x), size)
    # The crop begins where it still holds both the first and the last box.
    earliest, latest = np.maximum(low, last - side), np.minimum(first, low + size - side)
    begin = earliest + np.floor((latest - earliest + 1) * draws[2:]).astype(int)
    (y0, x0), (y1, x1) = begin.tolist(), (begin + side).tolist()
    return y0, x0, y1, x1
