"""Reads ICDAR'15 Incidental Scene Text and Total-Text, and writes words with boxes as text.

Source: rrc.cvc.uab.es challenge 4; github.com/cs-chan/Total-Text-Dataset.
"""

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paligemma.errors import DataError
from paligemma.example import Example, Prediction
from paligemma.metrics.spotting import MAX_VERTICES
from paligemma.outputs.boxes import Box, encode_boxes, format_loc
from paligemma.tasks.reading.examples import example_of
from paligemma.tasks.reading.files import find_file, read_text
from paligemma.tasks.reading.formats import read_format
from paligemma.tasks.reading.pictures import picture_in
from paligemma.vocab import NUM_LOC

ICDAR15 = "rrc.cvc.uab.es, Incidental Scene Text (challenge 4), tasks 4.1 or 4.4, after registering"
TOTAL_TEXT = "github.com/cs-chan/Total-Text-Dataset (images, and the ground truth as txt)"
MAX_TRUTH_BYTES = 4 << 20
MAX_WORDS = 20_000

_BOX = re.compile(r"(?:<loc(?:0\d{3}|10[01]\d|102[0-3])>){4}")
_TEXT = r"""(u?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"))"""
_RECORD = re.compile(
    r"x:\s*\[\[([^\]]*)\]\]\s*,\s*y:\s*\[\[([^\]]*)\]\]\s*,\s*ornt:\s*\[[^\]]*\]\s*,\s*"
    rf"transcriptions:\s*\[{_TEXT}\]",
    re.DOTALL,
)
_MATLAB = ("Groundtruth/Polygon", "Groundtruth", "Polygon", "gt", "")


@dataclass(frozen=True, kw_only=True)
class WordFormat:
    """Prompt and layout of words with boxes; unpublished, so these are ours.

    Attributes:
        text_first: whether the word stands before its box.
        between: text between a word and its box.
        separator: text between two words.
    """

    prompt: str = "ocr"
    text_first: bool = True
    between: str = " "
    separator: str = " "


def format_words(
    words: Sequence[str], boxes_yxyx: Sequence[Sequence[float]], style: WordFormat
) -> str:
    """Write `STOP <loc....><loc....><loc....><loc....> Main <loc....>...`, y before x."""
    locations = [format_loc(encode_boxes(box).tolist()) for box in boxes_yxyx]
    pairs = zip(words, locations, strict=True)
    if style.text_first:
        return style.separator.join(f"{word}{style.between}{place}" for word, place in pairs)
    return style.separator.join(f"{place}{style.between}{word}" for word, place in pairs)


def parse_words(text: str, style: WordFormat) -> list[tuple[str, tuple[int, ...]]]:
    """Read what `format_words` wrote: (word, four bins); text without a box is passed over."""
    places = list(_BOX.finditer(text))
    if style.text_first:
        starts = [0, *(place.end() for place in places)]
        words = [text[start : place.start()] for start, place in zip(starts, places, strict=False)]
        words = [word.removesuffix(style.between) for word in words]
        words[1:] = [word.removeprefix(style.separator) for word in words[1:]]
    else:
        ends = [*(place.start() for place in places[1:]), len(text)]
        words = [text[place.end() : end] for place, end in zip(places, ends, strict=False)]
        words = [word.removeprefix(style.between).removesuffix(style.separator) for word in words]
    return [
        (word.strip(), tuple(int(n) for n in re.findall(r"\d{4}", place[0])))
        for word, place in zip(words, places, strict=True)
    ]


def answered_words(answer: Prediction, style: WordFormat) -> list[tuple[str, Box]]:
    """Read the words of an answer with normalised boxes.

    They stand in its text; where this spells no place, its objects are the words.
    """
    if answer.objects and "<loc" not in answer.text:
        return [(one.label, one.box_yxyx) for one in answer.objects]
    words = parse_words(answer.text, style)
    return [(word, tuple(n / (NUM_LOC - 1) for n in bins)) for word, bins in words]  # type: ignore[misc]


def box_vertices(box_yxyx: Box, size_hw: Sequence[int]) -> list[list[float]]:
    """Return the corners [x, y] in pixels of a normalised box."""
    height, width = size_hw
    y0, x0, y1, x1 = box_yxyx
    corners = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    return [[x * width, y * height] for x, y in corners]


def read_icdar15(data: Path, split: str) -> Iterator[Example]:
    """Read ICDAR'15: `gt_img_{n}.txt` beside `img_{n}.jpg`; `###` marks words of no concern."""
    folders = {
        "test": (
            ("Challenge4_Test_Task4_GT", "Challenge4_Test_Task1_GT"),
            "ch4_test_images",
        ),
        "train": (("ch4_training_localization_transcription_gt",), "ch4_training_images"),
    }
    truth, pictures = folders[split]
    return _examples(
        find_file(data, *truth, source=ICDAR15),
        find_file(data, pictures, source=ICDAR15),
        names=("gt_img_{n}.txt", "img_{n}"),
        source=ICDAR15,
        parse=_icdar_words,
        style=read_format(data, "icdar15", WordFormat()),
        split=split,
    )


def read_total_text(data: Path, split: str) -> Iterator[Example]:
    """Read Total-Text: `poly_gt_img{n}.txt` beside `img{n}.jpg`; `#` marks words of no concern."""
    folder = {"test": "Test", "train": "Train"}[split]
    places = (
        f"txt_format/{folder}",
        f"Groundtruth/Text/Legacy/txt_format/{folder}",
        f"Groundtruth/Text/{folder}",
        f"gt/{folder}",
    )
    if not any(next(Path(data, place).glob("poly_gt_img*.txt"), None) for place in places):
        _refuse_matlab(data, folder)
    return _examples(
        find_file(data, *places, source=TOTAL_TEXT),
        find_file(data, f"Images/{folder}", f"totaltext/Images/{folder}", source=TOTAL_TEXT),
        names=("poly_gt_img{n}.txt", "img{n}"),
        source=TOTAL_TEXT,
        parse=_total_text_words,
        style=read_format(data, "total-text", WordFormat()),
        split=split,
    )


def _refuse_matlab(data: Path, folder: str) -> None:
    for place in _MATLAB:
        found = next((Path(data) / place / folder).glob("poly_gt_img*.mat"), None)
        if found is not None:
            raise DataError(
                f"ground truth is read as poly_gt_img*.txt, got {found.name} in {found.parent}, "
                "which is MATLAB's format; take the same labels as txt_format from the data set's "
                f"page and unpack them as {Path(data) / 'txt_format' / folder}"
            )


def _examples(
    truth: Path,
    pictures: Path,
    *,
    names: tuple[str, str],
    source: str,
    parse: Callable[[str, Path], Iterator[dict[str, Any]]],
    style: WordFormat,
    split: str,
) -> Iterator[Example]:
    """Read the pictures of a set; `names` are those of the truth and of the picture of number n."""
    pattern = re.compile(re.escape(names[0]).replace(r"\{n\}", r"(\d{1,9})"))
    numbers = sorted(
        int(match[1]) for path in truth.iterdir() if (match := pattern.fullmatch(path.name))
    )
    if not numbers:
        raise DataError(f"{truth} must hold {names[0]}, which comes from {source}")
    for n in numbers:
        path = truth / names[0].format(n=n)
        stem = names[1].format(n=n)
        picture = picture_in(pictures, f"{stem}.jpg")
        size_hw = picture.stored_size_hw()
        text = read_text(path, max_bytes=MAX_TRUTH_BYTES, source=source)
        words = list(parse(text, path))
        if len(words) > MAX_WORDS:
            raise DataError(f"a picture may have {MAX_WORDS} words, {path} has {len(words)}")
        yield example_of(
            stem,
            style.prompt,
            picture=picture,
            answers=[_target(words, size_hw, style)] if split == "train" else [],
            references={"size_hw": list(size_hw), "words": words, "style": asdict(style)},
        )


def _target(words: Sequence[dict[str, Any]], size_hw: Sequence[int], style: WordFormat) -> str:
    legible = [word for word in words if word["legible"]]
    boxes = []
    for word in legible:
        low, high = np.min(word["vertices"], axis=0), np.max(word["vertices"], axis=0)
        corners = np.array([low[1], low[0], high[1], high[0]]) / np.array([*size_hw] * 2)
        boxes.append(np.clip(corners, 0, 1).tolist())
    return format_words([word["text"] for word in legible], boxes, style)


def _icdar_words(text: str, path: Path) -> Iterator[dict[str, Any]]:
    """Parse lines `x1,y1,x2,y2,x3,y3,x4,y4,text`; the text may hold commas."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        parts = line.rstrip("\r").split(",", 8)
        try:
            numbers = [float(part) for part in parts[:8]]
        except ValueError:
            numbers = []
        if len(parts) != 9 or not np.isfinite(numbers).all() or len(numbers) != 8:
            raise DataError(
                f"{path}, row {number} must be x1,y1,x2,y2,x3,y3,x4,y4,text, got {line[:80]!r}"
            )
        vertices = [[numbers[k], numbers[k + 1]] for k in range(0, 8, 2)]
        yield {"vertices": vertices, "text": parts[8], "legible": parts[8] != "###"}


def _total_text_words(text: str, path: Path) -> Iterator[dict[str, Any]]:
    """Parse `x: [[...]], y: [[...]], ornt: [u'c'], transcriptions: [u'...']`; records may wrap."""
    records = list(_RECORD.finditer(text))
    if len(records) != len(re.findall(r"x:\s*\[\[", text)):
        raise DataError(
            f"{path} must hold records x: [[..]], y: [[..]], ornt: [..], transcriptions: [..], "
            f"but only {len(records)} of them can be read"
        )
    for number, record in enumerate(records, start=1):
        where = f"{path}, word {number}"
        x, y = (_numbers(part, where) for part in record.groups()[:2])
        if len(x) != len(y) or not 3 <= len(x) <= MAX_VERTICES:
            raise DataError(
                f"{where} must have 3 to {MAX_VERTICES} corners, got {len(x)} x and {len(y)} y"
            )
        try:
            word = str(ast.literal_eval(record[3]))
        except (SyntaxError, ValueError) as error:
            raise DataError(f"{where}: the text {record[3][:80]} cannot be read") from error
        vertices = [[a, b] for a, b in zip(x, y, strict=True)]
        yield {"vertices": vertices, "text": word, "legible": word != "#"}


def _numbers(text: str, where: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise DataError(f"{where}: corners must be numbers, got {text[:80]!r}") from error
    if not np.isfinite(numbers).all():
        raise DataError(f"{where}: corners must be finite, got {text[:80]!r}")
    return numbers
