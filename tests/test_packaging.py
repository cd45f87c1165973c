"""What a package states about itself, held against the pages and the program."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[><=;~! ]", one)[0] for one in requirements}


def test_the_table_of_extras_has_each_with_what_it_brings() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]*) \|$", page, re.MULTILINE))
    extras = PROJECT["optional-dependencies"]
    assert list(shown) == [*(name for name in shown if name in extras)]
    assert shown.keys() == extras.keys()
    for name, words in shown.items():
        if name not in ("dev", "replicas"):
            assert set(words.split(", ")) == requirement_names(extras[name])
    core = re.search(r"The core needs (.*?)\. ", page)
    assert core is not None
    assert set(re.split(r", | and ", core[1])) == requirement_names(PROJECT["dependencies"])


def test_pythons_are_declared_as_the_page_states_them() -> None:
    declared = [
        one.rsplit(" ", 1)[1]
        for one in PROJECT["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", one)
    ]
    assert declared == ["3.11", "3.12", "3.13", "3.14"]
    assert PROJECT["requires-python"] == ">=3.11"
    assert "torch>=2.10" in PROJECT["dependencies"]
    page = (ROOT / "docs" / "install.md").read_text()
    assert "Python 3.11 to 3.14 and torch 2.10 or newer" in page


def test_the_citation_has_the_version_of_the_project() -> None:
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == PROJECT["version"]
    assert cited["cff-version"] == "1.2.0"
    assert all(one["title"] and one["authors"] for one in (cited, *cited["references"]))
    papers = {one["url"].rpartition("/")[2] for one in cited["references"]}
    assert papers == {"2407.07726", "2412.03555", "2407.01449"}


def test_forms_for_issues_ask_for_something_by_names_of_their_own() -> None:
    yaml = pytest.importorskip("yaml")
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert [one.stem for one in forms] == ["config", "different_numbers", "fault", "wish"]
    for form in forms[1:]:
        content = yaml.safe_load(form.read_text())
        assert content["name"]
        assert content["description"]
        names = [one["id"] for one in content["body"]]
        assert len(names) == len(set(names)) > 0


def test_a_plain_wheel_is_asked_for_by_a_variable() -> None:
    words = "from setuptools import Distribution; import setuptools as s, json, sys\n" + (
        "s.setup = lambda **k: print(len(k['ext_modules']))\nexec(open('setup.py').read())"
    )
    for value, count in (("off", "0"), ("", "1")):
        done = subprocess.run(
            [sys.executable, "-c", words],
            cwd=ROOT, env={"PALIGEMMA_KERNELS": value}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == count
