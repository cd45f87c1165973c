"""What each task asks: its fields, and the question that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from paligemma.pipeline.options import AnswerOptions, ObjectOptions
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.pipeline.question import Question
from paligemma.processing import prompts
from paligemma.serve.answers import DetectionsBody, TextBody
from paligemma.serve.asking import MakeQuestions
from paligemma.serve.errors import ServeError
from paligemma.serve.schemas import (
    AnswerRequest,
    AskRequest,
    CaptionRequest,
    DetectRequest,
    PictureFields,
    ReadRequest,
    SegmentRequest,
)

_OPTIONS = (*AnswerOptions.__dataclass_fields__, *ObjectOptions.__dataclass_fields__)


@dataclass(frozen=True)
class Task:
    """A route: its fields, the bodies that it answers with, and the prompt that they make."""

    fields: type[PictureFields]
    summary: str
    answers: tuple[type[BaseModel], ...]
    in_words: bool = False

    def prompt(self, asked: Any) -> str:
        """What is sent to the model."""
        match asked:
            case SegmentRequest():
                return prompts.segment_prompt(asked.labels)
            case DetectRequest():
                return prompts.detect_prompt(asked.labels)
            case CaptionRequest():
                return prompts.caption_prompt(asked.lang, asked.style)
            case AnswerRequest():
                return prompts.answer_prompt(asked.question, asked.lang)
            case ReadRequest():
                return prompts.read_prompt()
        return asked.prompt

    def questions(
        self, asked: PictureFields, max_new_tokens: int, *, has_picture: bool
    ) -> MakeQuestions:
        """Makes the question, given a model."""
        stated = asked.model_dump(include=set(_OPTIONS), exclude_unset=True)
        bound = stated.get("max_new_tokens")
        if bound is not None and bound > max_new_tokens:
            raise ServeError(
                f"max_new_tokens may be {max_new_tokens} here, got {bound}; ask for fewer",
                param="max_new_tokens",
            )
        prompt = self.prompt(asked)
        if not has_picture and not isinstance(asked, AskRequest):
            raise ServeError(
                "this route needs a picture; send image, images or image_id", param="image"
            )

        in_words = self.in_words or (isinstance(asked, AskRequest) and asked.in_words)

        def make(model: PaliGemma, adapter: str | None) -> Sequence[Question]:
            options = {**stated, "adapter": adapter}
            return [model.question(prompt, has_picture=has_picture, in_words=in_words, **options)]

        return make


_OBJECTS, _WORDS = (DetectionsBody,), (TextBody,)
TASKS: Mapping[str, Task] = {
    "detect": Task(DetectRequest, "Find things: boxes with confidences.", _OBJECTS),
    "segment": Task(SegmentRequest, "Outline things: boxes and masks.", _OBJECTS),
    "caption": Task(CaptionRequest, "Describe a picture.", _WORDS, in_words=True),
    "answer": Task(AnswerRequest, "Answer a question about a picture.", _WORDS, in_words=True),
    "read": Task(ReadRequest, "Read the text in a picture.", _WORDS, in_words=True),
    "ask": Task(AskRequest, "Ask whatever the prompt says.", _OBJECTS + _WORDS),
}
