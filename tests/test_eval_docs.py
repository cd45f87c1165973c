"""The pages on evaluation hold every benchmark of the catalogue, as its row has it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from paligemma.tasks.catalog import tasks
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
}
PAGES = sorted(set(PAGE_OF.values()))
_MAX_SPLITS = 6


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def section_of(task: Task) -> str:
    """What a page says of one benchmark: what is asked, what lies on disk, what goes wrong."""
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
            f"| `{cell(one.path)}` | {cell(one.source)} | {cell(one.fields)} |"
            for one in task.files
        ]
    lines += ["", *(f"- {trap}" for trap in task.traps)]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def test_every_family_has_a_page() -> None:
    assert {task.family for task in tasks().values()} == set(PAGE_OF)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_tells_of_the_benchmarks_of_its_family_in_order_and_of_no_other(name: str) -> None:
    told = re.findall(r"^### ([\w+-]+)$", page(name), re.MULTILINE)
    assert told == [one.name for one in tasks().values() if PAGE_OF[one.family] == name]


@pytest.mark.parametrize("name", [*tasks()])
def test_a_benchmark_is_told_as_its_row_has_it(name: str) -> None:
    task = tasks()[name]
    assert section_of(task) in page(PAGE_OF[task.family]) + "\n"


@pytest.mark.parametrize("name", [name for name in PAGES if name != "evaluation.md"])
def test_a_page_shows_the_command_of_each_of_its_benchmarks(name: str) -> None:
    shown = set(re.findall(r"^paligemma eval ([\w+-]+) --data", page(name), re.MULTILINE))
    assert shown == {one.name for one in tasks().values() if PAGE_OF[one.family] == name}


def test_the_first_page_links_to_all_others() -> None:
    first = page("evaluation.md")
    assert [name for name in PAGES if name != "evaluation.md" and f"({name})" not in first] == []
