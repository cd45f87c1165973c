"""Reads MIMIC-CXR as PhysioNet publishes it: a list of pictures, and reports with sections.

Source: physionet.org/content/mimic-cxr/2.0.0 and mimic-cxr-jpg/2.0.0; section names as in
MIT-LCP/mimic-cxr `txt/section_parser.py`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from paligemma.errors import DataError
from paligemma.example import Example
from paligemma.tasks.reading.files import FilePicture, find_file, read_lines
from paligemma.tasks.reading.formats import read_format
from paligemma.tasks.reading.rows import of_split

logger = logging.getLogger(__name__)

MIMIC = "physionet.org/content/mimic-cxr (mimic-cxr-reports.zip, after credentialing)"
MIMIC_JPG = "physionet.org/content/mimic-cxr-jpg (after credentialing)"
MIMIC_SPLITS = {"test": "test", "validate": "validate", "train": "train"}
MAX_REPORT_BYTES = 1 << 20
# What RadGraph's network finds in the answers of one model and in the true reports.
GRAPHS_FILE = "mimic-cxr-graphs.jsonl"

_COLUMNS = ("dicom_id", "study_id", "subject_id", "split")
_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z ()/,&-]{1,60}):(?=\s|$)", re.MULTILINE)
_NAMES = {
    "indication": (
        "INDICATION",
        "REASON FOR EXAM",
        "REASON FOR EXAMINATION",
        "CLINICAL INDICATION",
        "HISTORY",
        "CLINICAL HISTORY",
        "CLINICAL INFORMATION",
    ),
    "findings": ("FINDINGS", "FINDING"),
    "impression": ("IMPRESSION", "IMPRESSIONS", "CONCLUSION"),
}
_PLACE = re.compile(r"\{(findings|impression)\}")
_DICOM, _NUMBER = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{8}){4}"), re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True, kw_only=True)
class ReportFormat:
    """How reports are asked for and written; unpublished in detail, so this is ours.

    Attributes:
        prompt: {indication} stands for that section.
        no_indication: stands there where a report has none.
        target: {findings} and {impression} stand for those sections, empty where one is missing.
        one_line: line breaks and runs of blank space become single spaces.
    """

    prompt: str = "{indication}"
    no_indication: str = "unknown"
    target: str = "{findings} {impression}"
    one_line: bool = True


def read_mimic_cxr(data: Path, split: str) -> Iterator[Example]:
    """One example a picture; pictures of one patient are one unit.

    References name the file of graphs, if any comes.
    Studies with neither findings nor an impression are left out and counted in the log.
    """
    theirs = of_split(MIMIC_SPLITS, split, "mimic-cxr")
    names = [f"mimic-cxr-2.{minor}.0-split.csv{end}" for minor in (0, 1) for end in (".gz", "")]
    path = find_file(data, *names, source=MIMIC_JPG)
    reports = find_file(data, "mimic-cxr-reports/files", "files", source=MIMIC)
    pictures = find_file(data, "files", source=MIMIC_JPG)
    style = read_format(data, "mimic-cxr", ReportFormat())
    num_left_out = 0
    read: tuple[str, dict[str, str]] | None = None  # pictures of a study follow one another
    for where, row in _rows(path):
        if row["split"] != theirs:
            continue
        subject, study, dicom = row["subject_id"], row["study_id"], row["dicom_id"]
        folder = f"p{subject[:2]}/p{subject}"
        if read is None or read[0] != study:
            read = study, report_sections(_read_report(reports / folder / f"s{study}.txt", where))
        sections = {name: _spaced(text, style) for name, text in read[1].items()}
        if not sections["findings"] and not sections["impression"]:
            num_left_out += 1
            continue
        report = _filled(style.target, sections)
        indication = sections["indication"] or style.no_indication
        yield Example(
            id=dicom,
            prefix=style.prompt.replace("{indication}", indication),
            pictures=(FilePicture(path=pictures / folder / f"s{study}" / f"{dicom}.jpg"),),
            references={
                "report": report,
                "study_id": study,
                "graphs": str(data / GRAPHS_FILE),
            },
            targets=(report,),
            unit=subject,
        )
    if num_left_out:
        logger.warning(
            "mimic-cxr: %d pictures left out, whose reports have neither findings nor impression",
            num_left_out,
        )


def report_sections(text: str) -> dict[str, str]:
    """ "indication", "findings" and "impression" of a report, "" where it has none.

    A section goes from its heading, capitals with a colon at the start of a line, to the next one.
    Of several names for one section the first that holds something counts.
    """
    parts = _HEADING.split(text)
    said: dict[str, str] = {}
    for heading, body in zip(parts[1::2], parts[2::2], strict=True):
        name = " ".join(heading.split())
        said[name] = f"{said.get(name, '')}\n{body.strip()}".strip()
    return {
        section: next((said[name] for name in names if said.get(name)), "")
        for section, names in _NAMES.items()
    }


def _filled(target: str, sections: Mapping[str, str]) -> str:
    return _PLACE.sub(lambda place: sections[place[1]], target).strip()


def _spaced(text: str, style: ReportFormat) -> str:
    return " ".join(text.split()) if style.one_line else text


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The list of pictures, packed or not; identifiers are checked, since they name files."""
    header: list[str] | None = None
    for number, line in read_lines(path):
        fields = [one.strip().strip('"') for one in line.decode("utf-8", "replace").split(",")]
        where = f"{path}, row {number}"
        if header is None:
            header = fields
            if missing := [name for name in _COLUMNS if name not in header]:
                raise DataError(
                    f"{path} must have the columns {', '.join(_COLUMNS)}; {', '.join(missing)} "
                    "missing"
                )
            continue
        if len(fields) != len(header):
            raise DataError(f"{where} must have {len(header)} fields, got {len(fields)}")
        row = dict(zip(header, fields, strict=True))
        numbers = _NUMBER.fullmatch(row["study_id"]) and _NUMBER.fullmatch(row["subject_id"])
        if not numbers or not _DICOM.fullmatch(row["dicom_id"]):
            raise DataError(
                f"{where}: subject_id and study_id must be numbers and dicom_id five groups of "
                f"eight hexadecimal digits, got {str(row)[:160]}"
            )
        yield where, row


def _read_report(path: Path, where: str) -> str:
    try:
        if path.stat().st_size > MAX_REPORT_BYTES:
            raise DataError(f"a report may have {MAX_REPORT_BYTES} bytes, {path} has more")
        return path.read_text(encoding="utf-8", errors="strict")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{where}: the report {path} cannot be read ({error}); unpack {MIMIC}"
        ) from error
