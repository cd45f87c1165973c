"""Whether a sentence is true of two pictures: NLVR2, and MaRVL in five languages.

Source: big_vision configs/proj/paligemma/transfers/nlvr2.py.
"""

import os
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path, PurePath
from unicodedata import normalize

from paligemma.example import Example
from paligemma.metrics.answers import truth_word
from paligemma.tasks.published import transferred
from paligemma.tasks.reading.examples import example_of
from paligemma.tasks.reading.file_rows import read_json_lines
from paligemma.tasks.reading.files import find_file
from paligemma.tasks.reading.languages import MARVL_LANGUAGES, languages_of
from paligemma.tasks.reading.pictures import FilePicture, picture_in
from paligemma.tasks.reading.prefixes import answer_prefix
from paligemma.tasks.scoring import score_exact, score_languages
from paligemma.tasks.task import Task, files_from, published_keys

NLVR2 = "github.com/lil-lab/nlvr (nlvr2/data); pictures from its authors on request"
MARVL = "marvl-challenge.github.io/download"

TRUE, FALSE = truth_word(True), truth_word(False)


def read_nlvr2(data: Path, split: str) -> Iterator[Example]:
    """Read NLVR2, the left picture first. "test" is test1, the public test split."""
    stem = {"test": "test1", "dev": "dev", "train": "train"}[split]
    path = find_file(data, f"{stem}.json", f"nlvr2/data/{stem}.json", source=NLVR2)
    images = find_file(data, stem, f"images/{stem}", "images", source=NLVR2)
    for row in read_json_lines(path):
        name, label = row.text("identifier"), row.text("label")
        pair, _, sentence = name.rpartition("-")
        if not pair or not sentence:
            raise row.error(f"identifier must be split-set-pair-sentence, got {name!r}")
        if label not in (TRUE, FALSE):
            raise row.error(f"label must be {TRUE} or {FALSE}, got {label!r}")
        # Training pictures lie in numbered folders.
        folder = PurePath(str(row.fields.get("directory", "")))
        folder = folder if os.path.isdir(images / folder) else PurePath()
        yield example_of(
            name,
            answer_prefix(row.text("sentence")),
            picture=tuple(picture_in(images, folder / f"{pair}-img{k}.png") for k in (0, 1)),
            answers=label,
            unit=pair,
        )


def read_marvl(data: Path, split: str) -> Iterator[Example]:
    """Read MaRVL, one language after another, or "test_sw" alone."""
    languages = languages_of(split, MARVL_LANGUAGES)
    for language in languages:
        name = f"marvl-{language}.jsonl"
        folder = f"{language}/annotations/{name}"
        path = find_file(data, name, f"annotations/{name}", folder, source=MARVL)
        images = find_file(data, f"{language}/images", f"images/{language}", source=MARVL)
        for row in read_json_lines(path):
            concept = row.text("concept")
            sides = [row.text(side) for side in ("left_img", "right_img")]
            yield example_of(
                f"{row.identifier('id')}_{language}",
                answer_prefix(row.text("caption")),
                picture=tuple(_marvl_picture(images, concept, side) for side in sides),
                answers=truth_word(row.value("label", bool)),
                targets=(),
                slices={"language": language, "concept": concept},
            )


def _marvl_picture(images: Path, concept: str, name: str) -> FilePicture:
    """Find a picture in the folder of its concept, or of its number, or beside the folders.

    Names are compared in one Unicode form: disks and archives differ in theirs.
    """
    folders = _folders(images)
    folder = folders.get(normalize("NFC", concept)) or folders.get(name.split("-")[0])
    return picture_in(folder or images, name)


@cache
def _folders(images: Path) -> dict[str, Path]:
    return {normalize("NFC", one.name): one for one in images.iterdir() if one.is_dir()}


TASKS: tuple[Task, ...] = (
    Task(
        **transferred("nlvr2"),
        name="nlvr2",
        title="NLVR2",
        family="pairs",
        splits=("test", "dev", "train"),
        headline="accuracy",
        files=files_from(
            NLVR2,
            ("{train|dev|test1}.json", "sentence, label, identifier"),
            "{train|dev|test1}/{pair}-img0.png, -img1.png (or below images/)",
        ),
        reader=read_nlvr2,
        score=score_exact,
        published=published_keys("accuracy", "accuracy", ("NLVR2", "test", "test")),
        traps=(
            "The answer is `True` or `False`, with a capital.",
            "img0 is the left picture and comes first.",
        ),
    ),
    Task(
        **transferred("nlvr2"),
        name="marvl",
        title="MaRVL",
        family="pairs",
        splits=("test", *(f"test_{one}" for one in MARVL_LANGUAGES)),
        headline="accuracy/avg5",
        files=files_from(
            MARVL,
            ("marvl-{id|sw|ta|tr|zh}.jsonl", "caption, left_img, right_img, label, id, concept"),
            "{language}/images/{concept}/ (or images/{language}/{concept}/)",
        ),
        reader=read_marvl,
        score=partial(score_languages, score=score_exact, languages=MARVL_LANGUAGES),
        published=(
            *published_keys("accuracy/avg5", "accuracy", ("MARVL", "avg5", "test")),
            *published_keys(
                "accuracy/avg5", "mean accuracy", ("MaRVL", "test mean (id,sw,ta,tr,zh)", "test")
            ),
        ),
        traps=(
            "Languages are averaged without weights.",
            "The prompt starts `answer en` whatever the language; labels are `True` and `False`.",
        ),
        is_zero_shot=True,
    ),
)
