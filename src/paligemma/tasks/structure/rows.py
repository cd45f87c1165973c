"""Pictures with structure that PaliGemma 2 was trained on: scene text, tables, molecules, music.

Prompts and layouts of these tasks are unpublished; ours stand in `WordFormat`, `TableFormat`,
`MoleculeFormat` and `MusicFormat`, and `{task}-format.json` in the data folder changes them.
Source: arXiv:2412.03555 sections 4.2 to 4.5 and appendix B.
"""

from functools import partial

from paligemma.example import Asking
from paligemma.tasks.reading.formats import own_format
from paligemma.tasks.structure import scores, tables, transcriptions, words
from paligemma.tasks.task import NeededFile, PublishedKey, Task, files_from, published_keys


def _asking(length: int, *, pad_to_square: bool) -> Asking:
    return Asking(text_len=length, max_new_tokens=length, pad_to_square=pad_to_square)


def _published(
    task: str, split: str, our_split: str, metrics: dict[str, str]
) -> tuple[PublishedKey, ...]:
    return tuple(
        key
        for measure, metric in metrics.items()
        for key in published_keys(measure, metric, (task, split, our_split))
    )


_words = partial(
    Task,
    family="structure",
    splits=("test", "train"),
    headline="e2e_f1",
    asking=_asking(2048, pad_to_square=False),
    score=scores.score_words,
)
_WORD_RECORDS = "text detection and recognition"
_WORD_METRICS = {"e2e_precision": "precision", "e2e_recall": "recall", "e2e_f1": "F1"}
_WORD_FIELDS = "prompt, text_first, between, separator"
_WORD_TRAPS = (
    "Text must be equal to the letter; the data set's own scripts ignore case and some signs, so "
    "their figures do not compare.",
    "The model writes upright boxes; no source states whether the published figures compare them "
    f"with outlines or with upright boxes ({scores.UPRIGHT}), so the report has both.",
    "Prompt and layout of the published model are unknown.",
)
_tables = partial(
    Task,
    family="structure",
    headline="teds",
    asking=_asking(4096, pad_to_square=True),
    score=scores.score_tables,
)
_TABLE_RECORDS = "table structure recognition"
_TABLE_METRICS = {
    "s_teds": "S-TEDS",
    "teds": "TEDS",
    "grits_top": "GriTS-Top",
    "grits_con": "GriTS-Con",
}
_TABLE_TRAPS = (
    "Scoring ignores the places of cells (`coords`).",
    "Pictures are padded to a square with white; coordinates are of the square.",
    "`th` is another tag than `td` to TEDS.",
    "Prompt, order of the coordinates and padding side of the published model are unknown.",
    "Boxes of a hub copy are taken as pixels of its picture, from the left upper corner.",
)

TASKS: tuple[Task, ...] = (
    _words(
        name="icdar15",
        title="ICDAR'15 Incidental",
        files=files_from(
            words.ICDAR15,
            ("Challenge4_Test_Task4_GT/gt_img_{n}.txt", "x1,y1,x2,y2,x3,y3,x4,y4,text"),
            "ch4_test_images/img_{n}.jpg",
            own_format("icdar15", _WORD_FIELDS),
        ),
        reader=words.read_icdar15,
        published=_published(_WORD_RECORDS, "ICDAR'15 Incidental test", "test", _WORD_METRICS),
        traps=(*_WORD_TRAPS, "Files may begin with a byte-order mark; texts may hold commas."),
    ),
    _words(
        name="total-text",
        title="Total-Text",
        files=files_from(
            words.TOTAL_TEXT,
            (
                "txt_format/Test/poly_gt_img{n}.txt",
                "x: [[..]], y: [[..]], ornt: [..], transcriptions: [..]",
            ),
            "Images/Test/img{n}.jpg",
            own_format("total-text", _WORD_FIELDS),
        ),
        reader=words.read_total_text,
        published=_published(_WORD_RECORDS, "Total-Text test", "test", _WORD_METRICS),
        traps=(*_WORD_TRAPS, "The reader takes the ground truth as txt, not as .mat files."),
    ),
    _tables(
        name="pubtabnet",
        title="PubTabNet",
        splits=("val", "train"),
        files=files_from(
            tables.PUBTABNET,
            (
                "PubTabNet_2.0.0.jsonl",
                "filename, split, imgid, html.structure.tokens, html.cells[]: tokens, bbox",
            ),
            "{split}/*.png",
            own_format("pubtabnet", "prompt, coords_order"),
        ),
        reader=tables.read_pubtabnet,
        from_rows=partial(tables.copied_tables, task="pubtabnet"),
        published=_published(_TABLE_RECORDS, "PubTabNet", "val", _TABLE_METRICS),
        traps=(
            *_TABLE_TRAPS,
            "No source states the split of the published figures; most papers use val.",
        ),
    ),
    _tables(
        name="fintabnet",
        title="FinTabNet",
        splits=("test", "val", "train"),
        files=(
            NeededFile(
                "FinTabNet_1.0.0_cell_{split}.jsonl",
                tables.FINTABNET,
                fields="filename, split, table_id, bbox, html.structure.tokens, "
                "html.cells[]: tokens, bbox",
            ),
            NeededFile("pages/{company}/{year}/page_{n}.png", tables.FINTABNET_PAGES),
            own_format("fintabnet", "prompt, coords_order, page_dpi"),
        ),
        reader=tables.read_fintabnet,
        from_rows=partial(tables.copied_tables, task="fintabnet"),
        published=_published(_TABLE_RECORDS, "FinTabNet", "test", _TABLE_METRICS),
        traps=(
            *_TABLE_TRAPS,
            "Boxes are PDF points from the bottom left; they are turned to pixels from the top.",
            "PaliGemma 2 corrected training labels from the PDF text; the labels here are "
            "uncorrected.",
        ),
    ),
    Task(
        name="molecules",
        title="ChemDraw molecules",
        family="structure",
        splits=("test",),
        headline="full_match",
        asking=_asking(256, pad_to_square=True),
        files=(
            NeededFile(
                "synthetic/chemdraw.csv", transcriptions.MOLSCRIBE, fields="file_path, SMILES"
            ),
            own_format("molecules", "prompt"),
        ),
        reader=transcriptions.read_molecules,
        score=scores.score_molecules,
        published=published_keys(
            "full_match", "full match %", ("molecular structure recognition", "ChemDraw", "test")
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
        headline=scores.CER_WITHOUT_SPACES,
        asking=_asking(1024, pad_to_square=True),
        files=files_from(
            transcriptions.GRANDSTAFF,
            ("partitions_grandstaff/types/{split}.txt", "one path a line"),
            "grandstaff/**/*.krn, *.jpg",
            own_format("grandstaff", "prompt, ending, clean, distorted"),
        ),
        reader=transcriptions.read_grandstaff,
        score=scores.score_music,
        published=_published(
            "music score recognition",
            "GrandStaff test",
            "test",
            {scores.CER_WITHOUT_SPACES: "CER %", "ser": "SER %", "ler": "LER %"},
        ),
        traps=(
            "The scorer at the time of publication left spaces out of CER; `cer` counts them, as "
            "its later version does.",
            "Rates are pooled over all scores and may exceed 100.",
            "Scoring drops bar numbers on both sides; no source states whether PaliGemma 2 did so.",
        ),
    ),
)
