"""A drawn picture: its objects with exact masks, its options, and a prompt about it."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
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

# Below this short side a canvas counts as a crop of a larger one: smaller objects, one sign.
SMALL_CANVAS_PX = 168
# Beyond the number of signs that a picture may have, another label is drawn until it is no sign.
_MAX_SIGN_SHARE = 0.99


def _are_whole(values: tuple[int, ...], num: int) -> bool:
    """Whether these are so many whole numbers."""
    return len(values) == num and all(isinstance(one, Integral) for one in values)


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """How pictures are drawn.

    Attributes:
        size_px: side of a square canvas in pixels, 64..2048.
        size_hw: (height, width) of the canvas in pixels, which overrides `size_px`.
        split: handwriting that is shown, "train" or "heldout". Random letters stand on signs of
            training pictures only.
        max_objects: largest number of objects, 1..12; None means 6, or 3 on a canvas below 168 px.
        min_objects: smallest number of objects that are tried; some may find no room.
        object_scale: factor on the sizes of objects, 0.5..8; sizes do not grow with the canvas.
        label_shares: shares of shapes, digits and signs among the objects; they sum to 1, and
            signs have at most 0.99.
        max_signs: largest number of signs; None means 2, or 1 on a canvas below 168 px.
        thing_share: share of things among all objects, 0..1; the other objects follow
            `label_shares`.
        things: "known" for the sprites of the package, or the path of a file of sprites.
        thing_jitter: factor on how much sprites are turned and recoloured, 0..10.

    Raises:
        DataError: a value is out of bounds.
    """

    size_px: int = 224
    size_hw: tuple[int, int] | None = None
    split: str = "train"
    max_objects: int | None = None
    min_objects: int = 1
    object_scale: float = 1.0
    label_shares: tuple[float, float, float] = (0.55, 0.22, 0.23)
    max_signs: int | None = None
    thing_share: float = 0.0
    things: str = "known"
    thing_jitter: float = 1.0

    def __post_init__(self) -> None:
        if not _are_whole(self.hw, 2) or not all(64 <= side <= 2048 for side in self.hw):
            raise DataError(
                f"a scene side must be 64..2048 whole px, got {self.hw}; choose another"
            )
        if self.split not in SPLITS:
            raise DataError(f"a scene split must be one of {SPLITS}, got {self.split!r}; name one")
        counts = (self.min_objects, self.max_objects or 1, self.max_signs or 0)
        if not _are_whole(counts, 3) or min(counts) < 0:
            raise DataError(
                "min_objects, max_objects and max_signs must be whole numbers of 0 or more, got "
                f"{self.min_objects}, {self.max_objects} and {self.max_signs}; choose others"
            )
        if self.max_objects is not None and not 1 <= self.max_objects <= 12:
            raise DataError(f"max_objects must be 1..12, got {self.max_objects}; choose another")
        shares = self.label_shares
        # Not a number is neither 0 or more nor near 1.
        if len(shares) != 3 or not (min(shares) >= 0 and abs(sum(shares) - 1) <= 1e-6):
            raise DataError(
                f"label_shares must be three shares >= 0 that sum to 1, got {shares}; change them"
            )
        if shares[2] > _MAX_SIGN_SHARE:
            raise DataError(
                "label_shares must leave room for other objects than signs, at most "
                f"{_MAX_SIGN_SHARE} for them, got {shares[2]}; lower it"
            )
        if not 1 <= self.min_objects <= self.num_objects_max:
            raise DataError(
                f"min_objects must be 1..{self.num_objects_max}, got {self.min_objects}; "
                "choose another"
            )
        if not (0 <= self.thing_share <= 1 and 0 <= self.thing_jitter <= 10):
            raise DataError(
                "thing_share must be 0..1 and thing_jitter 0..10, got "
                f"{self.thing_share} and {self.thing_jitter}; choose others"
            )
        if not 0.5 <= self.object_scale <= 8:
            raise DataError(f"object_scale must be 0.5..8, got {self.object_scale}; choose another")

    @property
    def hw(self) -> tuple[int, int]:
        """Canvas height and width in pixels."""
        return self.size_hw if self.size_hw is not None else (self.size_px, self.size_px)

    @property
    def is_small(self) -> bool:
        """Whether the canvas, in units of the object scale, counts as a crop of a larger one."""
        return min(self.hw) / self.object_scale < SMALL_CANVAS_PX

    @property
    def num_objects_max(self) -> int:
        """Largest number of objects, with the default resolved."""
        return self.max_objects if self.max_objects is not None else (3 if self.is_small else 6)

    @property
    def num_signs_max(self) -> int:
        """Largest number of signs, with the default resolved."""
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
    def thing_range_px(self) -> tuple[float, float]:
        """Smallest and largest longer side of things, before rotation."""
        low, high = self.side_range_px
        high = min(1.2 * high, 0.6 * min(self.hw))
        return min(1.25 * low, high), high

    @property
    def cap_range_px(self) -> tuple[float, float]:
        """Smallest and largest height of capitals on signs."""
        high = (20.0 if self.is_small else 26.0) * self.object_scale
        # One character on its plate must fit at any scale.
        return min(12.0 * self.object_scale, min(self.hw) / 8), min(high, min(self.hw) / 3)


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One object of a picture.

    Attributes:
        label: one of LABELS, or of THINGS.
        color: one of COLORS, or "" for a thing.
        text: value of a digit, word of a sign, or "" for shapes and things.
        box_yxyx: box (ymin, xmin, ymax, xmax) of the visible mask, normalised to [0, 1].
        char_boxes: (character, y0, x0, y1, x1) in pixels for each character of a sign.
        style: art style of a thing, "" otherwise.
    """

    label: str
    color: str
    text: str
    box_yxyx: tuple[float, float, float, float]
    char_boxes: tuple[tuple[str, float, float, float, float], ...] = ()
    style: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A picture with its objects.

    Attributes:
        image: uint8[H, W, 3].
        objects: objects in drawing order, the last on top.
        object_map: uint8[H, W]; 0 is the background, k shows objects[k - 1].
    """

    image: np.ndarray
    objects: tuple[SceneObject, ...]
    object_map: np.ndarray
    seed: int

    def mask(self, index: int) -> np.ndarray:
        """Return the visible pixels bool[H, W] of objects[index]."""
        return self.object_map == index + 1


@dataclass(frozen=True, kw_only=True)
class SceneExample:
    """One prompt about a picture with its true answer.

    Attributes:
        task: "caption", "ocr", "answer", "question", "detect", "segment" or "caption_region".
        kind: the finer kind, one of `KINDS`.
        prefix: the prompt; for "caption_region" the caller appends `prefix_box` as location
            tokens.
        suffix: the answer in words; None where the answer is boxes or masks of `objects`.
        objects: indices into `Scene.objects`, in the order of the answer.
        labels: phrase of the prompt that names each of these objects.
        prefix_box: region to caption, (ymin, xmin, ymax, xmax) in [0, 1], or None.
    """

    task: str
    kind: str
    prefix: str
    suffix: str | None
    objects: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    prefix_box: tuple[float, float, float, float] | None = None
