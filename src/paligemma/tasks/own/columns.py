"""Prompts and answers of rows that have fields: by their usual names, or by a user's templates."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from paligemma.errors import DataError
from paligemma.processing.prompts import answer_prompt, caption_prompt
from paligemma.tasks.own.found import OwnForm
from paligemma.tasks.own.labels import RowError
from paligemma.tasks.reading.file_rows import FileRow

ANSWERS = ("suffix", "answer", "answers", "text", "caption", "captions")
_FIELD = re.compile(r"\{([^{}]+)\}")


def wanted_columns(names: Iterable[str], form: OwnForm) -> list[str]:
    """The columns of a table that texts are made of.

    Raises:
        DataError: none holds an answer, or a template names one that is not there.
    """
    names = set(names)
    wanted = fields_of(form.prefix + form.suffix)
    if missing := [one for one in wanted if one not in names]:
        raise DataError(
            f"the templates of own-format.json name the column {missing[0]!r}, there are "
            f"{', '.join(sorted(names))[:200]}"
        )
    answer = next((one for one in ANSWERS if one in names), None)
    if answer is None and not form.suffix:
        raise DataError(
            f"one column must be the answer, {', '.join(ANSWERS)}, with prefix or question where "
            f"there is a prompt, there are {', '.join(sorted(names))[:200]}; name another as "
            '"suffix": "{column}" in own-format.json'
        )
    wanted += [answer] if answer and not form.suffix else []
    wanted += [one for one in ("prefix", "question", "masks") if one in names]
    return list(dict.fromkeys(wanted))


def texts_of(row: FileRow, form: OwnForm) -> tuple[str, list[str]]:
    """The prompt of a row and its answers; templates go before fields.

    Raises:
        DataError: a field is missing, or is neither text nor a number.
    """
    if form.prefix:
        prefix = filled(form.prefix, row)
    elif "prefix" in row:
        prefix = row.text("prefix")
    elif "question" in row:
        prefix = answer_prompt(row.text("question"), form.language)
    else:
        prefix = caption_prompt(form.language)
    if form.suffix and not (whole := _FIELD.fullmatch(form.suffix)):
        return prefix, [filled(form.suffix, row)]
    answer = whole[1] if form.suffix and whole else next((n for n in ANSWERS if n in row), "suffix")
    many = isinstance(row.fields.get(answer), list)
    texts = row.texts(answer) if many else [filled(f"{{{answer}}}", row)]
    if not texts:
        raise RowError("no answer", f"{row.where}: it has no answer; remove it or add one")
    return prefix, texts


def fields_of(template: str) -> list[str]:
    """Names of the fields that a template asks for."""
    return _FIELD.findall(template)


def filled(template: str, row: FileRow) -> str:
    """A template such as `answer en {question}` with the fields of a row in its places.

    Raises:
        DataError: a field is missing, or is neither text nor a finite number; tables have NaN where
            a number is missing.
    """

    def value(name: str) -> str:
        found = row.fields.get(name)
        if isinstance(found, int) and not isinstance(found, bool):
            return str(found)
        if isinstance(found, float) and math.isfinite(found):
            return str(found)
        return row.text(name)

    return _FIELD.sub(lambda place: value(place[1]), template)
