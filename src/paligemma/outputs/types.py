"""What comes out of a model, as frozen records: parsed objects, detections, answers in words.

Boxes carry their order: `box_yxyx` is (ymin, xmin, ymax, xmax) normalised by the image's height and
width, `box_xyxy_px` is (x0, y0, x1, y1) in pixels of the original image.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from paligemma.errors import DataError
from paligemma.outputs.boxes import Box, box_yxyx_to_xyxy_px
from paligemma.outputs.masks import MaskRegion
from paligemma.vocab import NUM_LOC

# Name of an object without a label, in pictures and in the files of other tools.
NO_LABEL = "object"


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenRecord:
    """The emitted tokens of one answer with their probabilities.

    Attributes:
        ids: int64[T].
        logprobs: float32[T], log-probability of each id under the full, unmodified logits.
        loc_probs: float32[T, 1024] or None: softmax of the full unmodified logits, cut out at the
            location ids and not renormalised; each row sums to the probability of any location
            token.

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
                f"a token record needs ids[T], logprobs[T] and loc_probs[T, {NUM_LOC}], got "
                f"{shapes}; pass arrays of one sequence"
            )


@dataclass(frozen=True, kw_only=True)
class ObjectScores:
    """Confidence of one object and its parts, each in [0, 1]; see `confidence.score_object`.

    Attributes:
        box_score: geometric mean of the four coordinate confidences.
        label_score: product of the label's token probabilities; None without a label.
        mask_score: geometric mean of the codeword probabilities; None without a mask.
        expected_yxyx: mean of each coordinate's bin distribution, in bins; None where the
            distribution is unknown.
        std_yxyx: standard deviation of the same distribution, in bins.
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

    Attributes:
        loc: four bins (ymin, xmin, ymax, xmax) in [0, 1023].
        seg: sixteen codewords in [0, 127], or None.
        label: label without surrounding spaces, or None.
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
    """Everything the parser understood of a text, and the rest.

    Attributes:
        rest: pieces that belong to no object, in order, without separators, joined by single
            spaces.
    """

    objects: tuple[ParsedObject, ...]
    rest: str
    text: str


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TextAnswer:
    """An answer in words with its confidence; `str` and a notebook show the text.

    Attributes:
        score: product of the token probabilities up to and including the end token, or None.
        token_logprobs: log-probability of each of these tokens.
    """

    text: str
    score: float | None = None
    token_logprobs: tuple[float, ...] = ()

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        score = "" if self.score is None else f", score={self.score:.3g}"
        return f"TextAnswer({self.text!r}{score})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """How IPython shows the answer. Markdown would swallow `<loc...>` as unknown HTML."""
        printer.text(self.text)

    def to_json(self) -> dict[str, Any]:
        """`{"text", "score"}`."""
        return {"text": self.text, "score": self.score}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Detection:
    """One object found in an image.

    Attributes:
        box_yxyx: the emitted box, normalised; kept as emitted even if swapped or empty.
        image_wh: width and height of the image, pixels.
        score: confidence in [0, 1], or None; the product of `box_score`, `label_score` and
            `mask_score` where they exist.
        box_expected_yxyx: mean of the model's distribution over bins, finer than one bin, or None.
        box_std_yxyx: standard deviation of that distribution, normalised as the box is.
        codes: the sixteen mask codewords, or None.
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

    def __repr__(self) -> str:
        score = "" if self.score is None else f", score={self.score:.3g}"
        mask = "" if self.region is None else f", mask of {self.region.area_px} px"
        box = ", ".join(f"{edge:.1f}" for edge in self.box_xyxy_px)
        return f"Detection({self.label!r}{score}, box_xyxy_px=({box}){mask})"

    @property
    def name(self) -> str:
        """The label, or "object" where the model wrote none."""
        return self.label or NO_LABEL

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
