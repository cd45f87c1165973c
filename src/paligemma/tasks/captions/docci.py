"""DOCCI: long descriptions, which only people can judge.

Source: google.github.io/docci; arXiv:2412.03555, section on long captions and table 6.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from paligemma.errors import DataError
from paligemma.example import Example, Prediction
from paligemma.metrics.judgements import NothingRule, VerdictTieRule, nes_measures
from paligemma.metrics.measure import Measure, mean_measure
from paligemma.tasks.reading.file_rows import FileRow, read_json_lines
from paligemma.tasks.reading.files import find_file
from paligemma.tasks.reading.pictures import picture_in
from paligemma.tasks.reading.prefixes import CAPTION_PREFIX
from paligemma.tasks.scoring import texts_of

DOCCI = "google.github.io/docci (docci_descriptions.jsonlines, docci_images.tar.gz)"
# Labels of raters for the captions of one model; the user writes it.
JUDGEMENTS_FILE = "docci_judgements.jsonl"

SPLITS = ("qual_dev", "test", "train", "qual_test")
_SENTENCE_END = re.compile(r"[.!?]+[\"')\]]*(?:\s+|$)")


def read_docci(data: Path, split: str) -> Iterator[Example]:
    """Read one picture with its description; references name the optional judgements."""
    path = find_file(data, "docci_descriptions.jsonlines", source=DOCCI)
    images = find_file(data, "images", "docci_images", source=DOCCI)
    for row in read_json_lines(path):
        if row.text("split") != split:
            continue
        description = row.text("description")
        yield Example(
            id=row.text("example_id"),
            prefix=CAPTION_PREFIX,
            pictures=(picture_in(images, row.text("image_file")),),
            references={"description": description, "judgements": str(data / JUDGEMENTS_FILE)},
            targets=(description,),
        )


# Rules of NES that no paper settles, the default first.
NES_RULES = {"ties": get_args(VerdictTieRule), "nothing": get_args(NothingRule)}


def score_docci(
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    *,
    ties: VerdictTieRule = "non_entailed",
    nothing: NothingRule = "left_out",
) -> list[Measure]:
    """Compute lengths, and the share of sentences not entailed where raters judged them.

    The file of judgements has one object a line: `example_id`, the `caption` that was judged, and
    `labels`, a list of raters' labels for each of its sentences. For the rules see
    `metrics.judgements`.

    Raises:
        DataError: judgements of some captions only, or of other captions than these.
    """
    captions = texts_of(predictions)
    path = Path(examples[0].references["judgements"]) if examples else None
    if path is not None and path.exists():
        judged = _judgements(path)
        labels = [_labels(judged, one, path) for one in predictions]
        return nes_measures(labels, captions, ties=ties, nothing=nothing)
    return [
        mean_measure("characters", [len(one) for one in captions], scale=1.0),
        mean_measure("sentences", [num_sentences(one) for one in captions], scale=1.0),
    ]


def num_sentences(text: str) -> int:
    """Count sentences, which end in a full stop, exclamation or question mark, or at the end."""
    return sum(bool(part.strip()) for part in _SENTENCE_END.split(text))


def _judgements(path: Path) -> dict[str, tuple[str, list[list[str]]]]:
    """Read caption and labels by example id."""
    return {
        row.text("example_id"): (
            row.text("caption"),
            [
                FileRow({"labels": one}, row.where).texts("labels")
                for one in row.values("labels", list)
            ],
        )
        for row in read_json_lines(path)
    }


def _labels(
    judged: dict[str, tuple[str, list[list[str]]]], prediction: Prediction, path: Path
) -> Any:
    if prediction.id not in judged:
        raise DataError(
            f"{path} must judge every caption, it lacks {prediction.id}; add it or move the file "
            "away to report lengths alone"
        )
    caption, labels = judged[prediction.id]
    if caption.strip() != prediction.text.strip():
        raise DataError(
            f"{path} judges another caption of {prediction.id}: {caption[:80]!r}, the answer is "
            f"{prediction.text[:80]!r}; judge these answers or move the file away"
        )
    return labels
