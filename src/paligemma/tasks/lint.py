"""Checks rows before anything is learnt from them: what `data check` prints and training skips."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paligemma.batch import TokenRow
from paligemma.errors import DataError, ImageError
from paligemma.example import ALL_CLASSES, MASK, Asking, Example
from paligemma.processing.processor import Processor, layout
from paligemma.processing.prompts import object_prompt
from paligemma.tasks.own.labels import Finding, OwnExample, RowError, UprightPicture
from paligemma.tasks.own.masks import answered
from paligemma.tasks.task import Task

if TYPE_CHECKING:
    from paligemma.outputs.vqvae import MaskCodec

ACROSS_SPLITS = "duplicate across splits"
# A label set may ask for everything without naming it.
_UNNAMED = ("all classes",)
_ASPECT_SLACK = 0.02


def token_row(example: Example, target: str, asking: Asking, processor: Processor) -> TokenRow:
    """The tokens of an example with one of its answers and the end token.

    Raises:
        RowError: they are more than `asking.text_len`.
    """
    encode = processor.tokenizer.encode
    row = layout(encode(example.prefix), encode(target), processor.vocab, add_eos=True)
    if len(row) > asking.text_len + 1:
        raise RowError(
            "too long",
            f"{_place(example)}: prompt and answer may have {asking.text_len} tokens, they have "
            f"{len(row) - 1}; a cut would lose the end token, shorten them or split the row",
        )
    return row


@dataclass(kw_only=True)
class Summary:
    """What the rows of a split hold.

    Attributes:
        num_rows: rows of the split, bad ones included.
        num_good: rows that can be learnt from.
        rules: findings of each rule.
        labels: objects of each label.
        objects: objects of each picture with labels.
        tokens: tokens of each good row, its longest answer.
    """

    num_rows: int = 0
    num_good: int = 0
    rules: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    objects: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The same as JSON holds it, with counts of counts."""
        return {
            "rows": self.num_rows,
            "good": self.num_good,
            "rules": dict(self.rules),
            "labels": dict(self.labels),
            "boxes_a_picture": {str(k): n for k, n in sorted(Counter(self.objects).items())},
            "tokens_a_row": {str(k): n for k, n in sorted(Counter(self.tokens).items())},
        }


class Lint:
    """Checks the rows of several splits of one set.

    Args:
        task: benchmark of the rows.
        processor: tokenizer and bound of pictures of the model.
        codec: gives the model's mask codec; called once masks are met.
    """

    def __init__(
        self, task: Task, processor: Processor, codec: Callable[[], MaskCodec | None]
    ) -> None:
        self._task, self._processor, self._codec = task, processor, codec
        # What a split showed -> split and place, by which another split is compared.
        self._seen: dict[bytes, tuple[str, str]] = {}

    def rows(
        self, data: Path, split: str, summary: Summary | None = None
    ) -> Iterator[tuple[Example | None, list[Finding]]]:
        """Check each row of a split; the example is None where it cannot be learnt from.

        Args:
            summary: filled with what the rows hold.

        Raises:
            DataError: the files cannot be read.
        """
        summary = Summary() if summary is None else summary
        for row in self._task.rows(data, split):
            example, found = self._checked(row, split, summary)
            summary.num_rows += 1
            summary.num_good += example is not None
            summary.rules.update(one.rule for one in found)
            yield example, found

    def _checked(
        self, row: Example | DataError, split: str, summary: Summary
    ) -> tuple[Example | None, list[Finding]]:
        if isinstance(row, DataError):
            return None, [_fault(row)]
        found = list(row.notes) if isinstance(row, OwnExample) else []
        example = row
        try:
            if isinstance(example, OwnExample) and example.needs_masks:
                example = answered(example, self._codec())
            elif self._task.asks(example).answer == MASK and not example.targets:
                example = self._with_mask(example)
            found += self._of_texts(example, summary)
        except DataError as error:
            found.append(_fault(error))
        try:
            pixels = [one.read(self._processor.reader.max_pixels) for one in example.pictures]
        except ImageError as error:
            rule = f"{_place(example)}: {error}" if isinstance(row, OwnExample) else str(error)
            found.append(Finding(rule="picture", said=rule, is_error=True))
        else:
            found += self._of_pictures(example)
            if isinstance(example, OwnExample) and not any(one.is_error for one in found):
                found += self._of_other_splits(example, pixels, split)
        if any(one.is_error and one.rule != ACROSS_SPLITS for one in found):
            return None, found
        return example, found

    def _with_mask(self, example: Example) -> Example:
        """A referring example with its answer: its box and sixteen codewords."""
        from paligemma.tasks.grounding.targets import referring_target

        codec = self._codec()
        if codec is None:
            raise RowError(
                "mask",
                f"{_place(example)}: its answer holds a mask, for which the model has no mask "
                "codec; put one beside its weights",
            )
        return replace(example, targets=(referring_target(example, codec),))

    def _of_texts(self, example: Example, summary: Summary) -> list[Finding]:
        place = _place(example)
        if not example.targets:
            raise RowError("no answer", f"{place}: it has no answer to learn; add one")
        asking = self._task.asks(example)
        if asking.answer == ALL_CLASSES:  # filled to the bound; objects that do not fit stay out
            summary.tokens.append(asking.text_len + 1)
            return []
        rows = [token_row(example, one, asking, self._processor) for one in example.targets]
        summary.tokens.append(max(map(len, rows)))
        if not isinstance(example, OwnExample):
            return []
        asked = object_prompt(example.prefix)
        if asked is not None:
            summary.objects.append(len(example.objects))
            summary.labels.update(one.label for one in example.objects)
            unasked = {one.label for one in example.objects} - {*asked.labels, ""}
            if unasked and asked.labels != _UNNAMED:
                raise RowError(
                    "label not in prefix",
                    f"{place}: every label of the answer must stand in the prompt, "
                    f"{sorted(unasked)[0]!r} is not in {example.prefix[:80]!r}; add it there, or "
                    "spell both alike",
                )
        texts = {"prefix": (example.prefix,), "suffix": example.targets}
        return [
            Finding(
                rule="spaces",
                said=f"{place}: {name} holds two spaces in a row or spaces at its ends, got "
                f"{text[:80]!r}; they change its tokens, write single spaces",
            )
            for name, values in texts.items()
            for text in values
            if "  " in text or text != text.strip()
        ][:1]

    def _of_pictures(self, example: Example) -> list[Finding]:
        place = _place(example)
        sized = [one for one in example.pictures if isinstance(one, UprightPicture)]
        return [one for picture in sized if (one := _of_size(picture, place))]

    def _of_other_splits(
        self, example: OwnExample, pixels: Sequence[np.ndarray], split: str
    ) -> list[Finding]:
        digest = hashlib.blake2b(digest_size=16)
        for image in pixels:
            digest.update(repr(image.shape).encode() + image.tobytes())
        other, place = self._seen.setdefault(digest.digest(), (split, example.where))
        if other == split:
            return []
        return [
            Finding(
                rule=ACROSS_SPLITS,
                said=f"{example.where}: a picture must be in one split, this one is in {other} too "
                f"({place}); remove it from one of them",
                is_error=True,
            )
        ]


def _of_size(picture: UprightPicture, where: str) -> Finding | None:
    """What is amiss between the size that labels state and the picture's own."""
    upright, stored = picture.sizes_hw()
    stated = picture.size_hw
    if stated is None or stated == upright:
        return None
    shown = f"{where}: labels are for {stated[1]}x{stated[0]} pixels"
    if stated == stored:
        return Finding(
            rule="exif turn",
            said=f"{shown}, which the picture has as stored; its EXIF turns it to {upright[1]}x"
            f"{upright[0]}, it is read without that turn; save the picture without EXIF",
        )
    aspect = (stated[1] * upright[0]) / (stated[0] * upright[1])
    is_scaled = abs(aspect - 1) <= _ASPECT_SLACK
    return Finding(
        rule="size",
        said=f"{shown}, the picture has {upright[1]}x{upright[0]}; "
        + ("boxes are scaled" if is_scaled else "export labels and pictures together"),
        is_error=not is_scaled,
    )


def _fault(error: DataError) -> Finding:
    rule = error.rule if isinstance(error, RowError) else "row"
    return Finding(rule=rule, said=str(error), is_error=True)


def _place(example: Example) -> str:
    return example.where if isinstance(example, OwnExample) else example.id
