"""What a drawn picture is: its objects, their exact masks, and the options that shape it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from paligemma.errors import DataError

if TYPE_CHECKING:
    import numpy as np

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "heart")
LABELS: tuple[str, ...] = (*SHAPES, "digit", "sign")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (212, 36, 38),
    "green": (38, 150, 62),
    "blue": (38, 92, 214),
    "yellow": (246, 214, 44),
    "purple": (138, 54, 178),
    "orange": (246, 132, 24),
    "white": (244, 244, 242),
    "black": (26, 26, 30),
}
SPLITS: tuple[str, ...] = ("train", "heldout")

# Below this short side a canvas is treated as a crop of a larger one: smaller objects, one sign.
SMALL_CANVAS_PX = 168


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """How pictures are drawn.

    Args:
        size_px: side of a square canvas, 64..2048.
        size_hw: (height, width) of the canvas in pixels; overrides `size_px` when given.
        split: "train" or "heldout": which handwriting is shown. Random letter strings on signs
            appear in training pictures only.
        max_objects: upper bound on objects, 1..12; None means 6, or 3 on a canvas below 168 px.
        min_objects: lower bound on objects that are tried; some may find no room.
        object_scale: factor on object sizes, 0.5..8. Sizes do not follow the canvas by themselves.
        label_shares: how often an object is a shape, a digit or a sign; sums to 1.
        max_signs: upper bound on signs; None means 2, or 1 on a canvas below 168 px.
    """

    size_px: int = 224
    size_hw: tuple[int, int] | None = None
    split: str = "train"
    max_objects: int | None = None
    min_objects: int = 1
    object_scale: float = 1.0
    label_shares: tuple[float, float, float] = (0.55, 0.22, 0.23)
    max_signs: int | None = None

    def __post_init__(self) -> None:
        if not all(64 <= side <= 2048 for side in self.hw):
            raise DataError(
                f"A scene side must be 64..2048 px, got {self.hw}; choose another size."
            )
        if self.split not in SPLITS:
            raise DataError(f"A scene split must be one of {SPLITS}, got {self.split!r}; name one.")
        if self.max_objects is not None and not 1 <= self.max_objects <= 12:
            raise DataError(f"max_objects must be 1..12, got {self.max_objects}; choose another.")
        if min(self.label_shares) < 0 or abs(sum(self.label_shares) - 1) > 1e-6:
            raise DataError(
                f"label_shares must be three shares that sum to 1, got {self.label_shares}."
            )
        if self.label_shares[2] == 1:
            raise DataError("label_shares must leave room for other objects than signs; lower it.")
        if not 1 <= self.min_objects <= self.num_objects_max:
            raise DataError(
                f"min_objects must be 1..{self.num_objects_max}, got {self.min_objects}; "
                "choose another."
            )
        if not 0.5 <= self.object_scale <= 8:
            raise DataError(
                f"object_scale must be 0.5..8, got {self.object_scale}; choose another."
            )

    @property
    def hw(self) -> tuple[int, int]:
        """Canvas height and width in pixels."""
        return self.size_hw or (self.size_px, self.size_px)

    @property
    def is_small(self) -> bool:
        """Whether the canvas, measured in objects, is a crop of the 224 px one."""
        return min(self.hw) / self.object_scale < SMALL_CANVAS_PX

    @property
    def num_objects_max(self) -> int:
        """The bound on objects after the default is resolved."""
        return self.max_objects if self.max_objects is not None else (3 if self.is_small else 6)

    @property
    def num_signs_max(self) -> int:
        """The bound on signs."""
        if self.max_signs is not None:
            return self.max_signs
        return 1 if self.is_small else 2

    @property
    def side_range_px(self) -> tuple[float, float]:
        """Smallest and largest box side of shapes and digits, before aspect jitter."""
        low, high = (22.0, 60.0) if self.is_small else (26.0, 84.0)
        high = min(high * self.object_scale, 0.6 * min(self.hw))
        return min(low * self.object_scale, high), high

    @property
    def cap_range_px(self) -> tuple[float, float]:
        """Smallest and largest height of capitals on signs."""
        high = (20.0 if self.is_small else 26.0) * self.object_scale
        # Whatever the scale, one character on its plate must fit.
        return min(12.0 * self.object_scale, min(self.hw) / 8), min(high, min(self.hw) / 3)


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One object of a picture.

    Args:
        label: one of LABELS.
        color: one of COLORS.
        text: the digit's value, the sign's word, or "" for a shape.
        box_yxyx: (ymin, xmin, ymax, xmax) of the visible mask, normalised to [0, 1].
        char_boxes: (character, y0, x0, y1, x1) in pixels for each character of a sign.
    """

    label: str
    color: str
    text: str
    box_yxyx: tuple[float, float, float, float]
    char_boxes: tuple[tuple[str, float, float, float, float], ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A picture with everything that is true of it.

    Args:
        image: uint8[H, W, 3].
        objects: in drawing order, the last on top.
        object_map: uint8[H, W]; 0 is background, k shows objects[k - 1].
        seed: the seed that draws it again.
    """

    image: np.ndarray
    objects: tuple[SceneObject, ...]
    object_map: np.ndarray
    seed: int

    def mask(self, index: int) -> np.ndarray:
        """Visible pixels of objects[index], bool[H, W]."""
        return self.object_map == index + 1


@dataclass(frozen=True, kw_only=True)
class SceneExample:
    """One prompt about a picture with its true answer.

    Args:
        task: "caption", "ocr", "answer", "question", "detect", "segment" or "caption_region".
        kind: the finer kind, one of `KINDS`.
        prefix: the prompt. For "caption_region" the caller appends `prefix_box` as location tokens.
        suffix: the answer; None where the target is made of boxes or masks (`objects`, `labels`).
        objects: indices into `Scene.objects` of the targets, in target order.
        labels: the asked phrase that each target answers, parallel to `objects`.
        prefix_box: (ymin, xmin, ymax, xmax) in [0, 1], or None.
    """

    task: str
    kind: str
    prefix: str
    suffix: str | None
    objects: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    prefix_box: tuple[float, float, float, float] | None = None
