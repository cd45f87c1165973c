"""MIMIC-CXR as PhysioNet publishes it: a list of pictures, and reports with sections.

The prompt is unpublished in its details; ours stands in `ReportFormat`, and `mimic-cxr-format.json`
in the data folder changes it.
Source: physionet.org/content/mimic-cxr/2.0.0 and mimic-cxr-jpg/2.0.0; section names as in
MIT-LCP/mimic-cxr `txt/section_parser.py`; arXiv:2412.03555 section 4.7.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paligemma.errors import DataError
from paligemma.example import Example, Prediction
from paligemma.metrics.measure import Measure
from paligemma.tasks.reading.file_rows import FileRow, read_csv, read_json_lines
from paligemma.tasks.reading.files import find_file, read_text
from paligemma.tasks.reading.formats import read_format
from paligemma.tasks.reading.pictures import picture_in
from paligemma.tasks.scoring import texts_of

logger = logging.getLogger(__name__)

MIMIC = "physionet.org/content/mimic-cxr (mimic-cxr-reports.zip, after credentialing)"
MIMIC_JPG = "physionet.org/content/mimic-cxr-jpg (after credentialing)"
MIMIC_SPLITS = ("test", "validate", "train")
MAX_REPORT_BYTES = 1 << 20
# Graphs that RadGraph's network finds in the answers of one model and in the true reports.
GRAPHS_FILE = "mimic-cxr-graphs.jsonl"

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
    """Prompt and layout of a report; unpublished in detail, so these are ours.

    Attributes:
        prompt: prompt, in which {indication} stands for that section.
        no_indication: text for a report without an indication.
        target: answer, in which {findings} and {impression} stand for those sections, empty where
            one is missing.
        one_line: whether line breaks and runs of blank space become single spaces.
    """

    prompt: str = "{indication}"
    no_indication: str = "unknown"
    target: str = "{findings} {impression}"
    one_line: bool = True


def read_mimic_cxr(data: Path, split: str) -> Iterator[Example]:
    """Read one example a picture; pictures of one patient are one unit.

    References name the file of graphs, which may be absent. Studies with neither findings nor an
    impression are left out and counted in the log.
    """
    names = [f"mimic-cxr-2.{minor}.0-split.csv{end}" for minor in (0, 1) for end in (".gz", "")]
    path = find_file(data, *names, source=MIMIC_JPG)
    reports = find_file(data, "mimic-cxr-reports/files", "files", source=MIMIC)
    pictures = find_file(data, "files", source=MIMIC_JPG)
    style = read_format(data, "mimic-cxr", ReportFormat())
    num_left_out = 0
    sections: dict[str, str] = {}
    previous = ""  # pictures of a study follow one another
    for row in read_csv(path, ("dicom_id", "study_id", "subject_id", "split")):
        if row.text("split") != split:
            continue
        subject, study, dicom = _identifiers(row)
        folder = f"p{subject[:2]}/p{subject}"
        if study != previous:
            report = reports / folder / f"s{study}.txt"
            text = read_text(report, max_bytes=MAX_REPORT_BYTES, source=MIMIC)
            sections, previous = report_sections(text), study
            if style.one_line:
                sections = {name: " ".join(one.split()) for name, one in sections.items()}
        if not sections["findings"] and not sections["impression"]:
            num_left_out += 1
            continue
        answer = _filled(style.target, sections)
        indication = sections["indication"] or style.no_indication
        yield Example(
            id=dicom,
            prefix=style.prompt.replace("{indication}", indication),
            pictures=(picture_in(pictures, f"{folder}/s{study}/{dicom}.jpg"),),
            references={"report": answer, "study_id": study, "graphs": str(data / GRAPHS_FILE)},
            targets=(answer,),
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


def _identifiers(row: FileRow) -> list[str]:
    """Read subject, study and picture, and check them, since they name files."""
    subject, study, dicom = (row.text(name) for name in ("subject_id", "study_id", "dicom_id"))
    if not (_NUMBER.fullmatch(subject) and _NUMBER.fullmatch(study) and _DICOM.fullmatch(dicom)):
        raise row.error(
            "subject_id and study_id must be numbers and dicom_id five groups of eight "
            f"hexadecimal digits, got {subject!r:.40}, {study!r:.40} and {dicom!r:.60}"
        )
    return [subject, study, dicom]


def score_reports(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """Compute CIDEr, BLEU-4, ROUGE-L, and RadGraph F1 where a file gives graphs.

    The file has one object a line: `id`, the `report` that was answered, and the graphs of
    `metrics.radgraph`: `prediction` of that answer and `reference` of the true report.

    Raises:
        DataError: graphs of some reports only, or of other answers than these.
    """
    from paligemma.metrics.caption import caption_measures

    references = [[one.references["report"]] for one in examples]
    measures = caption_measures(texts_of(predictions), references, bleu=True, rouge=True)
    path = Path(examples[0].references.get("graphs", "")) if examples else Path()
    if not path.is_file():
        return measures
    from paligemma.metrics.radgraph import radgraph_measures

    pairs = _graphs(path, {one.id: one.text for one in predictions})
    ours, truth = zip(*(pairs[one.id] for one in examples), strict=True)
    return [*measures, *radgraph_measures(ours, truth)]


def _graphs(path: Path, answers: Mapping[str, str]) -> dict[str, tuple[Any, Any]]:
    """Read the graphs of answers and of true reports, by example id."""
    found: dict[str, tuple[Any, Any]] = {}
    for row in read_json_lines(path):
        name = row.text("id")
        if name not in answers:
            continue
        report = row.text("report")
        if report.strip() != answers[name].strip():
            raise DataError(
                f"{row.where} has the graph of another report of {name}: {report[:80]!r}, the "
                f"answer is {answers[name][:80]!r}; make the graphs of these answers or move the "
                "file away"
            )
        found[name] = _graph(row, "prediction"), _graph(row, "reference")
    if missing := [name for name in answers if name not in found]:
        raise DataError(
            f"{path} must hold the graphs of every report, but {len(missing)} are missing, the "
            f"first of {missing[0]}; add them or move the file away"
        )
    return found


def _graph(row: FileRow, name: str) -> dict[str, Any]:
    from paligemma.metrics.radgraph import graph_facts

    graph = row.value(name, dict)
    try:
        graph_facts(graph, "complete")
    except DataError as error:
        raise DataError(f"{row.where}, {name}: {error}") from error
    return graph
