"""Where captioned photographs and figures lie on disk.

Source: the builders nocaps, coco35l, xm3600, textcaps and scicap in big_vision/datasets;
Karpathy's split of COCO.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paligemma.errors import DataError
from paligemma.example import Example
from paligemma.tasks.reading.files import (
    FilePicture,
    find_file,
    identifier,
    read_json,
    read_json_lines,
    value,
    values,
)
from paligemma.tasks.reading.languages import COCO35L_LANGUAGES, ENGLISH, XM3600_LANGUAGES
from paligemma.tasks.reading.prefixes import CAPTION_PREFIX, caption_prefix, lower_ascii
from paligemma.tasks.reading.rows import list_rows, of_split

KARPATHY = "cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
COCO_IMAGES = "images.cocodataset.org/zips"
NOCAPS = "nocaps.org (the S3 bucket nocaps)"
OPEN_IMAGES = "the S3 bucket open-images-dataset"
CROSSMODAL = "google.github.io/crossmodal-3600"
TEXTCAPS = "textvqa.org/textcaps"
SCICAP = "github.com/tingyaohsu/SciCap (scicap_data.zip)"

# The translation whose lines carry the English captions, each once.
_ENGLISH_LINES = "de"
_SCICAP_LIST = "List-of-Files-for-Each-Experiments/First-Sentence/No-Subfig/{split}/file_idx.json"
_SCICAP_TEXT = "1-lowercase-and-token-and-remove-figure-index"


def read_coco_captions(data: Path, split: str) -> Iterator[Example]:
    """COCO by Karpathy's split; "train" is train and restval together."""
    kinds = {"val": ("val",), "test": ("test",), "train": ("train", "restval")}
    wanted = of_split(kinds, split, "coco-captions")
    for where, row in _karpathy_rows(data):
        if value(row, "split", str, where) not in wanted:
            continue
        sentences = value(row, "sentences", list, where)
        captions = [value(one, "raw", str, f"{where}, sentences") for one in sentences]
        yield Example(
            id=str(value(row, "cocoid", int, where)),
            prefix=CAPTION_PREFIX,
            pictures=(_coco_picture(data, row, where),),
            references=_required(captions, where),
            targets=tuple(captions),
        )


def read_nocaps(data: Path, split: str) -> Iterator[Example]:
    """NoCaps; "test" has no captions and is only good for a submission."""
    names = {"val": "nocaps_val_4500_captions.json", "test": "nocaps_test_image_info.json"}
    path = find_file(data, of_split(names, split, "nocaps"), source=NOCAPS)
    folder = {"val": "validation", "test": "test"}[split]
    images = find_file(data, folder, f"Images/{folder}", "images", source=OPEN_IMAGES)
    table = read_json(path)
    captions: dict[str, list[str]] = {}
    for number, row in list_rows(table, path, "annotations") if split == "val" else ():
        where = f"{path}, annotations, row {number}"
        of_image = captions.setdefault(identifier(row, "image_id", where), [])
        of_image.append(value(row, "caption", str, where))
    for number, row in list_rows(table, path, "images"):
        where = f"{path}, images, row {number}"
        image = identifier(row, "id", where)
        given = captions.get(image, [])
        yield Example(
            id=image,
            prefix=CAPTION_PREFIX,
            pictures=(FilePicture(path=images / value(row, "file_name", str, where)),),
            references=_required(given, where) if split == "val" else [],
            slices={"domain": value(row, "domain", str, where)} if "domain" in row else {},
        )


def read_coco35l(data: Path, split: str) -> Iterator[Example]:
    """COCO-35L, all languages one after another; "dev_de" reads one alone."""
    stem, _, only = split.partition("_")
    of_split({"dev": "", "train": ""}, stem, "coco-35l")
    if only and only not in COCO35L_LANGUAGES:
        raise DataError(f"coco-35l has the languages {', '.join(COCO35L_LANGUAGES)}, got {only!r}")
    name = f"coco_mt_{stem}.jsonl"
    path = find_file(data, name, f"{name}.bz2", source=CROSSMODAL)
    pictures = {
        str(value(row, "cocoid", int, where)): _coco_picture(data, row, where)
        for where, row in _karpathy_rows(data)
    }
    captions: dict[str, dict[str, list[str]]] = {
        language: {} for language in ([only] if only else COCO35L_LANGUAGES)
    }
    for number, row in read_json_lines(path):
        where = f"{path}, row {number}"
        image = value(row, "image_id", str, where).split("_")[0]
        language = value(row, "trg_lang", str, where)
        if language in captions:
            text = value(row, "translation_tokenized", str, where)
            captions[language].setdefault(image, []).append(text)
        if language == _ENGLISH_LINES and ENGLISH in captions:
            text = value(row, "caption_tokenized", str, where)
            captions[ENGLISH].setdefault(image, []).append(text)
    for language, of_images in captions.items():
        for image, given in of_images.items():
            if image not in pictures:
                raise DataError(f"{path} captions the image {image}, which {KARPATHY} lacks")
            yield Example(
                id=f"{image}_{language}",
                prefix=caption_prefix(language),
                pictures=(pictures[image],),
                references=given,
                targets=tuple(given),
                slices={"language": language},
                unit=image,
            )


def read_xm3600(data: Path, split: str, *, tokenized: bool = False) -> Iterator[Example]:
    """XM3600, all languages one after another.

    Args:
        data: the data folder.
        split: "test", or "test_th" for one language.
        tokenized: take `caption/tokenized`, which separates the words of th, zh and ja.
    """
    stem, _, only = split.partition("_")
    of_split({"test": ""}, stem, "xm3600")
    if only and only not in XM3600_LANGUAGES:
        raise DataError(f"xm3600 has the languages {', '.join(XM3600_LANGUAGES)}, got {only!r}")
    path = find_file(data, "captions.jsonl", source=CROSSMODAL)
    images = find_file(data, "images", source=CROSSMODAL)
    field = "caption/tokenized" if tokenized else "caption"
    for language in [only] if only else XM3600_LANGUAGES:
        for number, row in read_json_lines(path):
            where = f"{path}, row {number}"
            image = value(row, "image/key", str, where)
            of_language = value(row, language, dict, where)
            given = values(of_language, field, str, f"{where}, {language}")
            yield Example(
                id=f"{image}_{language}",
                prefix=caption_prefix(language),
                pictures=(FilePicture(path=images / f"{image}.jpg"),),
                references=_required(given, f"{where}, {language}"),
                slices={"language": language},
                unit=image,
            )


def read_xm3600_tokenized(data: Path, split: str) -> Iterator[Example]:
    """XM3600 with the captions that its authors tokenised."""
    return read_xm3600(data, split, tokenized=True)


def read_textcaps(data: Path, split: str) -> Iterator[Example]:
    """TextCaps, the captions of one picture together; "test" has none."""
    folders = {"val": "train_images", "train": "train_images", "test": "test_images"}
    folder = of_split(folders, split, "textcaps")
    path = find_file(data, f"TextCaps_0.1_{split}.json", source=TEXTCAPS)
    images = find_file(data, folder, source=TEXTCAPS)
    names: dict[str, str] = {}
    captions: dict[str, list[str]] = {}
    for number, row in list_rows(read_json(path), path, "data"):
        where = f"{path}, row {number}"
        image = identifier(row, "image_id", where)
        names[image] = value(row, "image_name", str, where)
        of_image = captions.setdefault(image, [])
        if split != "test":
            of_image.append(value(row, "caption_str", str, where))
    for image, given in captions.items():
        yield Example(
            id=image,
            prefix=CAPTION_PREFIX,
            pictures=(FilePicture(path=images / f"{names[image]}.jpg"),),
            references=given,
            targets=tuple(lower_ascii(text) for text in given),
        )


def read_scicap(data: Path, split: str) -> Iterator[Example]:
    """SciCap, first sentences of figures without parts."""
    of_split({"test": "", "val": "", "train": ""}, split, "scicap")
    listed = _SCICAP_LIST.format(split=split)
    path = find_file(data, listed, f"scicap_data/{listed}", source=SCICAP)
    root = path.parents[len(Path(listed).parts) - 1]
    images = find_file(root, f"SciCap-No-Subfig-Img/{split}", source=SCICAP)
    names = read_json(path)
    for name in values({"names": names}, "names", str, f"{path}"):
        texts = root / "SciCap-Caption-All" / split / f"{Path(name).stem}.json"
        cleaned = value(read_json(texts), _SCICAP_TEXT, dict, f"{texts}")
        caption = value(cleaned, "caption", str, f"{texts}, {_SCICAP_TEXT}")
        yield Example(
            id=Path(name).stem,
            prefix=CAPTION_PREFIX,
            pictures=(FilePicture(path=images / Path(name).name),),
            references=[caption],
            targets=(caption,),
        )


def _karpathy_rows(data: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    path = find_file(data, "dataset_coco.json", source=KARPATHY)
    for number, row in list_rows(read_json(path), path, "images"):
        yield f"{path}, row {number}", row


def _coco_picture(data: Path, row: dict[str, Any], where: str) -> FilePicture:
    folder = value(row, "filepath", str, where)
    images = find_file(data, folder, f"images/{folder}", source=COCO_IMAGES)
    return FilePicture(path=images / value(row, "filename", str, where))


def _required(captions: list[str], where: str) -> list[str]:
    if not captions:
        raise DataError(f"{where} must have at least one caption, it has none")
    return captions
