"""Radiology reports (MIMIC-CXR) and spatial statements (VSR), which PaliGemma 2 added.

Prompts are unpublished in their details; ours stand in `ReportFormat` and `StatementFormat`, and
`{task}-format.json` in the data folder changes them.
Source: arXiv:2412.03555 sections 4.7 and 4.8, appendix B.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from paligemma.errors import DataError
from paligemma.example import Asking, Example, Prediction
from paligemma.metrics.measure import Measure
from paligemma.processing.resize import BILINEAR_ANTIALIAS
from paligemma.tasks.captions.mimic import (
    GRAPHS_FILE,
    MIMIC,
    MIMIC_JPG,
    MIMIC_SPLITS,
    ReportFormat,
    read_mimic_cxr,
)
from paligemma.tasks.reading.files import (
    FilePicture,
    find_file,
    read_json_lines,
    value,
)
from paligemma.tasks.reading.formats import format_file, read_format
from paligemma.tasks.reading.rows import of_split
from paligemma.tasks.task import NeededFile, PublishedKey, Task

VSR = "github.com/cambridgeltl/visual-spatial-reasoning (data/splits)"
COCO_2017 = "cocodataset.org (COCO 2017, training and validation set in one folder or two)"
VSR_KINDS = ("zeroshot", "random")
_VSR_SPLITS = {"test": "test", "dev": "dev", "train": "train"}
_VSR_FOLDERS = ("images", "train2017", "val2017", "images/train2017", "images/val2017")
_STATEMENT = "{caption}"


@dataclass(frozen=True, kw_only=True)
class StatementFormat:
    """How statements are asked about; by analogy with NLVR2, since it is unpublished."""

    prompt: str = "answer en {caption}"


def read_vsr(data: Path, split: str, *, kind: str) -> Iterator[Example]:
    """VSR: one statement a line, true or false of its picture.

    Args:
        data: folder with `splits/{kind}/{split}.jsonl` and COCO's pictures.
        split: "test", "dev" or "train".
        kind: "zeroshot" or "random".
    """
    name = f"vsr-{kind}"
    theirs = of_split(_VSR_SPLITS, split, name)
    file = f"{kind}/{theirs}.jsonl"
    path = find_file(data, f"splits/{file}", f"data/splits/{file}", file, source=VSR)
    style = read_format(data, name, StatementFormat())
    if _STATEMENT not in style.prompt:
        raise DataError(f"the prompt of {name} must hold {_STATEMENT}, got {style.prompt!r}")
    folders = [Path(data) / folder for folder in _VSR_FOLDERS]
    for number, row in read_json_lines(path):
        where = f"{path}, row {number}"
        image = Path(value(row, "image", str, where)).name
        label = value(row, "label", int, where)
        if label not in (0, 1):
            raise DataError(f"{where}: label must be 1 (true) or 0 (false), got {label}")
        places = [folder / image for folder in folders]
        answer = str(bool(label))
        relation = row.get("relation")
        yield Example(
            id=str(number),
            prefix=style.prompt.replace(_STATEMENT, value(row, "caption", str, where)),
            pictures=(FilePicture(path=next((p for p in places if p.is_file()), places[0])),),
            references=answer,
            targets=(answer,),
            slices={"relation": relation} if isinstance(relation, str) else {},
            unit=image,
        )


def score_vsr(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """Exact match with `True` or `False`."""
    from paligemma.metrics.answers import exact_match_measures

    return exact_match_measures(
        [one.text for one in predictions], [one.references for one in examples]
    )


def score_reports(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """CIDEr, BLEU-4 and ROUGE-L; RadGraph F1 at every level where a file gives graphs.

    The file has one object a line: `id`, the `report` that was answered, and the graphs of
    `metrics.radgraph`: `prediction` of that answer and `reference` of the true report.

    Raises:
        DataError: graphs of some reports only, or of other answers than these.
    """
    from paligemma.metrics.caption import caption_measures

    texts = [one.text for one in predictions]
    measures = caption_measures(
        texts, [[one.references["report"]] for one in examples], bleu=True, rouge=True
    )
    path = Path(examples[0].references.get("graphs", "")) if examples else Path()
    if not path.is_file():
        return measures
    from paligemma.metrics.radgraph import radgraph_measures

    pairs = _graphs(path, {one.id: one.text for one in predictions})
    ours, truth = zip(*(pairs[one.id] for one in examples), strict=True)
    return [*measures, *radgraph_measures(ours, truth)]


def _graphs(path: Path, answers: Mapping[str, str]) -> dict[str, tuple[Any, Any]]:
    """Graphs of the answer and of the true report, by example id."""
    found: dict[str, tuple[Any, Any]] = {}
    for number, row in read_json_lines(path):
        where = f"{path}, row {number}"
        name = value(row, "id", str, where)
        if name not in answers:
            continue
        report = value(row, "report", str, where)
        if report.strip() != answers[name].strip():
            raise DataError(
                f"{where} has the graph of another report of {name}: {report[:80]!r}, the answer "
                f"is {answers[name][:80]!r}; make the graphs of these answers or move the file away"
            )
        found[name] = _graph(row, "prediction", where), _graph(row, "reference", where)
    if missing := [name for name in answers if name not in found]:
        raise DataError(
            f"{path} must hold the graphs of every report, but {len(missing)} are missing, the "
            f"first of {missing[0]}; add them or move the file away"
        )
    return found


def _graph(row: Any, name: str, where: str) -> dict[str, Any]:
    from paligemma.metrics.radgraph import graph_facts

    graph = value(row, name, dict, where)
    try:
        graph_facts(graph, "complete")
    except DataError as error:
        raise DataError(f"{where}, {name}: {error}") from error
    return graph


_MIMIC_METRICS = {
    "cider": "CIDEr",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "radgraph_partial": "RadGraph F1",
}
_VSR_PUBLISHED = {"zeroshot": "zero-shot split test", "random": "random split test"}


def _vsr_task(kind: str) -> Task:
    name = f"vsr-{kind}"
    return Task(
        name=name,
        title=f"VSR, {'zero-shot' if kind == 'zeroshot' else 'random'} split",
        family="answers",
        splits=tuple(_VSR_SPLITS),
        headline="accuracy",
        asking=Asking(text_len=64, max_new_tokens=18, resize_method=BILINEAR_ANTIALIAS),
        files=(
            NeededFile(
                path=f"splits/{kind}/{{split}}.jsonl",
                source=VSR,
                fields="image, caption, label, relation",
            ),
            NeededFile(path="images/*.jpg", source=COCO_2017),
            NeededFile(path=format_file(name), source="optional, written by you", fields="prompt"),
        ),
        read=partial(read_vsr, kind=kind),
        score=score_vsr,
        published=(
            PublishedKey(
                measure="accuracy",
                task="VSR",
                split=_VSR_PUBLISHED[kind],
                metric="accuracy",
                our_split="test",
            ),
        ),
        traps=(
            "The data changed in March 2023; older figures are of other splits.",
            "Labels are 1 and 0 in the files, `True` and `False` in answers, case included.",
            "Zero-shot here means that no concept of the test is in the training split; the "
            "published models were trained on that split.",
        ),
    )


TASKS: tuple[Task, ...] = (
    Task(
        name="mimic-cxr",
        title="MIMIC-CXR reports",
        family="captions",
        splits=tuple(MIMIC_SPLITS),
        headline="cider",
        # Length in tokens is unpublished; the longest reports of the test have about 400.
        asking=Asking(text_len=768, max_new_tokens=512, resize_method=BILINEAR_ANTIALIAS),
        files=(
            NeededFile(
                path="mimic-cxr-2.0.0-split.csv.gz",
                source=MIMIC_JPG,
                fields="dicom_id, study_id, subject_id, split",
            ),
            NeededFile(
                path="files/p1X/p{subject}/s{study}.txt",
                source=MIMIC,
                fields="INDICATION, FINDINGS, IMPRESSION",
            ),
            NeededFile(path="files/p1X/p{subject}/s{study}/{dicom}.jpg", source=MIMIC_JPG),
            NeededFile(
                path=format_file("mimic-cxr"),
                source="optional, written by you: how your model was taught",
                fields=", ".join(ReportFormat.__dataclass_fields__),
            ),
            NeededFile(
                path=GRAPHS_FILE,
                source="optional, written by you with RadGraph's network",
                fields="id, report, prediction, reference",
            ),
        ),
        read=read_mimic_cxr,
        score=score_reports,
        published=tuple(
            PublishedKey(
                measure=measure,
                task="MIMIC-CXR report generation",
                split="test",
                metric=metric,
                our_split="test",
            )
            for measure, metric in _MIMIC_METRICS.items()
        ),
        traps=(
            "For PaliGemma 2 an LLM took mentions of earlier studies out of the reports; that is "
            "not done here, so figures do not quite compare.",
            "RadGraph F1 needs graphs of all reports, from a network that is had separately and "
            f"whose graphs go into {GRAPHS_FILE}; which of its levels was published is not said, "
            "the partial one is compared.",
            "Every picture of a study is an example with the study's report.",
        ),
    ),
    *(_vsr_task(kind) for kind in VSR_KINDS),
)
