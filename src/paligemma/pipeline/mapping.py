"""Rows of a data set, each a picture and a prompt, answered by the batch.

A picture that several rows of a batch are about is read and encoded once.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias, Unpack

from paligemma.errors import ConfigError, ImageError, PaliGemmaError
from paligemma.outputs.missing_masks import MissingMasks
from paligemma.pipeline.engine import MAX_ROWS, Engine, Written
from paligemma.pipeline.options import AskKeywords
from paligemma.pipeline.pictures import Asked, EncodedImage, ReadPicture, about, read_picture
from paligemma.pipeline.question import Question, Reader
from paligemma.pipeline.task_methods import Answer
from paligemma.processing.processor import Processor

# Opens a picture: a source of `PaliGemma.encode_image`, or raises ImageError.
Open: TypeAlias = Callable[[], Any]
# Grammars of label lists are kept with their questions.
_KEPT_QUESTIONS = 64
# Batches among which rows are sorted; prepared pictures of twice as many are in memory.
_WINDOW = 4
_FIELD = re.compile(r"\{([^{}]+)\}")
# One row, whose parts would be taken for rows: the characters of a path, the names of fields.
_ONE_ROW = (str, bytes, Path, Mapping)


class Askable(Asked, Protocol):
    """A model that answers prompts about pictures, as `PaliGemma` does."""

    @property
    def engine(self) -> Engine: ...

    @property
    def reader(self) -> Reader: ...

    processor: Processor

    def question(
        self, prompt: str, *, in_words: bool = ..., **options: Unpack[AskKeywords]
    ) -> Question: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class MappedAnswer:
    """What was answered to one row.

    Attributes:
        answer: text or objects.
        image_wh: width and height of the picture, pixels.
        logprob: sum over the tokens, end token included.
        num_tokens: number of these tokens.
        is_cut: whether the bound cut the answer.
        missing: objects of a segment prompt that came without a mask.
    """

    answer: Answer
    image_wh: tuple[int, int]
    logprob: float
    num_tokens: int
    is_cut: bool
    missing: MissingMasks


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
        asked: Askable,
        options: Mapping[str, Any] | None = None,
        *,
        in_words: bool = False,
        max_rows: int | None = None,
    ) -> None:
        self.asked = asked
        self._max_rows = None if max_rows is None or max_rows <= MAX_ROWS else max_rows
        self._has_answered = False
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
        """Answers to rows of (key of the picture, prompt), in order; an error where one is bad.

        A batch that cannot be answered, as where one of its rows makes numbers overflow, is asked
        row by row.

        Raises:
            PaliGemmaError: none of the rows, about several pictures, can be answered, and none was
                before: that is the fault of no row.
        """
        questions: list[Question | PaliGemmaError] = []
        for key, prompt in rows:
            picture = read[key]
            questions.append(
                picture if isinstance(picture, PaliGemmaError) else self._asked(prompt)
            )
        asked = {k: one for k, one in enumerate(questions) if isinstance(one, Question)}
        wanted = {rows[k][0]: read[rows[k][0]] for k in asked}
        encoded = self._encoded({k: v for k, v in wanted.items() if isinstance(v, ReadPicture)})
        pairs = [(question, encoded[rows[k][0]]) for k, question in asked.items()]
        answers = dict(zip(asked, self._answers(pairs), strict=True))
        return [
            one if isinstance(one, PaliGemmaError) else answers[k]
            for k, one in enumerate(questions)
        ]

    def _answers(
        self, pairs: Sequence[tuple[Question, EncodedImage]]
    ) -> Sequence[MappedAnswer | PaliGemmaError]:
        """Answers to questions about pictures, together, or one by one where that fails."""
        try:
            found = list(self._together(pairs))
        except PaliGemmaError as error:
            if len(pairs) == 1:
                return [error]
            each = [one for pair in pairs for one in self._answers([pair])]
            has_several = len({id(encoded) for _, encoded in pairs}) > 1
            if has_several and not self._has_answered:
                raise
            return each
        self._has_answered |= bool(found)
        return found

    def _together(self, pairs: Sequence[tuple[Question, EncodedImage]]) -> Iterator[MappedAnswer]:
        requests = [
            about(request, encoded) for question, encoded in pairs for request in question.requests
        ]
        written = iter(self.asked.engine.answer(requests, max_rows=self._max_rows))
        for question, encoded in pairs:
            some = [next(written) for _ in question.requests]
            yield self._answer(question, some, encoded)

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
        missing = MissingMasks()
        return MappedAnswer(
            answer=self.asked.reader.answer(question, written, encoded, missing=missing),
            image_wh=encoded.image_wh,
            logprob=sum(one.logprob for one in written),
            num_tokens=sum(len(one.record.ids) for one in written),
            is_cut=any(one.is_cut for one in written),
            missing=missing,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class MappedRow:
    """One row of a data set with its answer.

    Attributes:
        row: as the data set gave it.
        prompt: that was asked; "" where it could not be made.
        answer: text or objects; None where there is none.
        error: why not.
    """

    row: Any
    prompt: str
    answer: Answer | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Asked:
    """A row as it is asked: key and opener of its picture, prompt; or why it is not."""

    row: Any
    key: Hashable = None
    open: Open | None = None
    prompt: str = ""
    error: str | None = None


def map_rows(
    answerer: RowAnswerer,
    rows: Iterable[Any],
    prompt: str,
    *,
    image: str = "image",
    batch_size: int = MAX_ROWS,
    num_threads: int = 2,
) -> Iterator[MappedRow]:
    """Answers to the rows of a data set, in its order; see `PaliGemma.map`.

    Among some batches rows are sorted, those about one picture together and then by the length of
    their prompts; pictures of the batches to come are read by threads.

    Raises:
        ConfigError: one row in the place of several, a batch without a row, or a negative number of
            threads.
    """
    if batch_size < 1 or num_threads < 0:
        raise ConfigError(
            "rows are mapped in batches of at least 1 by 0 threads or more, got "
            f"{batch_size} and {num_threads}"
        )
    return _mapped(answerer, _each(rows), prompt, image, batch_size, num_threads)


def _each(rows: Iterable[Any]) -> Iterator[Any]:
    """The rows one by one; a data set may have no more than `__getitem__`."""
    try:
        if isinstance(rows, _ONE_ROW):
            raise TypeError
        return iter(rows)
    except TypeError:
        raise ConfigError(
            f"rows are a data set or a list of mappings or pictures, got {rows!r:.80}; put one row "
            "into a list, and name a folder to ask_many or to paligemma batch"
        ) from None


def _mapped(
    answerer: RowAnswerer,
    left: Iterator[Any],
    prompt: str,
    image: str,
    batch_size: int,
    num_threads: int,
) -> Iterator[MappedRow]:
    failed: list[Exception] = []

    def taken() -> list[Any]:
        """Rows of the next batches; those before an error of their iterator are answered first."""
        some: list[Any] = []
        try:
            for row in islice(left, 0 if failed else _WINDOW * batch_size):
                some.append(row)
        except Exception as error:
            failed.append(error)
        return some

    with ExitStack() as stack:
        missing = stack.enter_context(MissingMasks())
        pool = ThreadPoolExecutor(max(1, num_threads), thread_name_prefix="pictures")
        stack.callback(pool.shutdown, cancel_futures=True)  # also where nobody takes the rest
        ahead: deque[tuple[list[_Asked], list[tuple[list[int], Future[Any]]]]] = deque()
        while True:
            while len(ahead) < 2 and (some := taken()):
                asked = [_asked(row, prompt, image) for row in some]
                batches = [
                    (batch, pool.submit(answerer.read, _openers(asked, batch)))
                    for batch in _batches(asked, batch_size)
                ]
                ahead.append((asked, batches))
            if not ahead:
                if failed:
                    raise failed[0]
                return
            asked, batches = ahead.popleft()
            found: dict[int, MappedAnswer | PaliGemmaError] = {}
            while batches:
                batch, read = batches.pop(0)
                pairs = [(asked[k].key, asked[k].prompt) for k in batch]
                found.update(zip(batch, answerer.answer(pairs, read.result()), strict=True))
            for position, one in enumerate(asked):
                answer = found.get(position)
                if isinstance(answer, MappedAnswer):
                    missing.include(answer.missing)
                yield MappedRow(
                    row=one.row,
                    prompt=one.prompt,
                    answer=answer.answer if isinstance(answer, MappedAnswer) else None,
                    error=str(answer) if isinstance(answer, PaliGemmaError) else one.error,
                )


def _openers(asked: Sequence[_Asked], batch: Sequence[int]) -> dict[Hashable, Open]:
    return {asked[k].key: opened for k in batch if (opened := asked[k].open) is not None}


def _batches(asked: Sequence[_Asked], batch_size: int) -> list[list[int]]:
    """Positions of rows that are asked together."""
    groups: dict[Hashable, list[int]] = {}
    for position, one in enumerate(asked):
        if one.open is not None:
            groups.setdefault(one.key, []).append(position)
    longest = {key: max(len(asked[k].prompt) for k in group) for key, group in groups.items()}
    ordered = [k for key in sorted(groups, key=lambda key: -longest[key]) for k in groups[key]]
    return [ordered[at : at + batch_size] for at in range(0, len(ordered), batch_size)]


def _asked(row: Any, prompt: str, image: str) -> _Asked:
    fields = row if isinstance(row, Mapping) else {image: row}
    picture = fields.get(image)
    if isinstance(picture, Mapping):  # as data sets of the hub have encoded pictures
        picture = picture.get("bytes") or picture.get("path")
    if picture is None:
        return _Asked(row=row, error=f"a row needs a picture in {image!r}, this one has none")
    missing = [name for name in _FIELD.findall(prompt) if not _is_plain(fields.get(name))]
    if missing:
        return _Asked(row=row, error=f"the prompt needs the text {missing[0]!r} of its row")
    words = _FIELD.sub(lambda place: str(fields[place[1]]), prompt)
    key: Hashable = picture if isinstance(picture, str | bytes | Path) else id(picture)
    return _Asked(row=row, key=key, open=lambda: picture, prompt=words)


def _is_plain(value: object) -> bool:
    """Whether it is text or a finite number; tables have NaN where a number is missing."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | int) and not isinstance(value, bool)
