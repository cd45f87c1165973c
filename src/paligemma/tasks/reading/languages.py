"""Languages of the multilingual benchmarks, and the splits that hold one of them."""

from __future__ import annotations

from collections.abc import Sequence

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


def languages_of(split: str, languages: Sequence[str]) -> Sequence[str]:
    """Return the languages of a split: "dev" has all of them, "dev_de" has one."""
    _, _, only = split.partition("_")
    return [only] if only else languages
