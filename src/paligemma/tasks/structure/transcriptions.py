"""Reads pictures with transcriptions: molecules as SMILES, piano scores as kern.

Source: github.com/thomas0809/MolScribe (data/real, synthetic/chemdraw.csv);
sites.google.com/view/multiscore-project/datasets (GrandStaff) and the partitions of
github.com/antoniorv6/SMT.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from paligemma.errors import DataError
from paligemma.example import Example
from paligemma.metrics.music import prepare_kern
from paligemma.tasks.reading.examples import example_of
from paligemma.tasks.reading.file_rows import read_csv
from paligemma.tasks.reading.files import find_file, read_lines, read_text, relative_name
from paligemma.tasks.reading.formats import read_format
from paligemma.tasks.reading.pictures import picture_in, require_folder_of

MOLSCRIBE = "github.com/thomas0809/MolScribe, synthetic benchmarks (synthetic/chemdraw.csv)"
GRANDSTAFF = (
    "sites.google.com/view/multiscore-project/datasets (grandstaff.tgz); partitions_grandstaff "
    "from the experiments of its authors"
)
MAX_KERN_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class MoleculeFormat:
    """Prompt of a molecule; unpublished, so this is ours."""

    prompt: str = "smiles"


@dataclass(frozen=True, kw_only=True)
class MusicFormat:
    """Prompt and comparison of a score; unpublished, so these are ours.

    Attributes:
        ending: ending of the transcription files, ".krn" or ".bekrn"; separators are taken out.
        clean: take bar numbers and outer blank space out of reference and answer.
        distorted: show the distorted pictures; published figures are of the others.
    """

    prompt: str = "kern"
    ending: str = ".krn"
    clean: bool = True
    distorted: bool = False


def read_molecules(data: Path, split: str) -> Iterator[Example]:
    """Read the ChemDraw renderings; the id is the name of the picture."""
    names = ("synthetic/chemdraw.csv", "data/synthetic/chemdraw.csv", "chemdraw.csv")
    path = find_file(data, *names, source=MOLSCRIBE)
    style = read_format(data, "molecules", MoleculeFormat())
    root: Path | None = None
    for row in read_csv(path, ("file_path", "SMILES")):
        name = relative_name(row.text("file_path").strip(), row.where)
        if root is None:
            root = require_folder_of((data, data / "data", path.parent), name, row.where)
        if not row.text("SMILES").strip():
            raise row.error("SMILES must name a molecule, got an empty field")
        yield example_of(
            name.stem, style.prompt, picture=picture_in(root, name), answers=row.text("SMILES")
        )


def read_grandstaff(data: Path, split: str) -> Iterator[Example]:
    """Read GrandStaff: one score a line of the partition's list."""
    listed = f"partitions_grandstaff/types/{split}.txt"
    names = (listed, f"Data/GrandStaff/{listed}", f"{split}.txt")
    path = find_file(data, *names, source=GRANDSTAFF)
    style = read_format(data, "grandstaff", MusicFormat())
    if style.ending not in (".krn", ".bekrn"):
        raise DataError(f"grandstaff: ending must be .krn or .bekrn, got {style.ending!r}")
    found: tuple[Path, int] | None = None
    for number, line in read_lines(path):
        where = f"{path}, row {number}"
        name = relative_name(line.decode("utf-8", "replace"), where)
        if found is None:
            found = _score_root(Path(data), name.with_suffix(style.ending), where)
        root, dropped = found
        name = PurePosixPath(*name.parts[dropped:])
        text = _read_kern(root / name.with_suffix(style.ending), style)
        stem = f"{name.stem}_distorted" if style.distorted else name.stem
        yield example_of(
            str(name.with_suffix("")),
            style.prompt,
            picture=picture_in(root, name.with_name(f"{stem}.jpg")),
            answers=text,
            references={"kern": text, "clean": style.clean},
            slices={"composer": name.parts[0]} if len(name.parts) > 1 else {},
        )


def _score_root(data: Path, name: PurePosixPath, where: str) -> tuple[Path, int]:
    """Find the folder from which the first path of a list starts, and its parts to drop.

    Lists are written from the folder of their authors, such as `Data/GrandStaff/`.
    """
    for dropped in range(min(4, len(name.parts))):
        for folder in (data / "grandstaff", data / "GrandStaff", data):
            if (folder / PurePosixPath(*name.parts[dropped:])).is_file():
                return folder, dropped
    raise DataError(
        f"{where}: {name} must lie below {data} or {data / 'grandstaff'}; unpack {GRANDSTAFF} there"
    )


def _read_kern(path: Path, style: MusicFormat) -> str:
    text = read_text(path, max_bytes=MAX_KERN_BYTES, source=GRANDSTAFF)
    text = text.replace("·", "").replace("@", "") if style.ending == ".bekrn" else text
    text = prepare_kern(text) if style.clean else text
    if not text.strip():
        raise DataError(f"a score must hold some symbols, {path} is empty")
    return text
