"""The methods of the tasks, one set for a model in this process and for one on a server.

Nothing here needs torch: a client has it too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, TypeVar, Unpack, cast

from paligemma.errors import ImageError
from paligemma.outputs.boxes import Box, encode_boxes, format_loc, require_box
from paligemma.outputs.detections import Detections
from paligemma.outputs.types import TextAnswer
from paligemma.processing import prompts

if TYPE_CHECKING:
    from paligemma.pipeline.options import AnswerKeywords, AskKeywords

PictureT = TypeVar("PictureT")


class TaskMethods(ABC, Generic[PictureT]):
    """Tasks by name, each a prompt to `ask` or `generate`."""

    @abstractmethod
    def ask(
        self, image: PictureT | None, prompt: str, **options: Unpack[AskKeywords]
    ) -> TextAnswer | Detections:
        """Whatever the prompt asks for."""

    @abstractmethod
    def generate(
        self, image: PictureT | None, prompt: str, **options: Unpack[AnswerKeywords]
    ) -> TextAnswer:
        """The answer as text, location and mask tokens spelt out."""

    def detect(
        self, image: PictureT, labels: str | Sequence[str], **options: Unpack[AskKeywords]
    ) -> Detections:
        """Boxes of the named things; what is not found is absent. Options as in `ask`."""
        _require_picture(image, "detect")
        return cast(Detections, self.ask(image, prompts.detect_prompt(labels), **options))

    def segment(
        self, image: PictureT, labels: str | Sequence[str], **options: Unpack[AskKeywords]
    ) -> Detections:
        """Boxes and masks of the named things. Options as in `ask`."""
        _require_picture(image, "segment")
        return cast(Detections, self.ask(image, prompts.segment_prompt(labels), **options))

    def caption(
        self,
        image: PictureT,
        *,
        lang: str = "en",
        style: str = "caption",
        box_yxyx: Box | None = None,
        **options: Unpack[AnswerKeywords],
    ) -> TextAnswer:
        """A caption of the picture, or of one box of it.

        Args:
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

    def answer(
        self, image: PictureT, question: str, *, lang: str = "en", **options: Unpack[AnswerKeywords]
    ) -> TextAnswer:
        """A short answer to a question about the picture."""
        return self.generate(image, prompts.answer_prompt(question, lang), **options)

    def read(self, image: PictureT, **options: Unpack[AnswerKeywords]) -> TextAnswer:
        """All text in the picture."""
        return self.generate(image, prompts.read_prompt(), **options)


def _require_picture(image: object, what: str) -> None:
    """Raise ImageError where there is none."""
    if image is None:
        raise ImageError(f"{what} needs a picture to find things in, got None; pass one")
