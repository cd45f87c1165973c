"""Writes the sections of docs/eval-*.md from the rows of the catalogue.

What people write stands above the first heading of the third level of a page; everything from there
on is generated. After a change of a row run `PYTHONPATH=src python tests/eval_pages.py`.
"""

from __future__ import annotations

from pathlib import Path

from paligemma.tasks.catalog import tasks
from paligemma.tasks.reading.hub_columns import needed_columns, optional_columns
from paligemma.tasks.task import Task

DOCS = Path(__file__).parents[1] / "docs"
# Family of a row -> page; two-picture questions stand with the other questions.
PAGE_OF = {
    "captions": "eval-captions.md",
    "answers": "eval-answers.md",
    "pairs": "eval-answers.md",
    "documents": "eval-documents.md",
    "remote-sensing": "eval-remote-sensing.md",
    "video": "eval-video.md",
    "grounding": "eval-grounding.md",
    "structure": "eval-structure.md",
    "robustness": "eval-robustness.md",
    "scenes": "evaluation.md",
    "own": "eval-own.md",
}
PAGES = sorted(set(PAGE_OF.values()))
_MAX_SPLITS = 6


def written(name: str) -> str:
    """The part of a page that people write."""
    text, heading, _ = (DOCS / name).read_text(encoding="utf-8").partition("\n### ")
    assert heading, f"{name} holds no benchmark"
    return text


def generated(name: str) -> str:
    """The sections of a page, one a benchmark, in the order of the catalogue."""
    own = [task for task in tasks().values() if PAGE_OF[task.family] == name]
    return "\n".join(section_of(task) for task in own)


def section_of(task: Task) -> str:
    """How a benchmark is asked, what lies on disk, and what people get wrong."""
    asking = task.asking
    splits = [f"`{split}`" for split in task.splits]
    if len(splits) > _MAX_SPLITS:
        splits = [*splits[: _MAX_SPLITS - 1], f"and {len(splits) - _MAX_SPLITS + 1} more"]
    splits += [f"`{split}` (server)" for split in task.server_splits]
    beams = "greedy" if asking.num_beams == 1 else f"beam {asking.num_beams}"
    asked = [
        *([f"{asking.num_pictures} pictures"] if asking.num_pictures > 1 else []),
        asking.resize_method,
        *(["padded to a square"] if asking.pad_to_square else []),
        beams,
        f"at most {asking.max_new_tokens} tokens",
    ]
    lines = [f"### {task.name}", "", f"{task.title}. Measure `{task.headline}`."]
    lines += [f"Splits: {', '.join(splits)}.", f"Asked: {', '.join(asked)}."]
    if task.files:
        lines += ["", "| file | from | read |", "|---|---|---|"]
        lines += [
            f"| `{_cell(one.path)}` | {_cell(one.source)} | {_cell(one.fields)} |"
            for one in task.files
        ]
    if task.hub_copy is not None:
        optional = optional_columns(task.hub_copy)
        more = f"; read where it has them: {optional}" if optional else ""
        names = " or ".join(f"`{name}`" for name in task.hub_copy.names)
        needed = f"{needed_columns(task.hub_copy)}{more}"
        lines += ["", f"A parquet copy is read too, such as {names}; {needed}."]
    lines += ["", *(f"- {trap}" for trap in task.traps)]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    for page in PAGES:
        (DOCS / page).write_text(f"{written(page)}\n{generated(page)}", encoding="utf-8")
