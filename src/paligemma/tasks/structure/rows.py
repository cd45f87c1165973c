"""Pictures with structure that PaliGemma 2 was taught: scene text, tables, molecules, music.

Prompts and layouts of these tasks are unpublished; ours stand in `WordFormat`, `TableFormat`,
`MoleculeFormat` and `MusicFormat`, and `{task}-format.json` in the data folder changes them.
Source: arXiv:2412.03555 sections 4.2 to 4.5 and appendix B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from paligemma.errors import DataError
from paligemma.example import Asking, Example, Prediction
from paligemma.metrics.measure import Measure
from paligemma.processing.resize import BILINEAR_ANTIALIAS
from paligemma.tasks.reading.formats import format_file
from paligemma.tasks.structure.tables import (
    FINTABNET,
    FINTABNET_PAGES,
    PUBTABNET,
    read_fintabnet,
    read_pubtabnet,
    strip_coords,
)
from paligemma.tasks.structure.transcriptions import (
    GRANDSTAFF,
    MOLSCRIBE,
    read_grandstaff,
    read_molecules,
)
from paligemma.tasks.structure.words import (
    ICDAR15,
    TOTAL_TEXT,
    WordFormat,
    box_vertices,
    parse_words,
    read_icdar15,
    read_total_text,
)
from paligemma.tasks.task import NeededFile, PublishedKey, Task

# Figures against upright boxes around the true words carry this ending.
UPRIGHT = "/upright"
CER_WITHOUT_SPACES = "cer_without_spaces"


def score_words(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """Word spotting by the HierText protocol, against outlines and against upright boxes."""
    from paligemma.metrics.spotting import spotting_measures

    found, truth = [], []
    for example, prediction in zip(examples, predictions, strict=True):
        asked = example.references
        words = parse_words(prediction.text, WordFormat(**asked["style"]))
        found.append(
            [
                {"vertices": box_vertices(bins, asked["size_hw"]), "text": word}
                for word, bins in words
            ]
        )
        truth.append(asked["words"])
    upright = spotting_measures(found, truth, axis_aligned=True)
    return [
        *spotting_measures(found, truth),
        *(replace(one, name=f"{one.name}{UPRIGHT}") for one in upright),
    ]


def score_tables(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """S-TEDS and TEDS, GriTS-Top and GriTS-Con; places of cells are taken out first."""
    from paligemma.metrics.grits import grits_measures
    from paligemma.metrics.teds import teds_measures, wrap_table

    found = [_bare_table(strip_coords(one.text)) for one in predictions]
    truth = [one.references["html"] for one in examples]
    by_name = {
        one.name: one
        for one in (
            *teds_measures([wrap_table(one) for one in found], [wrap_table(one) for one in truth]),
            *grits_measures(found, [_well_formed(one) for one in truth]),
        )
    }
    headline = by_name.pop("teds")
    return [headline, *by_name.values()]


def _bare_table(markup: str) -> str:
    """Without the document around a table, where a model writes one."""
    start, end = markup.find("<table"), markup.rfind("</table>")
    if "<body" not in markup or start < 0:
        return markup
    return markup[start : end + len("</table>")] if end >= 0 else markup[start:]


def _well_formed(markup: str) -> str:
    """A true table as XML; a few have inline tags that are never closed."""
    from paligemma.metrics.grits import read_cells

    if read_cells(markup) is not None:
        return markup
    from lxml import etree, html

    repaired = etree.tostring(html.fragment_fromstring(markup), encoding="unicode")
    if read_cells(repaired) is None:
        raise DataError(f"a true table must be readable as XML, got {markup[:80]!r}")
    return str(repaired)


def score_molecules(
    examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[Measure]:
    """Full match of canonical SMILES."""
    from paligemma.metrics.molecules import molecule_measures

    return molecule_measures(
        [one.text for one in predictions], [one.references for one in examples]
    )


def score_music(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """Error rates of characters (with and without spaces), symbols and lines."""
    from paligemma.metrics.music import omr_measures, prepare_kern

    truth = [one.references["kern"] for one in examples]
    found = [
        prepare_kern(one.text) if example.references["clean"] else one.text
        for example, one in zip(examples, predictions, strict=True)
    ]
    of_then = [
        replace(one, name=CER_WITHOUT_SPACES)
        for one in omr_measures(found, truth, cer="publication_era")
        if one.name == "cer"
    ]
    return [*of_then, *omr_measures(found, truth)]


def _asking(length: int, *, pad_to_square: bool) -> Asking:
    return Asking(
        text_len=length,
        max_new_tokens=length,
        resize_method=BILINEAR_ANTIALIAS,
        pad_to_square=pad_to_square,
    )


def _format(task: str, fields: str) -> NeededFile:
    return NeededFile(
        path=format_file(task),
        source="optional, written by you: how your model was taught",
        fields=fields,
    )


def _published(task: str, split: str, ours: str, **metrics: str) -> tuple[PublishedKey, ...]:
    return tuple(
        PublishedKey(measure=measure, task=task, split=split, metric=metric, our_split=ours)
        for measure, metric in metrics.items()
    )


_WORDS: dict[str, Any] = {
    "family": "structure",
    "splits": ("test", "train"),
    "headline": "e2e_f1",
    "asking": _asking(2048, pad_to_square=False),
    "score": score_words,
}
_WORD_METRICS = {"e2e_precision": "precision", "e2e_recall": "recall", "e2e_f1": "F1"}
_WORD_FIELDS = "prompt, text_first, between, separator"
_WORD_TRAPS = (
    "Text must be equal to the letter; the data set's own scripts ignore case and some signs, so "
    "their figures do not compare.",
    "The model writes upright boxes; whether the published figures compare them with outlines or "
    f"with upright boxes is not said, so both are printed (the latter end in {UPRIGHT}).",
    "Prompt and layout of the published model are unknown.",
)
_TABLES: dict[str, Any] = {
    "family": "structure",
    "headline": "teds",
    "asking": _asking(4096, pad_to_square=True),
    "score": score_tables,
}
_TABLE_METRICS = {
    "s_teds": "S-TEDS",
    "teds": "TEDS",
    "grits_top": "GriTS-Top",
    "grits_con": "GriTS-Con",
}
_TABLE_TRAPS = (
    "Places of cells (`coords`) are taken out before scoring.",
    "Pictures are padded to a square with white; coordinates are of the square.",
    "`th` is another tag than `td` to TEDS.",
    "Prompt, order of the coordinates and padding side of the published model are unknown.",
)

TASKS: tuple[Task, ...] = (
    Task(
        name="icdar15",
        title="ICDAR'15 Incidental",
        files=(
            NeededFile(
                path="Challenge4_Test_Task4_GT/gt_img_{n}.txt",
                source=ICDAR15,
                fields="x1,y1,x2,y2,x3,y3,x4,y4,text",
            ),
            NeededFile(path="ch4_test_images/img_{n}.jpg", source=ICDAR15),
            _format("icdar15", _WORD_FIELDS),
        ),
        read=read_icdar15,
        published=_published(
            "text detection and recognition", "ICDAR'15 Incidental test", "test", **_WORD_METRICS
        ),
        traps=(*_WORD_TRAPS, "Files may begin with a byte-order mark; texts may hold commas."),
        **_WORDS,
    ),
    Task(
        name="total-text",
        title="Total-Text",
        files=(
            NeededFile(
                path="txt_format/Test/poly_gt_img{n}.txt",
                source=TOTAL_TEXT,
                fields="x: [[..]], y: [[..]], ornt: [..], transcriptions: [..]",
            ),
            NeededFile(path="Images/Test/img{n}.jpg", source=TOTAL_TEXT),
            _format("total-text", _WORD_FIELDS),
        ),
        read=read_total_text,
        published=_published(
            "text detection and recognition", "Total-Text test", "test", **_WORD_METRICS
        ),
        traps=(*_WORD_TRAPS, "The ground truth is read as txt; the .mat files are not read."),
        **_WORDS,
    ),
    Task(
        name="pubtabnet",
        title="PubTabNet",
        splits=("val", "train"),
        files=(
            NeededFile(
                path="PubTabNet_2.0.0.jsonl",
                source=PUBTABNET,
                fields="filename, split, imgid, html.structure.tokens, html.cells[]: tokens, bbox",
            ),
            NeededFile(path="{split}/*.png", source=PUBTABNET),
            _format("pubtabnet", "prompt, coords_order"),
        ),
        read=read_pubtabnet,
        published=_published("table structure recognition", "PubTabNet", "val", **_TABLE_METRICS),
        traps=(
            *_TABLE_TRAPS,
            "Which split the published figures are of is not said; most papers use val.",
        ),
        **_TABLES,
    ),
    Task(
        name="fintabnet",
        title="FinTabNet",
        splits=("test", "val", "train"),
        files=(
            NeededFile(
                path="FinTabNet_1.0.0_cell_{split}.jsonl",
                source=FINTABNET,
                fields="filename, split, table_id, bbox, html.structure.tokens, "
                "html.cells[]: tokens, bbox",
            ),
            NeededFile(path="pages/{company}/{year}/page_{n}.png", source=FINTABNET_PAGES),
            _format("fintabnet", "prompt, coords_order, page_dpi"),
        ),
        read=read_fintabnet,
        published=_published("table structure recognition", "FinTabNet", "test", **_TABLE_METRICS),
        traps=(
            *_TABLE_TRAPS,
            "Boxes are PDF points from the bottom left; they are turned to pixels from the top.",
            "PaliGemma 2 corrected training labels from the PDF text; that is not done here.",
        ),
        **_TABLES,
    ),
    Task(
        name="molecules",
        title="ChemDraw molecules",
        family="structure",
        splits=("test",),
        headline="full_match",
        asking=_asking(256, pad_to_square=True),
        files=(
            NeededFile(path="synthetic/chemdraw.csv", source=MOLSCRIBE, fields="file_path, SMILES"),
            _format("molecules", "prompt"),
        ),
        read=read_molecules,
        score=score_molecules,
        published=_published(
            "molecular structure recognition", "ChemDraw", "test", full_match="full match %"
        ),
        traps=(
            "Full match ignores cis and trans and keeps chirality.",
            "The prompt of the published model is unknown.",
        ),
    ),
    Task(
        name="grandstaff",
        title="GrandStaff",
        family="structure",
        splits=("test", "val", "train"),
        headline=CER_WITHOUT_SPACES,
        asking=_asking(1024, pad_to_square=True),
        files=(
            NeededFile(
                path="partitions_grandstaff/types/{split}.txt",
                source=GRANDSTAFF,
                fields="one path a line",
            ),
            NeededFile(path="grandstaff/**/*.krn, *.jpg", source=GRANDSTAFF),
            _format("grandstaff", "prompt, ending, clean, distorted"),
        ),
        read=read_grandstaff,
        score=score_music,
        published=_published(
            "music score recognition",
            "GrandStaff test",
            "test",
            **{CER_WITHOUT_SPACES: "CER %", "ser": "SER %", "ler": "LER %"},
        ),
        traps=(
            "The scorer of the time of publication left spaces out of CER; `cer` counts them, as "
            "its later version does.",
            "Rates are pooled over all scores and may exceed 100.",
            "Bar numbers are taken out on both sides; whether PaliGemma 2 did so is not said.",
        ),
    ),
)
