"""The methods that ask, one set for a model in this process and for one on a server.

A list of pictures is a batch of examples and gives a list of answers. Nothing here needs torch: a
client has it too.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, Unpack, cast, overload

from paligemma.errors import ImageError, PromptError
from paligemma.outputs.boxes import Box, encode_boxes, format_loc, require_box
from paligemma.outputs.detections import Detections
from paligemma.outputs.types import TextAnswer
from paligemma.pipeline.tiling import MAX_TILES, TILE_OVERLAP, cut, joined, tile_places
from paligemma.processing import prompts
from paligemma.processing.folders import each_picture
from paligemma.processing.frames import several_of

if TYPE_CHECKING:
    import numpy as np

    from paligemma.pipeline.options import AnswerKeywords, AskKeywords, FindKeywords

logger = logging.getLogger(__name__)

PictureT = TypeVar("PictureT")
Answer: TypeAlias = "TextAnswer | Detections"
# A folder, a pattern of file names, or pictures that are taken one after the other.
Source: TypeAlias = "str | Path | Iterable[PictureT]"


class TaskMethods(ABC, Generic[PictureT]):
    """Asks by a prompt, or by the name of a task."""

    @abstractmethod
    def _answer(
        self, image: PictureT | None, prompt: str, options: Mapping[str, Any], *, in_words: bool
    ) -> Answer:
        """The answer about one picture, or about none.

        Args:
            options: keywords of the method that asks.
            in_words: the answer is text whatever the model writes.
        """

    @abstractmethod
    def _answer_each(
        self,
        images: Iterable[PictureT],
        prompt: str,
        options: Mapping[str, Any],
        *,
        in_words: bool = False,
    ) -> Iterator[tuple[PictureT, Answer | ImageError]]:
        """Pictures with their answers, in order; the error in the place of a bad picture's."""

    def _answered(
        self, image: Any, prompt: str, options: Mapping[str, Any], *, in_words: bool = False
    ) -> Any:
        """The answer about a picture, or the list of answers about several."""
        several = several_of(image)
        if several is None:
            return self._answer(image, prompt, options, in_words=in_words)
        answers: list[Answer] = []
        for _, answer in self._answer_each(several, prompt, options, in_words=in_words):
            if isinstance(answer, ImageError):
                place = f"picture {len(answers) + 1} of {len(several)}"
                raise type(answer)(f"{place}: {answer}") from answer
            answers.append(answer)
        return answers

    @abstractmethod
    def _pixels(self, image: Any) -> np.ndarray:
        """uint8[H, W, 3] of a picture."""

    def ask_tiled(
        self,
        image: PictureT,
        prompt: str,
        tile: str | Sequence[int],
        overlap: float = TILE_OVERLAP,
        **options: Unpack[AskKeywords],
    ) -> Detections:
        """What `ask` finds in the picture and in its tiles, joined by confidence.

        Args:
            prompt: `detect ...` or `segment ...`.
            tile: columns and rows, as "2x2".
            overlap: share of a tile's side that it has in common with the next.
            options: as in `ask`; `max_overlap` (by default 0.5) is here the largest common share
                of the smaller of two boxes of one label from different answers.
        """
        tile_places((MAX_TILES, MAX_TILES), tile, overlap)  # refused before a picture is read
        picture = self._pixels(image)
        places = tile_places((picture.shape[1], picture.shape[0]), tile, overlap)
        pictures = [image, *cut(picture, places)]
        found = [
            one for one in self._answered(pictures, prompt, options) if isinstance(one, Detections)
        ]
        if len(found) < len(pictures):
            raise PromptError(
                f"tiles are for prompts that ask for objects, got {prompt!r:.100}; begin it with "
                "detect or segment"
            )
        return joined(found[0], found[1:], places, options.get("max_overlap"))

    def _objects(
        self,
        image: Any,
        prompt: str,
        tile: str | Sequence[int] | None,
        overlap: float,
        options: Mapping[str, Any],
    ) -> Any:
        if tile is None:
            return self._answered(image, prompt, options)
        several = several_of(image)
        if several is None:
            return self.ask_tiled(image, prompt, tile, overlap, **options)
        return [self.ask_tiled(one, prompt, tile, overlap, **options) for one in several]

    # By a prompt

    @overload
    def ask(
        self, image: PictureT | None, prompt: str, **options: Unpack[AskKeywords]
    ) -> TextAnswer | Detections: ...
    @overload
    def ask(
        self, image: Sequence[PictureT], prompt: str, **options: Unpack[AskKeywords]
    ) -> list[TextAnswer | Detections]: ...
    def ask(self, image: Any, prompt: str, **options: Unpack[AskKeywords]) -> Any:
        """Whatever the prompt asks for.

        Args:
            image: a picture, or None for text alone; a list of pictures gives a list of answers.
            prompt: `detect ...` and `segment ...` give Detections, and so does every answer in
                which the model wrote boxes; other answers are text. Several such prompts in one,
                `detect cat ; segment dog`, are each asked, and their objects are joined.
            options: fields of `AnswerOptions` and `ObjectOptions`.

        Raises:
            PromptError, ImageError, ConfigError: bad input; see `Processor` and `AnswerOptions`.
            CheckpointError: the mask codec that a segment prompt needs cannot be read.
        """
        return self._answered(image, prompt, options)

    @overload
    def generate(
        self, image: PictureT | None, prompt: str, **options: Unpack[AnswerKeywords]
    ) -> TextAnswer: ...
    @overload
    def generate(
        self, image: Sequence[PictureT], prompt: str, **options: Unpack[AnswerKeywords]
    ) -> list[TextAnswer]: ...
    def generate(self, image: Any, prompt: str, **options: Unpack[AnswerKeywords]) -> Any:
        """The answer as text, location and mask tokens spelt out; pictures as in `ask`."""
        return self._answered(image, prompt, options, in_words=True)

    # By the name of a task

    @overload
    def detect(
        self,
        image: PictureT,
        labels: str | Sequence[str],
        **options: Unpack[FindKeywords],
    ) -> Detections: ...
    @overload
    def detect(
        self,
        image: Sequence[PictureT],
        labels: str | Sequence[str],
        **options: Unpack[FindKeywords],
    ) -> list[Detections]: ...
    def detect(
        self,
        image: Any,
        labels: str | Sequence[str],
        *,
        tile: str | Sequence[int] | None = None,
        tile_overlap: float = TILE_OVERLAP,
        **options: Unpack[AskKeywords],
    ) -> Any:
        """Boxes of the named things; what is not found is absent.

        Args:
            image: a picture; a list of pictures gives a list of `Detections`.
            labels: "cat ; dog" or ["cat", "dog"].
            tile: columns and rows, as "2x2", for small objects; see `ask_tiled`.
            tile_overlap: share of a tile's side that it has in common with the next.
            options: as in `ask`, such as threshold, max_overlap, constrain and max_new_tokens.
        """
        _require_picture(image, "detect")
        return self._objects(image, prompts.detect_prompt(labels), tile, tile_overlap, options)

    @overload
    def segment(
        self,
        image: PictureT,
        labels: str | Sequence[str],
        **options: Unpack[FindKeywords],
    ) -> Detections: ...
    @overload
    def segment(
        self,
        image: Sequence[PictureT],
        labels: str | Sequence[str],
        **options: Unpack[FindKeywords],
    ) -> list[Detections]: ...
    def segment(
        self,
        image: Any,
        labels: str | Sequence[str],
        *,
        tile: str | Sequence[int] | None = None,
        tile_overlap: float = TILE_OVERLAP,
        **options: Unpack[AskKeywords],
    ) -> Any:
        """Boxes and masks of the named things; arguments as in `detect`."""
        _require_picture(image, "segment")
        return self._objects(image, prompts.segment_prompt(labels), tile, tile_overlap, options)

    @overload
    def caption(
        self,
        image: PictureT,
        *,
        lang: str = "en",
        style: str = "caption",
        box_yxyx: Box | None = None,
        **options: Unpack[AnswerKeywords],
    ) -> TextAnswer: ...
    @overload
    def caption(
        self,
        image: Sequence[PictureT],
        *,
        lang: str = "en",
        style: str = "caption",
        box_yxyx: Box | None = None,
        **options: Unpack[AnswerKeywords],
    ) -> list[TextAnswer]: ...
    def caption(
        self,
        image: Any,
        *,
        lang: str = "en",
        style: str = "caption",
        box_yxyx: Box | None = None,
        **options: Unpack[AnswerKeywords],
    ) -> Any:
        """A caption of the picture, or of one box of it.

        Args:
            image: a picture; a list of pictures gives a list of captions.
            lang: language code.
            style: "caption", "cap" (short) or "describe" (longer).
            box_yxyx: normalised to [0, 1]; language and style do not apply to it.

        Raises:
            DataError: the box is empty, swapped or not normalised; other errors as in `ask`.
        """
        prompt = prompts.caption_prompt(lang, style)
        if box_yxyx is not None:
            require_box(box_yxyx)
            prompt = prompts.region_caption_prompt(format_loc(encode_boxes(box_yxyx).tolist()))
        return self.generate(image, prompt, **options)

    @overload
    def answer(
        self, image: PictureT, question: str, *, lang: str = "en", **options: Unpack[AnswerKeywords]
    ) -> TextAnswer: ...
    @overload
    def answer(
        self,
        image: Sequence[PictureT],
        question: str,
        *,
        lang: str = "en",
        **options: Unpack[AnswerKeywords],
    ) -> list[TextAnswer]: ...
    def answer(
        self, image: Any, question: str, *, lang: str = "en", **options: Unpack[AnswerKeywords]
    ) -> Any:
        """A short answer to a question about the picture, or about each of a list of pictures."""
        return self.generate(image, prompts.answer_prompt(question, lang), **options)

    @overload
    def read(self, image: PictureT, **options: Unpack[AnswerKeywords]) -> TextAnswer: ...
    @overload
    def read(
        self, image: Sequence[PictureT], **options: Unpack[AnswerKeywords]
    ) -> list[TextAnswer]: ...
    def read(self, image: Any, **options: Unpack[AnswerKeywords]) -> Any:
        """All text in the picture, or in each of a list of pictures."""
        return self.generate(image, prompts.read_prompt(), **options)

    # Many pictures, one after the other

    def ask_many(
        self, images: Source[PictureT], prompt: str, **options: Unpack[AskKeywords]
    ) -> Iterator[tuple[PictureT, TextAnswer | Detections]]:
        """Pictures with their answers as they come, in memory that does not grow with their number.

        A picture that cannot be read is left out, with a warning. Detections find their picture
        again in its file; those of other pictures do not hold it.

        Args:
            images: a folder, a pattern such as "photos/*.jpg", or pictures, taken a batch at a
                time.
            prompt: as in `ask`.
            options: as in `ask`.

        Raises:
            ImageError: the folder or pattern holds no picture, or not one picture can be read;
                other errors as in `ask`.
        """
        return self._many(images, prompt, options)

    def detect_many(
        self,
        images: Source[PictureT],
        labels: str | Sequence[str],
        **options: Unpack[AskKeywords],
    ) -> Iterator[tuple[PictureT, Detections]]:
        """`detect` for a folder or a stream of pictures; see `ask_many`."""
        found = self._many(images, prompts.detect_prompt(labels), options)
        return cast("Iterator[tuple[PictureT, Detections]]", found)

    def segment_many(
        self,
        images: Source[PictureT],
        labels: str | Sequence[str],
        **options: Unpack[AskKeywords],
    ) -> Iterator[tuple[PictureT, Detections]]:
        """`segment` for a folder or a stream of pictures; see `ask_many`."""
        found = self._many(images, prompts.segment_prompt(labels), options)
        return cast("Iterator[tuple[PictureT, Detections]]", found)

    def _many(
        self, images: Source[PictureT], prompt: str, options: Mapping[str, Any]
    ) -> Iterator[tuple[PictureT, Answer]]:
        pictures = cast("Iterable[PictureT]", each_picture(images))
        fault, num_good = None, 0
        for image, answer in self._answer_each(pictures, prompt, options):
            if isinstance(answer, ImageError):
                fault = fault or answer
                logger.warning("left out: %s", answer)
                continue
            num_good += 1
            if isinstance(answer, Detections) and not isinstance(image, str | Path):
                answer = replace(answer, open_picture=None)
            yield image, answer
        if fault is not None and not num_good:
            raise fault


def _require_picture(image: object, what: str) -> None:
    """Raise ImageError where there is none."""
    if image is None:
        raise ImageError(f"{what} needs a picture to find things in, got None; pass one")


def require_prompts(prompts: object) -> None:
    """Raise PromptError unless these are the prompts of a batch."""
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise PromptError(
            f"a batch needs a list of prompts, got {type(prompts).__name__}; "
            "ask a single prompt with generate"
        )


def one_a_prompt(images: Any, prompts: Sequence[str]) -> Sequence[Any]:
    """The pictures of a batch, checked to be as many as its prompts.

    Raises:
        PromptError: their numbers differ.
    """
    if isinstance(images, str | bytes | os.PathLike) or not hasattr(images, "__len__"):
        images = [images]
    if len(images) != len(prompts):
        raise PromptError(
            f"a batch needs a picture for each prompt, got {len(images)} and {len(prompts)}; "
            "encode a picture first to ask it many prompts"
        )
    return images
