"""Reads captioned photographs and figures.

Source: the builders nocaps, coco35l, xm3600, textcaps and scicap in big_vision/datasets;
Karpathy's split of COCO.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from paligemma.errors import DataError
from paligemma.example import Example, Picture
from paligemma.tasks.reading.coco import COCO_IMAGES
from paligemma.tasks.reading.coco_stream import stream_lists
from paligemma.tasks.reading.examples import SourceRow, example_of, slices_of, texts_in
from paligemma.tasks.reading.file_rows import (
    FileRow,
    list_rows,
    read_json_lines,
    read_list,
    read_object,
    whole_number,
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

logger = logging.getLogger(__name__)

KARPATHY = "cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
NOCAPS = "nocaps.org (the S3 bucket nocaps)"
OPEN_IMAGES = "the S3 bucket open-images-dataset"
CROSSMODAL = "google.github.io/crossmodal-3600"
TEXTCAPS = "textvqa.org/textcaps"
SCICAP = "github.com/tingyaohsu/SciCap (scicap_data.zip)"

# The translation whose lines carry the English captions, each once.
_ENGLISH_LINES = "de"
_KARPATHY_FILE = "dataset_coco.json"
_KARPATHY_SPLITS = {
    "val": ("val", "validation"),  # as copies spell it
    "test": ("test",),
    "train": ("train", "restval"),
}
# What people have in its place: Karpathy's split as BLIP's lists, and COCO's own files.
_BLIP_FILES = ("coco_karpathy_{split}.json", "annotations/coco_karpathy_{split}.json")
_OWN_FILES = {
    split: tuple(
        f"{folder}captions_{split}{year}.json"
        for folder in ("annotations/", "")
        for year in ("2014", "2017")
    )
    for split in ("val", "test", "train")
}
_SCICAP_LIST = "List-of-Files-for-Each-Experiments/First-Sentence/No-Subfig/{split}/file_idx.json"
_SCICAP_TEXT = "1-lowercase-and-token-and-remove-figure-index"


def read_coco_captions(data: Path, split: str) -> Iterator[Example]:
    """Read COCO by Karpathy's split; "train" is train and restval together."""
    if not (Path(data) / _KARPATHY_FILE).exists():
        for names, read in ((_BLIP_FILES, _blip_captions), (_OWN_FILES[split], _own_captions)):
            found = [path for name in names if (path := data / name.format(split=split)).exists()]
            if found:
                return read(found[0], data)
    rows = _karpathy_rows(data)
    wanted = (row for row in rows if row.text("split") in _KARPATHY_SPLITS[split])
    named = ((row, _coco_picture(data, row)) for row in wanted)
    return coco_caption_examples(named, data, split)


def _blip_captions(path: Path, data: Path) -> Iterator[Example]:
    """Read Karpathy's split as BLIP has it: a list of {"image", "caption"}, or one a caption."""
    captions: dict[str, list[str]] = {}
    for row in read_list(path):
        given = [row.text("caption")] if _is_text(row, "caption") else row.texts("caption")
        name = str(relative_name(row.text("image"), row.where))
        captions.setdefault(name, []).extend(_required(given, row))
    for name, given in captions.items():
        folder, _, file = name.rpartition("/")
        number = Path(file).stem.rpartition("_")[2]
        images = find_file(data, folder, f"images/{folder}", source=COCO_IMAGES)
        yield example_of(
            _bare(number),
            CAPTION_PREFIX,
            picture=picture_in(images, file),
            answers=given,
        )


def _own_captions(path: Path, data: Path) -> Iterator[Example]:
    """Read COCO's own split, with a warning: Karpathy's cannot be known from it."""
    captions: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    for name, fields in stream_lists(path, ("images", "annotations")):
        row = FileRow(fields, f"{path}, {name}")
        if name == "images":
            names[row.identifier("id")] = row.text("file_name")
        else:
            captions.setdefault(row.identifier("image_id"), []).append(row.text("caption"))
    logger.warning(
        "%s is COCO's own split of %d pictures; published figures are of Karpathy's, which %s "
        "beside it gives",
        path,
        len(captions),
        _KARPATHY_FILE,
    )
    folder = path.stem.removeprefix("captions_")
    images = find_file(data, folder, f"images/{folder}", source=COCO_IMAGES)
    for image, given in captions.items():
        if image not in names:
            raise DataError(f"{path} captions the image {image}, which is not among its images")
        yield example_of(
            image, CAPTION_PREFIX, picture=picture_in(images, names[image]), answers=given
        )


def _is_text(row: FileRow, name: str) -> bool:
    return isinstance(row.fields.get(name), str)


def coco_caption_examples(rows: Iterator[SourceRow], data: Path, split: str) -> Iterator[Example]:
    """Make the examples of a split from rows of one picture each."""
    for row, picture in rows:
        captions = texts_in(row, "sentences", "raw")
        yield example_of(
            row.identifier("cocoid"),
            CAPTION_PREFIX,
            picture=picture,
            answers=_required(captions, row),
        )


def copied_coco_captions(rows: Iterator[SourceRow], data: Path, split: str) -> Iterator[Example]:
    """Make the examples of a copy, of the pictures of Karpathy's split where it can be known."""
    own = [
        (FileRow({**row.fields, "cocoid": _coco_number(row)}, row.where, row.number), picture)
        for row, picture in rows
        if row.fields.get("split", split) in _KARPATHY_SPLITS[split]
    ]
    gathered = [*_by_picture(iter(own), "cocoid", "sentences", "raw")]
    if own and "split" not in own[0][0]:
        gathered = _of_karpathys_split(gathered, data, split)
    yield from coco_caption_examples(iter(gathered), data, split)


def _of_karpathys_split(rows: list[SourceRow], data: Path, split: str) -> list[SourceRow]:
    """The rows of Karpathy's split, which the copy does not name; or all, with a warning."""
    if not (data / _KARPATHY_FILE).is_file():
        logger.warning(
            "%s: its %d pictures of %s are taken as Karpathy's split, which the copy does not "
            "state; put %s beside it to have them checked",
            *(data, len(rows), split, _KARPATHY_FILE),
        )
        return rows
    named = {
        row.identifier("cocoid")
        for row in _karpathy_rows(data)
        if row.text("split") in _KARPATHY_SPLITS[split]
    }
    kept = [(row, picture) for row, picture in rows if row.text("cocoid") in named]
    if len(kept) < len(named):
        logger.warning(
            "%s: the copy holds %d of the %d pictures of Karpathy's %s; figures are of these",
            *(data, len(kept), len(named), split),
        )
    return kept


def _coco_number(row: FileRow) -> str:
    """The number of a picture, which a copy may give as the name of its file."""
    name = row.identifier("cocoid")
    digits = Path(name).stem.rpartition("_")[2]
    return name if whole_number(digits) is None else _bare(digits)


def _bare(text: str) -> str:
    """A number without the zeros in front; other text as it is."""
    number = whole_number(text)
    return text if number is None else str(number)


def _by_picture(rows: Iterator[SourceRow], key: str, name: str, field: str) -> Iterator[SourceRow]:
    """One row a picture: captions that stand in rows of their own are gathered."""
    found: dict[str, tuple[FileRow, Picture, list[str]]] = {}
    for row, picture in rows:
        first = found.setdefault(row.identifier(key), (row, picture, []))
        value = row.fields.get(name)
        if isinstance(value, dict):
            value = value.get(field)
        if isinstance(value, str):
            first[2].append(value)
        elif value and not first[2]:
            first[2].extend(texts_in(row, name, field))
    for row, picture, texts in found.values():
        yield FileRow({**row.fields, name: texts}, row.where, row.number), picture


def read_nocaps(data: Path, split: str) -> Iterator[Example]:
    """Read NoCaps, which has no targets; "test" has no captions and serves a submission only."""
    return nocaps_examples(_nocaps_rows(data, split), data, split)


def nocaps_examples(rows: Iterator[SourceRow], data: Path, split: str) -> Iterator[Example]:
    """Make the examples of a split."""
    for row, picture in rows:
        yield example_of(
            row.identifier("id"),
            CAPTION_PREFIX,
            picture=picture,
            answers=_required(row.texts("captions"), row) if split == "val" else [],
            targets=(),
            slices=slices_of(row, "domain"),
        )


def _nocaps_rows(data: Path, split: str) -> Iterator[SourceRow]:
    names = {"val": "nocaps_val_4500_captions.json", "test": "nocaps_test_image_info.json"}
    path = find_file(data, names[split], source=NOCAPS)
    folder = {"val": "validation", "test": "test"}[split]
    images = find_file(data, folder, f"Images/{folder}", "images", source=OPEN_IMAGES)
    table = read_json(path)
    captions: dict[str, list[str]] = {}
    for row in list_rows(table, path, "annotations") if split == "val" else ():
        captions.setdefault(row.identifier("image_id"), []).append(row.text("caption"))
    for row in list_rows(table, path, "images"):
        own = captions.get(row.identifier("id"), [])
        whole = FileRow({**row.fields, "captions": own}, row.where, row.number)
        yield whole, picture_in(images, row.text("file_name"))


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
    rows = _xm3600_rows(data, languages_of(split, XM3600_LANGUAGES))
    return xm3600_examples(rows, data, split, tokenized=tokenized)


def xm3600_examples(
    rows: Iterator[SourceRow], data: Path, split: str, *, tokenized: bool = False
) -> Iterator[Example]:
    """Make the examples of a split; the part of a row is its language."""
    field = "caption/tokenized" if tokenized else "caption"
    for row, picture in rows:
        image, language = row.text("image/key"), row.text("part")
        yield example_of(
            f"{image}_{language}",
            caption_prefix(language),
            picture=picture,
            answers=_required(row.texts(field), row),
            targets=(),
            slices={"language": language},
            unit=image,
        )


def _xm3600_rows(data: Path, languages: Sequence[str]) -> Iterator[SourceRow]:
    path = find_file(data, "captions.jsonl", source=CROSSMODAL)
    images = find_file(data, "images", source=CROSSMODAL)
    for language in languages:
        for row in read_json_lines(path):
            image = row.text("image/key")
            given = {**row.value(language, dict), "image/key": image, "part": language}
            yield FileRow(given, f"{row.where}, {language}"), picture_in(images, f"{image}.jpg")


def read_textcaps(data: Path, split: str) -> Iterator[Example]:
    """Read TextCaps, the captions of one picture together; "test" has none."""
    folders = {"val": "train_images", "train": "train_images", "test": "test_images"}
    folder = folders[split]
    path = find_file(data, f"TextCaps_0.1_{split}.json", source=TEXTCAPS)
    images = find_file(data, folder, source=TEXTCAPS)
    named = (
        (_captioned(row, split), picture_in(images, f"{row.text('image_name')}.jpg"))
        for row in read_list(path, "data")
    )
    return textcaps_examples(named, data, split)


def textcaps_examples(rows: Iterator[SourceRow], data: Path, split: str) -> Iterator[Example]:
    """Make the examples of a split from the captions of each picture, of rows or in a list."""
    for row, picture in _by_picture(rows, "image_id", "captions", "caption"):
        given = [] if split == "test" else _required(row.texts("captions"), row)
        yield example_of(
            row.identifier("image_id"),
            CAPTION_PREFIX,
            picture=picture,
            answers=given,
            targets=[lower_ascii(text) for text in given],
        )


def _captioned(row: FileRow, split: str) -> FileRow:
    if split == "test":
        return row
    return FileRow({**row.fields, "captions": row.text("caption_str")}, row.where, row.number)


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
    return read_list(find_file(data, _KARPATHY_FILE, source=KARPATHY), "images")


def _coco_picture(data: Path, row: FileRow) -> FilePicture:
    folder = relative_name(row.text("filepath"), row.where)
    images = find_file(data, f"{folder}", f"images/{folder}", source=COCO_IMAGES)
    return picture_in(images, row.text("filename"))


def _required(captions: list[str], row: FileRow) -> list[str]:
    if not captions:
        raise DataError(f"{row.where} must have at least one caption, it has none")
    return captions
