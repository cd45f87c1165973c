"""What comes out of a model, as frozen records: parsed objects, detections, answers.

Boxes carry their order: `box_yxyx` is (ymin, xmin, ymax, xmax) normalised by the image's height and
width, `box_xyxy_px` is (x0, y0, x1, y1) in pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from paligemma.errors import ConfigError, DataError
from paligemma.outputs.boxes import Box, box_iou, box_yxyx_to_xyxy_px
from paligemma.vocab import NUM_LOC

if TYPE_CHECKING:
    from PIL import Image

    from paligemma.outputs.draw import DrawStyle
    from paligemma.outputs.masks import MaskRegion


def require_confidence(threshold: float) -> None:
    """Raise ConfigError unless a lowest confidence is a number in [0, 1]."""
    if not isinstance(threshold, Real) or not 0 <= threshold <= 1:
        raise ConfigError(
            f"a threshold must be a confidence in [0, 1], got {threshold!r}; 0.5 is usual"
        )


def require_overlap(max_overlap: float) -> None:
    """Raise ConfigError unless a largest overlap is a number in [0, 1]."""
    if not isinstance(max_overlap, Real) or not 0 <= max_overlap <= 1:
        raise ConfigError(
            f"max_overlap must be an intersection over union in [0, 1], got {max_overlap!r}; 0.5 "
            "is usual"
        )


def require_selection(threshold: float | None, max_overlap: float | None) -> None:
    """Raise ConfigError unless both are in [0, 1] or not given."""
    if threshold is not None:
        require_confidence(threshold)
    if max_overlap is not None:
        require_overlap(max_overlap)


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenRecord:
    """What decoding knows of each emitted token.

    Args:
      ids: int64[T].
      logprobs: float32[T], log-probability of each id under the full, unmodified logits.
      loc_probs: float32[T, 1024] or None: softmax of the full unmodified logits, cut out at the
        location ids and not renormalised; its rows sum to the probability of any location token.

    Raises:
      DataError: the lengths differ.
    """

    ids: np.ndarray
    logprobs: np.ndarray
    loc_probs: np.ndarray | None = None

    def __post_init__(self) -> None:
        num = len(self.ids)
        shapes = [self.ids.shape, self.logprobs.shape]
        expected: list[tuple[int, ...]] = [(num,), (num,)]
        if self.loc_probs is not None:
            shapes.append(self.loc_probs.shape)
            expected.append((num, NUM_LOC))
        if shapes != expected:
            raise DataError(
                f"A token record needs ids[T], logprobs[T] and loc_probs[T, {NUM_LOC}], but has "
                f"{shapes}; pass arrays of one sequence."
            )


@dataclass(frozen=True, kw_only=True)
class ObjectScores:
    """Confidence of one object and its parts, each in [0, 1]; see `parse.score_object`.

    Args:
      box_score: geometric mean of the four coordinate confidences.
      label_score: product of the label's token probabilities; None without a label.
      mask_score: geometric mean of the codeword probabilities; None without a mask.
      score: product of the parts that exist.
      expected_yxyx: mean of each coordinate's bin distribution, in bins; None without one.
      std_yxyx: its standard deviation, in bins.
    """

    box_score: float
    label_score: float | None
    mask_score: float | None
    score: float
    expected_yxyx: Box | None = None
    std_yxyx: Box | None = None


@dataclass(frozen=True, kw_only=True)
class ParsedObject:
    """One object as the model wrote it.

    Args:
      loc: four bins (ymin, xmin, ymax, xmax) in [0, 1023].
      seg: sixteen codewords in [0, 127], or None.
      label: without surrounding spaces, or None.
      scores: confidences, where the tokens' probabilities are known.
    """

    loc: tuple[int, int, int, int]
    seg: tuple[int, ...] | None = None
    label: str | None = None
    scores: ObjectScores | None = None

    @property
    def is_valid(self) -> bool:
        """Whether the box has a positive height and width."""
        y0, x0, y1, x1 = self.loc
        return y1 > y0 and x1 > x0


@dataclass(frozen=True, kw_only=True)
class ParsedOutput:
    """All that was understood of a text, and the rest.

    Args:
      objects: in the order of the text.
      rest: what belongs to no object, in order, separators dropped, joined by single spaces.
      text: the whole text.
    """

    objects: tuple[ParsedObject, ...]
    rest: str
    text: str


@dataclass(frozen=True, kw_only=True, eq=False)
class TextAnswer:
    """A text with its confidence.

    Args:
      text: the decoded answer.
      score: product of the token probabilities up to and including the end token, or None.
      token_logprobs: log-probability of each of these tokens.
    """

    text: str
    score: float | None = None
    token_logprobs: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """`{"text", "score"}`."""
        return {"text": self.text, "score": self.score}


@dataclass(frozen=True, kw_only=True, eq=False)
class Detection:
    """One object found in an image.

    Args:
      label: what it was called, or None.
      box_yxyx: the emitted box, normalised; kept as emitted even if swapped or empty.
      image_wh: width and height of the image, pixels.
      score: confidence in [0, 1], or None; the product of the three below where they exist.
      box_score, label_score, mask_score: confidences of the parts.
      box_expected_yxyx: mean of the model's distribution over bins, finer than one bin, or None.
      box_std_yxyx: standard deviation of that distribution, normalised as the box is.
      codes: the sixteen mask codewords, or None.
      region: the decoded mask, or None.
    """

    label: str | None
    box_yxyx: Box
    image_wh: tuple[int, int]
    score: float | None = None
    box_score: float | None = None
    label_score: float | None = None
    mask_score: float | None = None
    box_expected_yxyx: Box | None = None
    box_std_yxyx: Box | None = None
    codes: tuple[int, ...] | None = None
    region: MaskRegion | None = None

    @property
    def box_xyxy_px(self) -> Box:
        """(x0, y0, x1, y1) in pixels of the original image."""
        return box_yxyx_to_xyxy_px(self.box_yxyx, self.image_wh)

    @property
    def is_valid(self) -> bool:
        """Whether the box has a positive height and width."""
        y0, x0, y1, x1 = self.box_yxyx
        return y1 > y0 and x1 > x0

    @property
    def mask(self) -> np.ndarray | None:
        """bool[H, W] at the image's size, made anew at each call; None without a mask."""
        return None if self.region is None else self.region.to_array()


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections(Sequence[Detection]):
    """The objects of one image, in the order the model named them.

    Args:
      items: the objects, invalid ones included (`Detection.is_valid`).
      image_wh: width and height of the image, pixels.
      text: the model's whole output.
      rest: the part of the text that belongs to no object.
      picture: uint8[H, W, 3] that was asked about, for `draw`; None where it is not known.
    """

    items: tuple[Detection, ...]
    image_wh: tuple[int, int]
    text: str = ""
    rest: str = ""
    picture: np.ndarray | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Detection, ...]: ...
    def __getitem__(self, index: int | slice) -> Detection | tuple[Detection, ...]:
        return self.items[index]

    def __iter__(self) -> Iterator[Detection]:
        return iter(self.items)

    def above(self, score: float) -> Detections:
        """Only the valid objects with at least this confidence; unscored objects stay.

        Raises:
          ConfigError: the confidence is not in [0, 1].
        """
        require_confidence(score)
        kept = tuple(d for d in self if d.is_valid and (d.score is None or d.score >= score))
        return replace(self, items=kept)

    def distinct(self, max_overlap: float = 0.5) -> Detections:
        """Only the most confident of the objects of one label that overlap more than that.

        A model may name one thing twice; the second box is then another guess of the first. What
        is invalid stays, and of equal or missing confidences the first stays.

        Args:
          max_overlap: intersection over union of boxes, in [0, 1].

        Raises:
          ConfigError: the overlap is not in [0, 1].
        """
        require_overlap(max_overlap)
        kept: list[Detection] = []
        for one in sorted(self, key=lambda d: 0.0 if d.score is None else -d.score):
            rivals = [d.box_yxyx for d in kept if d.is_valid and d.label == one.label]
            if not (one.is_valid and rivals) or (
                box_iou(rivals, one.box_yxyx).max() <= max_overlap
            ):
                kept.append(one)
        return replace(self, items=tuple(d for d in self if any(d is k for k in kept)))

    def selected(self, threshold: float | None, max_overlap: float | None) -> Detections:
        """First `distinct`, then `above`, each where its number is given."""
        found = self if max_overlap is None else self.distinct(max_overlap)
        return found if threshold is None else found.above(threshold)

    def to_json(self) -> list[dict[str, Any]]:
        """See `export.to_json`."""
        from paligemma.outputs import export

        return export.to_json(self)

    def to_coco(
        self,
        *,
        image_id: int = 1,
        category_ids: Mapping[str, int] | None = None,
        polygons: bool = False,
    ) -> list[dict[str, Any]]:
        """See `export.to_coco`."""
        from paligemma.outputs import export

        return export.to_coco(self, image_id=image_id, category_ids=category_ids, polygons=polygons)

    def to_yolo(
        self,
        *,
        class_names: Sequence[str] | None = None,
        polygons: bool = False,
        with_scores: bool = False,
    ) -> str:
        """See `export.to_yolo`."""
        from paligemma.outputs import export

        return export.to_yolo(
            self, class_names=class_names, polygons=polygons, with_scores=with_scores
        )

    def to_supervision(self, *, class_names: Sequence[str] | None = None) -> Any:
        """See `export.to_supervision`."""
        from paligemma.outputs import export

        return export.to_supervision(self, class_names=class_names)

    def draw(
        self, image: Image.Image | np.ndarray | None = None, *, style: DrawStyle | None = None
    ) -> Image.Image:
        """The picture with its boxes, masks and labels; see `draw.draw_detections`.

        Args:
          image: what to draw on; the picture that was asked about by default.

        Raises:
          DataError: no image is given and none is known.
          ImageError: it is no image, or its size differs.
        """
        from paligemma.outputs.draw import DrawStyle, draw_detections

        image = self.picture if image is None else image
        if image is None:
            raise DataError("These detections do not hold their picture; pass it to draw.")
        return draw_detections(image, self, style=style or DrawStyle())

    def save_png(
        self,
        path: str | Path,
        image: Image.Image | np.ndarray | None = None,
        *,
        style: DrawStyle | None = None,
    ) -> None:
        """Writes `draw(image)` as PNG, whole or not at all."""
        from paligemma.outputs.export import save_png

        save_png(self.draw(image, style=style), path)
