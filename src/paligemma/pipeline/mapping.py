"""Rows of a data set, each a picture and a prompt, answered by the batch.

A picture that several rows of a batch are about is read and encoded once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from paligemma.errors import ImageError, PaliGemmaError
from paligemma.pipeline.engine import MAX_ROWS, Written
from paligemma.pipeline.pictures import EncodedImage, ReadPicture, about, read_picture
from paligemma.pipeline.question import Question
from paligemma.pipeline.task_methods import Answer

if TYPE_CHECKING:
    from paligemma.pipeline.paligemma import PaliGemma

# Opens a picture: a source of `PaliGemma.encode_image`, or raises ImageError.
Open: TypeAlias = Callable[[], Any]
# Grammars of label lists are kept with their questions.
_KEPT_QUESTIONS = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class MappedAnswer:
    """What was answered to one row.

    Attributes:
        answer: text or objects.
        image_wh: width and height of the picture, pixels.
        logprob: sum over the tokens, end token included.
        num_tokens: number of these tokens.
        is_cut: whether the bound cut the answer.
    """

    answer: Answer
    image_wh: tuple[int, int]
    logprob: float
    num_tokens: int
    is_cut: bool


class RowAnswerer:
    """Answers rows by one set of options.

    Args:
        asked: the model.
        options: of `PaliGemma.ask`, or of `generate` where the answer is wanted in words.
        in_words: answers are texts whatever the model writes.
        max_rows: rows that are decoded together; by default as many as the engine takes.

    Raises:
        ConfigError: an option is unknown or out of its range.
    """

    def __init__(
        self,
        asked: PaliGemma,
        options: Mapping[str, Any] | None = None,
        *,
        in_words: bool = False,
        max_rows: int | None = None,
    ) -> None:
        self.asked = asked
        self._max_rows = None if max_rows is None or max_rows <= MAX_ROWS else max_rows
        stated = dict(options or {})

        @lru_cache(_KEPT_QUESTIONS)
        def question(prompt: str) -> Question:
            return asked.question(prompt, in_words=in_words, **stated)

        self.question = question
        question("detect thing" if not in_words else "caption en")  # Options are refused at once.

    def read(
        self, pictures: Mapping[Hashable, Open]
    ) -> dict[Hashable, ReadPicture | PaliGemmaError]:
        """Each picture as the tower reads it, or why not; may run in a thread."""
        found: dict[Hashable, ReadPicture | PaliGemmaError] = {}
        for key, opened in pictures.items():
            try:
                found[key] = read_picture(opened(), self.asked.processor)
            except ImageError as error:
                found[key] = error
        return found

    def answer(
        self,
        rows: Sequence[tuple[Hashable, str]],
        read: Mapping[Hashable, ReadPicture | PaliGemmaError],
    ) -> list[MappedAnswer | PaliGemmaError]:
        """Answers to rows of (key of the picture, prompt), in order; an error where one is bad."""
        asked = self.asked
        questions: list[Question | PaliGemmaError] = []
        for key, prompt in rows:
            picture = read[key]
            questions.append(
                picture if isinstance(picture, PaliGemmaError) else self._asked(prompt)
            )
        wanted = {
            key: read[key]
            for (key, _), question in zip(rows, questions, strict=True)
            if isinstance(question, Question)
        }
        encoded = self._encoded({k: v for k, v in wanted.items() if isinstance(v, ReadPicture)})
        requests = [
            about(request, encoded[key])
            for (key, _), question in zip(rows, questions, strict=True)
            if isinstance(question, Question)
            for request in question.requests
        ]
        written = iter(asked.engine.answer(requests, max_rows=self._max_rows))
        found: list[MappedAnswer | PaliGemmaError] = []
        for (key, _), question in zip(rows, questions, strict=True):
            if isinstance(question, PaliGemmaError):
                found.append(question)
            else:
                some = [next(written) for _ in question.requests]
                found.append(self._answer(question, some, encoded[key]))
        return found

    def _asked(self, prompt: str) -> Question | PaliGemmaError:
        try:
            return self.question(prompt)
        except PaliGemmaError as error:
            return error

    def _encoded(self, pictures: Mapping[Hashable, ReadPicture]) -> dict[Hashable, EncodedImage]:
        asked = self.asked
        tokens = asked.engine.encode([one.pixels for one in pictures.values()])
        return {
            key: one.encoded(soft, owner=asked, adapter=None)
            for (key, one), soft in zip(pictures.items(), tokens, strict=True)
        }

    def _answer(
        self, question: Question, written: Sequence[Written], encoded: EncodedImage
    ) -> MappedAnswer:
        return MappedAnswer(
            answer=self.asked.reader.answer(question, written, encoded),
            image_wh=encoded.image_wh,
            logprob=sum(one.logprob for one in written),
            num_tokens=sum(len(one.record.ids) for one in written),
            is_cut=any(one.is_cut for one in written),
        )
