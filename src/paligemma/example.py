"""The one currency of files, tasks, training, evaluation and serving: a question and its answer.

Nothing here reads a file or knows a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from paligemma.errors import ConfigError
from paligemma.outputs.boxes import Box
from paligemma.processing.preparation import Preparation
from paligemma.processing.resize import BILINEAR_ANTIALIAS

# How answers are understood.
TEXT, OBJECTS, MASK, ALL_CLASSES = "text", "objects", "mask", "all_classes"
ANSWERS = (TEXT, OBJECTS, MASK, ALL_CLASSES)
# Pads answers with all classes; its token is unpublished.
NOISE = "<noise>"


class Picture(Protocol):
    """A picture that is read when it is needed; small, and travels to other processes."""

    def read(self, max_pixels: int) -> np.ndarray:
        """uint8[H, W, 3], as the benchmark's authors read it.

        Raises:
            ImageError: unreadable, or larger than the bound.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Example:
    """One question to the model.

    Attributes:
        id: unique within task and split, and the same on every machine.
        prefix: the prompt as the model reads it, without the separator.
        pictures: one, two for pairs, or the frames of a clip.
        references: what the scorer compares with, as JSON would hold it.
        targets: answers to train on, one drawn a visit; empty where a split has no answers.
        slices: name -> value by which scores are broken down, or several values, each a slice.
        unit: examples of one unit are resampled together, such as the two rows of a pair; None
            makes each its own.
        mark_box_yxyx: normalised box that is drawn red, one pixel wide, on the resized picture.
    """

    id: str
    prefix: str
    pictures: tuple[Picture, ...]
    references: Any
    targets: tuple[str, ...] = ()
    slices: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    unit: str | None = None
    mark_box_yxyx: Box | None = None


@dataclass(frozen=True, kw_only=True)
class FoundObject:
    """One object of an answer.

    Attributes:
        label: as the model wrote it.
        box_yxyx: normalised to [0, 1].
        score: confidence; None where the answer came without probabilities.
        mask: COCO's compressed run lengths of the whole picture, or None.
    """

    label: str
    box_yxyx: Box
    score: float | None = None
    mask: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model answered to one example.

    Attributes:
        id: of the example.
        text: the whole answer up to the end token, location and mask tokens spelt out; nothing is
            stripped.
        logprob: sum over its tokens, end token included; None where unknown.
        objects: what was found, for tasks that ask for objects.
        error: why there is no answer (an unreadable picture); the text is then "".
        note: what was amiss with the picture, though it was answered.
    """

    id: str
    text: str
    logprob: float | None = None
    objects: tuple[FoundObject, ...] = ()
    error: str | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How the model is asked and decoded.

    Attributes:
        text_len: tokens of prefix, separator and suffix in training.
        max_new_tokens: bound of an answer.
        num_beams: 1 is greedy.
        resize_method: of evaluation, see `processing.resize`.
        train_resize_method: of training; None is the same.
        num_pictures: frames a row of the batch holds.
        pad_to_square: pad with white, on the right and below, before resizing.
        keep_fractions: resized pictures keep fractions of grey levels, as the original's video
            frames do.
        answer: "text"; "objects", boxes with labels; "mask", one box with a mask; or
            "all_classes", where neither noise nor end may be written.
    """

    text_len: int
    max_new_tokens: int
    num_beams: int = 1
    resize_method: str = BILINEAR_ANTIALIAS
    train_resize_method: str | None = None
    num_pictures: int = 1
    pad_to_square: bool = False
    keep_fractions: bool = False
    answer: str = TEXT

    def preparation(self, example: Example, size_px: int, *, training: bool = False) -> Preparation:
        """The steps from the pictures of an example to a model's input of `size_px`."""
        trained = self.train_resize_method if training else None
        return Preparation(
            size_px=size_px,
            resize_method=trained or self.resize_method,
            keep_fractions=self.keep_fractions,
            pad_to_square=self.pad_to_square,
            mark_box_yxyx=example.mark_box_yxyx,
        )

    def __post_init__(self) -> None:
        if self.answer not in ANSWERS:
            raise ConfigError(f"answer must be one of {', '.join(ANSWERS)}, got {self.answer!r}")
