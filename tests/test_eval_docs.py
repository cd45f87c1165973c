"""The pages on evaluation hold every benchmark of the catalogue, as its row has it."""

from __future__ import annotations

import re

import pytest
from eval_pages import DOCS, PAGE_OF, PAGES, generated, written

from paligemma.tasks.catalog import tasks


def test_every_family_has_a_page() -> None:
    assert {task.family for task in tasks().values()} == set(PAGE_OF)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_rows_of_its_benchmarks_give(name: str) -> None:
    page = (DOCS / name).read_text(encoding="utf-8")
    wanted = f"{written(name)}\n{generated(name)}"
    assert page == wanted, "run PYTHONPATH=src python tests/eval_pages.py"


@pytest.mark.parametrize("name", [name for name in PAGES if name != "evaluation.md"])
def test_a_page_shows_the_command_of_each_of_its_benchmarks(name: str) -> None:
    shown = set(re.findall(r"^paligemma eval ([\w+-]+) --data", written(name), re.MULTILINE))
    assert shown == {one.name for one in tasks().values() if PAGE_OF[one.family] == name}


def test_the_first_page_links_to_all_others() -> None:
    first = written("evaluation.md")
    assert [name for name in PAGES if name != "evaluation.md" and f"({name})" not in first] == []
