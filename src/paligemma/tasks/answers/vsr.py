"""VSR: whether a spatial statement is true of a picture.

The prompt is unpublished; ours stands in `StatementFormat`, and `{task}-format.json` in the data
folder changes it. Source: arXiv:2412.03555 section 4.8.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from paligemma.errors import DataError
from paligemma.example import Asking, Example
from paligemma.metrics.answers import truth_word
from paligemma.tasks.reading.examples import example_of
from paligemma.tasks.reading.file_rows import read_json_lines
from paligemma.tasks.reading.files import find_file
from paligemma.tasks.reading.formats import format_file, read_format
from paligemma.tasks.reading.pictures import FilePicture, folder_of, picture_in
from paligemma.tasks.reading.prefixes import answer_prefix
from paligemma.tasks.scoring import score_exact
from paligemma.tasks.task import NeededFile, Task, published_keys

VSR = "github.com/cambridgeltl/visual-spatial-reasoning (data/splits)"
COCO_2017 = "cocodataset.org (COCO 2017, training and validation set in one folder or two)"
logger = logging.getLogger(__name__)

_SPLITS = ("test", "dev", "train")
_FOLDERS = ("images", "train2017", "val2017", "images/train2017", "images/val2017")
_STATEMENT = "{caption}"


@dataclass(frozen=True, kw_only=True)
class StatementFormat:
    """Prompt of a statement; unpublished, so ours follows NLVR2."""

    prompt: str = answer_prefix(_STATEMENT)


def read_vsr(data: Path, split: str, *, kind: str) -> Iterator[Example]:
    """Read VSR: one statement a line, true or false of its picture.

    Args:
        data: folder with `splits/{kind}/{split}.jsonl` and COCO's pictures.
        kind: "zeroshot" or "random".
    """
    name = f"vsr-{kind}"
    file = f"{kind}/{split}.jsonl"
    root = f"{split}.jsonl"
    path = find_file(data, f"splits/{file}", f"data/splits/{file}", file, root, source=VSR)
    if path == Path(data) / root:
        logger.warning(
            "%s does not say whether it is of the zero-shot or the random split; taken for %s",
            path,
            kind,
        )
    style = read_format(data, name, StatementFormat())
    if _STATEMENT not in style.prompt:
        raise DataError(f"the prompt of {name} must hold {_STATEMENT}, got {style.prompt!r}")
    for row in read_json_lines(path):
        image, label = Path(row.text("image")).name, row.integer("label")
        if label not in (0, 1):
            raise row.error(f"label must be 1 (true) or 0 (false), got {label}")
        relation = row.fields.get("relation")
        yield example_of(
            str(row.number),
            style.prompt.replace(_STATEMENT, row.text("caption")),
            picture=_picture(data, image),
            answers=truth_word(label),
            slices={"relation": relation} if isinstance(relation, str) else {},
            unit=image,
        )


def _picture(data: Path, image: str) -> FilePicture:
    folders = [folder for one in _FOLDERS if (folder := data / one).is_dir()] or [data]
    return picture_in(folder_of(folders, image) or folders[0], image)


def _task(kind: str, title: str, published_split: str) -> Task:
    name = f"vsr-{kind}"
    return Task(
        name=name,
        title=title,
        family="answers",
        splits=_SPLITS,
        headline="accuracy",
        asking=Asking(text_len=64, max_new_tokens=18),
        files=(
            NeededFile(
                f"splits/{kind}/{{split}}.jsonl or {{split}}.jsonl",
                VSR,
                fields="image, caption, label, relation",
            ),
            NeededFile("images/*.jpg", COCO_2017),
            NeededFile(format_file(name), "optional, written by you", fields="prompt"),
        ),
        reader=partial(read_vsr, kind=kind),
        score=score_exact,
        published=published_keys("accuracy", "accuracy", ("VSR", published_split, "test")),
        traps=(
            "The data changed in March 2023; older figures belong to other splits.",
            "Labels are 1 and 0 in the files, `True` and `False` in answers, case included.",
            "Zero-shot here means that no concept of the test is in the training split; the "
            "published models were trained on that split.",
        ),
    )


TASKS: tuple[Task, ...] = (
    _task("zeroshot", "VSR, zero-shot split", "zero-shot split test"),
    _task("random", "VSR, random split", "random split test"),
)
