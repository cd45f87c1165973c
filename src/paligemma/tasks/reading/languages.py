"""Languages of the multilingual benchmarks, and the splits that hold one of them."""

from __future__ import annotations

from collections.abc import Sequence

from paligemma.errors import DataError
from paligemma.tasks.reading.file_rows import require_split

ENGLISH = "en"
# Source: big_vision datasets/coco35l and datasets/xm3600; XM3600 adds Cuzco Quechua.
_COCO35L = (
    "ar bn cs da de el en es fa fi fil fr he hi hr hu id it ja ko mi nl no pl pt ro ru sv sw te th "
    "tr uk vi zh"
)
COCO35L_LANGUAGES = tuple(_COCO35L.split())
XM3600_LANGUAGES = tuple(sorted([*COCO35L_LANGUAGES, "quz"]))
XGQA_LANGUAGES = ("bn", "de", "en", "id", "ko", "pt", "ru", "zh")
MARVL_LANGUAGES = ("id", "sw", "ta", "tr", "zh")


def languages_of(
    split: str, stems: Sequence[str], languages: Sequence[str], task: str
) -> tuple[str, Sequence[str]]:
    """Split a name into stem and languages: "dev" has all languages, "dev_de" has one.

    Args:
        split: "STEM" or "STEM_LANGUAGE".
        stems: stems that the task has.
        languages: languages that the task has.
        task: name of the task, for errors.

    Raises:
        DataError: another stem, or another language.
    """
    stem, _, only = split.partition("_")
    require_split(stem, stems, task)
    if only and only not in languages:
        raise DataError(f"{task} has the languages {', '.join(languages)}, got {only!r}")
    return stem, [only] if only else languages
