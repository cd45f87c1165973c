"""What training changes in an example at a visit: its picture, and what is asked of it.

Every change is drawn from seed, visit and the example's id, and gives an example like any other.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from paligemma.errors import DataError, ImageError
from paligemma.example import Asking, Example, Picture
from paligemma.outputs.boxes import encode_boxes, format_detections
from paligemma.outputs.rle import encode_rle
from paligemma.outputs.vqvae import MaskCodec
from paligemma.processing.augment import Augmentation, Move
from paligemma.processing.preparation import pad_to_square
from paligemma.processing.processor import Processor
from paligemma.processing.prompts import detect_prompt, object_prompt, segment_prompt
from paligemma.tasks.lint import token_row
from paligemma.tasks.own.labels import LabelledObject, OwnExample, object_references
from paligemma.tasks.own.masks import answered
from paligemma.tasks.task import Redraw

# Streams of random numbers beside those of `train.examples`.
_MOVE, _COLOUR, _RESIZE, _ASK, _REDRAW = 10, 11, 12, 13, 14
# Words that a mirrored picture would make wrong, in languages in which labels are often written.
_SIDES = re.compile(
    r"\b(left|right|clockwise|anticlockwise|counterclockwise|linke?|rechte?|gauche|droite?|"
    r"izquierd|derech|sinistr|destr|esquerd|direit)",
    re.IGNORECASE,
)
_EVERYTHING = ("all classes",)
_MAX_ABSENT = 3


@dataclass(frozen=True, eq=False)
class ReadPicture:
    """A picture in memory: uint8[H, W, 3]."""

    pixels: np.ndarray

    def read(self, max_pixels: int) -> np.ndarray:
        """The pixels."""
        return self.pixels


@dataclass(frozen=True, kw_only=True)
class Variety:
    """Changes examples; an instance is what `ExampleSource.vary` is called as.

    Attributes:
        seed: with visit and id it fixes everything drawn.
        policies: of each source.
        asking_of: how an example is asked.
        processor: tokenizer and size of the pictures.
        codec: encodes moved masks; None leaves rows with masks where they are.
        negatives: share of visits in which classes are asked for that are not in the picture.
        classes: every class of each source.
        redraws: what the benchmark of each source draws anew; empty where none does.
        source_of: number of the source of an example; None where there is one.
    """

    seed: int
    policies: tuple[Augmentation, ...]
    asking_of: Callable[[Example], Asking]
    processor: Processor
    codec: MaskCodec | None = None
    negatives: float = 0.0
    classes: tuple[tuple[str, ...], ...] = ()
    redraws: tuple[Redraw | None, ...] = ()
    source_of: Callable[[Example], int] | None = None

    def __call__(self, example: Example, visit: int) -> Example:
        """The example as this visit shows it.

        Raises:
            DataError: its picture cannot be read.
        """
        source = 0 if self.source_of is None else self.source_of(example)
        redraw = self.redraws[source] if self.redraws else None
        if redraw is not None:
            redrawn = redraw(example, self._rng(_REDRAW, example, visit))
            example = redrawn if self._fits(redrawn) else example
        if self.policies[source].strengths:
            example = self._shown(example, self.policies[source], visit)
        if self.negatives:
            example = self._asked(example, self.classes[source], visit)
        return example

    def _rng(self, stream: int, example: Example, visit: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, stream, visit, zlib.crc32(example.id.encode())))

    def _shown(self, example: Example, augment: Augmentation, visit: int) -> Example:
        try:
            frames = [one.read(self.processor.reader.max_pixels) for one in example.pictures]
        except ImageError as error:
            raise DataError(f"{example.id}: {error}") from error
        asking = self.asking_of(example)
        if isinstance(example, OwnExample) and self._can_move(example, asking):
            boxes = [one["box_yxyx"] for one in example.references["objects"]]
            text = " ".join((example.prefix, *example.targets))
            move = augment.move(
                frames[0].shape[:2],
                boxes,
                self._rng(_MOVE, example, visit),
                may_flip=_SIDES.search(text) is None,
            )
            if not move.is_still:
                moved = moved_example(example, move, frames[0], self.codec)
                if moved is not None:
                    example, frames = (
                        moved,
                        [moved.pictures[0].read(self.processor.reader.max_pixels)],
                    )
        pictures: list[Picture] = []
        for frame in frames:  # the frames of a row change alike
            frame = augment.recoloured(frame, self._rng(_COLOUR, example, visit))
            if not asking.keep_fractions:
                square = pad_to_square(frame) if asking.pad_to_square else frame
                rng = self._rng(_RESIZE, example, visit)
                resized = augment.resized(square, self.processor.image_size_px, rng)
                frame = frame if resized is square else resized
            pictures.append(ReadPicture(frame))
        return replace(example, pictures=tuple(pictures))

    def keeps_codewords(self, example: Example) -> bool:
        """Whether an example stays where it is since its masks are known as codewords alone."""
        if object_prompt(example.prefix) is None or "<seg" not in "".join(example.targets):
            return False
        asking = self.asking_of(example)
        return not (isinstance(example, OwnExample) and self._can_move(example, asking))

    def _can_move(self, example: OwnExample, asking: Asking) -> bool:
        """Whether boxes and masks are known, so that they can move with the picture."""
        asked = object_prompt(example.prefix)
        if asked is None or len(example.pictures) != 1:
            return False
        if example.needs_masks:  # not answered yet
            return True
        if len(example.targets) != 1 or asking.pad_to_square or example.mark_box_yxyx:
            return False
        if asked.task == "detect":
            return "<seg" not in example.targets[0]
        return self.codec is not None and all(one.has_mask and one.label for one in example.objects)

    def _asked(self, example: Example, classes: tuple[str, ...], visit: int) -> Example:
        """Ask for absent classes, beside those of the picture or alone, in a share of visits."""
        asked = object_prompt(example.prefix)
        if asked is None or asked.labels == _EVERYTHING or not isinstance(example, OwnExample):
            return example
        present = {one.label for one in example.objects}
        absent = [name for name in classes if name not in present]
        rng = self._rng(_ASK, example, visit)
        if rng.random() >= self.negatives or not absent or "" in present:
            return example
        number = int(rng.integers(1, min(_MAX_ABSENT, len(absent)) + 1))
        others = [absent[k] for k in rng.permutation(len(absent))[:number]]
        prompt = segment_prompt if asked.task == "segment" else detect_prompt
        if rng.random() < 0.5 or not present:
            return replace(example, prefix=prompt(others), targets=("",), objects=())
        names = [*sorted(present), *others]
        found = replace(example, prefix=prompt([names[k] for k in rng.permutation(len(names))]))
        return found if self._fits(found) else example

    def _fits(self, example: Example) -> bool:
        try:
            for target in example.targets:
                token_row(example, target, self.asking_of(example), self.processor)
        except DataError:
            return False
        return True


def moved_example(
    example: OwnExample, move: Move, image: np.ndarray, codec: MaskCodec | None
) -> OwnExample | None:
    """An example with its picture, boxes and masks moved; None where a box would vanish."""
    kind = example.references["slice"]
    boxes = [move.box(one["box_yxyx"]) for one in example.references["objects"]]
    bins = encode_boxes(np.array(boxes, np.float32).reshape(-1, 4))
    if (bins[:, 2:] <= bins[:, :2]).any():
        return None
    mean = image.reshape(-1, 3).mean(0).astype(int).tolist()
    objects = tuple(
        _moved_object(one, box, move, with_mask=kind == "segment")
        for one, box in zip(example.objects, boxes, strict=True)
    )
    labels = [one.label for one in objects]
    if example.needs_masks:
        answer: tuple[str, ...] = ()
    else:
        answer = (format_detections(np.array(boxes), [label or None for label in labels]),)
    moved = replace(
        example,
        pictures=(ReadPicture(move.array(image, mean)),),
        objects=objects,
        references=object_references(labels, boxes, kind),
        targets=answer,
    )
    if kind != "segment" or codec is None or example.needs_masks:
        return moved
    return answered(replace(moved, targets=(), needs_masks=True), codec)


def _moved_object(
    one: LabelledObject, box: tuple[float, float, float, float], move: Move, *, with_mask: bool
) -> LabelledObject:
    rings = tuple(move.points(ring) for ring in one.rings)
    rle = None
    if with_mask and one.rle is not None:
        rle = encode_rle(move.array(one.mask(move.size_hw), fill=False))
    return replace(one, box_yxyx=box, rings=rings, rle=rle)
