"""Reads captioned photographs and figures.

Source: the builders nocaps, coco35l, xm3600, textcaps and scicap in big_vision/datasets;
Karpathy's split of COCO.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paligemma.errors import DataError
from paligemma.example import Example
from paligemma.tasks.reading.coco import COCO_IMAGES
from paligemma.tasks.reading.examples import example_of
from paligemma.tasks.reading.file_rows import (
    FileRow,
    list_rows,
    read_json_lines,
    read_list,
    read_object,
)
from paligemma.tasks.reading.files import find_file, read_json, relative_name
from paligemma.tasks.reading.languages import (
    COCO35L_LANGUAGES,
    ENGLISH,
    XM3600_LANGUAGES,
    languages_of,
)
from paligemma.tasks.reading.pictures import FilePicture, picture_in
from paligemma.tasks.reading.prefixes import CAPTION_PREFIX, caption_prefix, lower_ascii

KARPATHY = "cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
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
    """Read COCO by Karpathy's split; "train" is train and restval together."""
    kinds = {"val": ("val",), "test": ("test",), "train": ("train", "restval")}
    wanted = kinds[split]
    for row in _karpathy_rows(data):
        if row.text("split") not in wanted:
            continue
        yield example_of(
            str(row.integer("cocoid")),
            CAPTION_PREFIX,
            picture=_coco_picture(data, row),
            answers=_required([one.text("raw") for one in row.objects("sentences")], row),
        )


def read_nocaps(data: Path, split: str) -> Iterator[Example]:
    """Read NoCaps, which has no targets; "test" has no captions and serves a submission only."""
    names = {"val": "nocaps_val_4500_captions.json", "test": "nocaps_test_image_info.json"}
    path = find_file(data, names[split], source=NOCAPS)
    folder = {"val": "validation", "test": "test"}[split]
    images = find_file(data, folder, f"Images/{folder}", "images", source=OPEN_IMAGES)
    table = read_json(path)
    captions: dict[str, list[str]] = {}
    for row in list_rows(table, path, "annotations") if split == "val" else ():
        captions.setdefault(row.identifier("image_id"), []).append(row.text("caption"))
    for row in list_rows(table, path, "images"):
        image = row.identifier("id")
        yield example_of(
            image,
            CAPTION_PREFIX,
            picture=picture_in(images, row.text("file_name")),
            answers=_required(captions.get(image, []), row) if split == "val" else [],
            targets=(),
            slices={"domain": row.text("domain")} if "domain" in row else {},
        )


def read_coco35l(data: Path, split: str) -> Iterator[Example]:
    """Read COCO-35L, one language after another, or "dev_de" alone."""
    languages = languages_of(split, COCO35L_LANGUAGES)
    name = f"coco_mt_{split.partition('_')[0]}.jsonl"
    path = find_file(data, name, f"{name}.bz2", source=CROSSMODAL)
    pictures = {
        str(row.integer("cocoid")): _coco_picture(data, row) for row in _karpathy_rows(data)
    }
    captions: dict[str, dict[str, list[str]]] = {language: {} for language in languages}
    for row in read_json_lines(path):
        image = row.text("image_id").split("_")[0]
        language = row.text("trg_lang")
        if language in captions:
            text = row.text("translation_tokenized")
            captions[language].setdefault(image, []).append(text)
        if language == _ENGLISH_LINES and ENGLISH in captions:
            text = row.text("caption_tokenized")
            captions[ENGLISH].setdefault(image, []).append(text)
    for language, of_images in captions.items():
        for image, given in of_images.items():
            if image not in pictures:
                raise DataError(f"{path} captions the image {image}, which {KARPATHY} lacks")
            yield example_of(
                f"{image}_{language}",
                caption_prefix(language),
                picture=pictures[image],
                answers=given,
                slices={"language": language},
                unit=image,
            )


def read_xm3600(data: Path, split: str, *, tokenized: bool = False) -> Iterator[Example]:
    """Read XM3600, which has no targets, one language after another.

    Args:
        data: the data folder.
        split: "test", or "test_th" for one language.
        tokenized: take `caption/tokenized`, which separates the words of th, zh and ja.
    """
    languages = languages_of(split, XM3600_LANGUAGES)
    path = find_file(data, "captions.jsonl", source=CROSSMODAL)
    images = find_file(data, "images", source=CROSSMODAL)
    field = "caption/tokenized" if tokenized else "caption"
    for language in languages:
        for row in read_json_lines(path):
            image = row.text("image/key")
            given = FileRow(row.value(language, dict), f"{row.where}, {language}")
            yield example_of(
                f"{image}_{language}",
                caption_prefix(language),
                picture=picture_in(images, f"{image}.jpg"),
                answers=_required(given.texts(field), given),
                targets=(),
                slices={"language": language},
                unit=image,
            )


def read_textcaps(data: Path, split: str) -> Iterator[Example]:
    """Read TextCaps, the captions of one picture together; "test" has none."""
    folders = {"val": "train_images", "train": "train_images", "test": "test_images"}
    folder = folders[split]
    path = find_file(data, f"TextCaps_0.1_{split}.json", source=TEXTCAPS)
    images = find_file(data, folder, source=TEXTCAPS)
    names: dict[str, str] = {}
    captions: dict[str, list[str]] = {}
    for row in read_list(path, "data"):
        image = row.identifier("image_id")
        names[image] = row.text("image_name")
        of_image = captions.setdefault(image, [])
        if split != "test":
            of_image.append(row.text("caption_str"))
    for image, given in captions.items():
        yield example_of(
            image,
            CAPTION_PREFIX,
            picture=picture_in(images, f"{names[image]}.jpg"),
            answers=given,
            targets=[lower_ascii(text) for text in given],
        )


def read_scicap(data: Path, split: str) -> Iterator[Example]:
    """Read SciCap, first sentences of figures without parts."""
    listed = _SCICAP_LIST.format(split=split)
    path = find_file(data, listed, f"scicap_data/{listed}", source=SCICAP)
    root = path.parents[len(Path(listed).parts) - 1]
    images = find_file(root, f"SciCap-No-Subfig-Img/{split}", source=SCICAP)
    for name in FileRow({"names": read_json(path)}, f"{path}").texts("names"):
        stem = Path(name).stem
        texts = read_object(root / "SciCap-Caption-All" / split / f"{stem}.json")
        yield example_of(
            stem,
            CAPTION_PREFIX,
            picture=picture_in(images, Path(name).name),
            answers=[texts.object(_SCICAP_TEXT).text("caption")],
        )


def _karpathy_rows(data: Path) -> Iterator[FileRow]:
    return read_list(find_file(data, "dataset_coco.json", source=KARPATHY), "images")


def _coco_picture(data: Path, row: FileRow) -> FilePicture:
    folder = relative_name(row.text("filepath"), row.where)
    images = find_file(data, f"{folder}", f"images/{folder}", source=COCO_IMAGES)
    return picture_in(images, row.text("filename"))


def _required(captions: list[str], row: FileRow) -> list[str]:
    if not captions:
        raise DataError(f"{row.where} must have at least one caption, it has none")
    return captions
