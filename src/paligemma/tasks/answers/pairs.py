"""Whether a sentence is true of two pictures: NLVR2, and MaRVL in five languages.

Source: big_vision configs/proj/paligemma/transfers/nlvr2.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from unicodedata import normalize

from paligemma.errors import DataError
from paligemma.example import Asking, Example, Prediction
from paligemma.metrics.answers import exact_match_measures, truth_word
from paligemma.metrics.measure import Measure
from paligemma.processing.resize import BILINEAR
from paligemma.tasks.reading.files import FilePicture, find_file, identifier, read_json_lines, value
from paligemma.tasks.reading.languages import MARVL_LANGUAGES, score_by_language
from paligemma.tasks.reading.prefixes import answer_prefix
from paligemma.tasks.reading.rows import of_split
from paligemma.tasks.task import NeededFile, PublishedKey, Task

NLVR2 = "github.com/lil-lab/nlvr (nlvr2/data); pictures from its authors on request"
MARVL = "marvl-challenge.github.io/download"

TRUE, FALSE = truth_word(True), truth_word(False)


def read_nlvr2(data: Path, split: str) -> Iterator[Example]:
    """NLVR2; the left picture comes first. "test" is test1, the public test split."""
    stem = of_split({"test": "test1", "dev": "dev", "train": "train"}, split, "nlvr2")
    path = find_file(data, f"{stem}.json", f"nlvr2/data/{stem}.json", source=NLVR2)
    images = find_file(data, stem, f"images/{stem}", "images", source=NLVR2)
    for number, row in read_json_lines(path):
        where = f"{path}, row {number}"
        name = value(row, "identifier", str, where)
        pair, _, sentence = name.rpartition("-")
        if not pair or not sentence:
            raise DataError(f"{where}: identifier must be split-set-pair-sentence, got {name!r}")
        label = value(row, "label", str, where)
        if label not in (TRUE, FALSE):
            raise DataError(f"{where}: label must be {TRUE} or {FALSE}, got {label!r}")
        # Training pictures lie in numbered folders.
        folder = images / str(row["directory"]) if "directory" in row else images
        folder = folder if folder.is_dir() else images
        yield Example(
            id=name,
            prefix=answer_prefix(value(row, "sentence", str, where)),
            pictures=tuple(FilePicture(path=folder / f"{pair}-img{k}.png") for k in (0, 1)),
            references=label,
            targets=(label,),
            unit=pair,
        )


def read_marvl(data: Path, split: str) -> Iterator[Example]:
    """MaRVL, all languages one after another; "test_sw" reads one alone."""
    stem, _, only = split.partition("_")
    of_split({"test": ""}, stem, "marvl")
    if only and only not in MARVL_LANGUAGES:
        raise DataError(f"marvl has the languages {', '.join(MARVL_LANGUAGES)}, got {only!r}")
    for language in [only] if only else MARVL_LANGUAGES:
        name = f"marvl-{language}.jsonl"
        folder = f"{language}/annotations/{name}"
        path = find_file(data, name, f"annotations/{name}", folder, source=MARVL)
        images = find_file(data, f"{language}/images", f"images/{language}", source=MARVL)
        for number, row in read_json_lines(path):
            where = f"{path}, row {number}"
            label = truth_word(value(row, "label", bool, where))
            concept = value(row, "concept", str, where)
            sides = [value(row, side, str, where) for side in ("left_img", "right_img")]
            yield Example(
                id=f"{identifier(row, 'id', where)}_{language}",
                prefix=answer_prefix(value(row, "caption", str, where)),
                pictures=tuple(_marvl_picture(images, concept, side) for side in sides),
                references=label,
                slices={"language": language, "concept": concept},
            )


def score_nlvr2(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """Share of answers that are the label."""
    said = [one.text for one in predictions]
    return exact_match_measures(said, [one.references for one in examples])


def score_marvl(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """The same of every language by itself, and "avg5", the mean of all."""
    return score_by_language(
        [one.slices["language"] for one in examples],
        lambda rows: score_nlvr2([examples[k] for k in rows], [predictions[k] for k in rows]),
        expected=MARVL_LANGUAGES,
        averages={"avg5": MARVL_LANGUAGES},
    )


def _marvl_picture(images: Path, concept: str, name: str) -> FilePicture:
    """In the folder of its concept, which may be named by its number alone, or beside the others.

    Names are compared in one Unicode form: disks and archives differ in theirs.
    """
    folders = _folders(images)
    folder = folders.get(normalize("NFC", concept)) or folders.get(name.split("-")[0])
    return FilePicture(path=(folder or images) / name)


@cache
def _folders(images: Path) -> dict[str, Path]:
    return {normalize("NFC", one.name): one for one in images.iterdir() if one.is_dir()}


_ASKING = Asking(text_len=64, max_new_tokens=64, resize_method=BILINEAR, num_pictures=2)

TASKS: tuple[Task, ...] = (
    Task(
        name="nlvr2",
        title="NLVR2",
        family="pairs",
        splits=("test", "dev", "train"),
        headline="accuracy",
        asking=_ASKING,
        files=(
            NeededFile(
                path="{train|dev|test1}.json", source=NLVR2, fields="sentence, label, identifier"
            ),
            NeededFile(
                path="{train|dev|test1}/{pair}-img0.png, -img1.png (or below images/)",
                source=NLVR2,
            ),
        ),
        read=read_nlvr2,
        score=score_nlvr2,
        published=(
            PublishedKey(
                measure="accuracy",
                task="NLVR2",
                split="test",
                metric="accuracy",
                our_split="test",
            ),
        ),
        traps=(
            "The answer is `True` or `False`, with a capital.",
            "img0 is the left picture and comes first.",
        ),
        transfer="nlvr2",
    ),
    Task(
        name="marvl",
        title="MaRVL",
        family="pairs",
        splits=("test", *(f"test_{one}" for one in MARVL_LANGUAGES)),
        headline="accuracy/avg5",
        asking=_ASKING,
        files=(
            NeededFile(
                path="marvl-{id|sw|ta|tr|zh}.jsonl",
                source=MARVL,
                fields="caption, left_img, right_img, label, id, concept",
            ),
            NeededFile(
                path="{language}/images/{concept}/ (or images/{language}/{concept}/)", source=MARVL
            ),
        ),
        read=read_marvl,
        score=score_marvl,
        published=(
            PublishedKey(
                measure="accuracy/avg5",
                task="MARVL",
                split="avg5",
                metric="accuracy",
                our_split="test",
            ),
            PublishedKey(
                measure="accuracy/avg5",
                task="MaRVL",
                split="test mean (id,sw,ta,tr,zh)",
                metric="mean accuracy",
                our_split="test",
            ),
        ),
        traps=(
            "Languages are averaged without weights.",
            "The prompt starts `answer en` whatever the language; labels are `True` and `False`.",
        ),
        transfer="nlvr2",
        is_zero_shot=True,
    ),
)
