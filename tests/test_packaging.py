"""What a package states about itself, held against the pages and the program."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

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


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("loaded_here", ROOT / name)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def setup_file(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr("setuptools.setup", lambda **fields: None)
    monkeypatch.chdir(ROOT)
    return loaded("setup.py")


def test_the_description_of_an_index_has_no_link_that_leads_nowhere(setup_file: ModuleType) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    relative = r"\]\((?!https://)([^)]+)\)"
    assert len(re.findall(relative, text)) > 20
    shown = setup_file.description(text, None)
    assert re.findall(relative, shown) == []
    assert "Next: docs/quickstart.md." in shown
    assert "Apache License 2.0 (`LICENSE`)" in shown
    assert "*a desk with a cat, a pizza, a trumpet and more: boxes" in shown
    assert "(https://github.com/google-research/big_vision)" in shown
    assert shown.count("```") == text.count("```")


def test_the_description_links_to_the_release_where_the_project_has_an_address(
    setup_file: ModuleType,
) -> None:
    text = "![a desk](a/b.png) [words](docs/x.md#part) [top](#top)\n```\n[a](b)\n```\n"
    shown = setup_file.description(text, "https://host/p/raw/v1")
    assert shown == (
        "![a desk](https://host/p/raw/v1/a/b.png) [words](https://host/p/raw/v1/docs/x.md#part) "
        "[top](#top)\n```\n[a](b)\n```\n"
    )


METADATA = (
    "Metadata-Version: 2.4\nName: paligemma\nVersion: 0.1.0\nLicense-Expression: {}\n"
    "Description-Content-Type: text/markdown\n\n" + "Words. " * 200 + "{}\n"
)


@pytest.mark.parametrize(
    ("licence", "words", "said"),
    [
        ("Apache-2.0", "", None),
        ("Apache 2", "", "the metadata of x.whl is refused: 'Apache 2' is invalid"),
        ("MIT", "[a](docs/a.md)", "has links that lead nowhere: ['docs/a.md']"),
    ],
)
def test_metadata_that_an_index_refuses_ends_the_build(
    licence: str, words: str, said: str | None
) -> None:
    pytest.importorskip("packaging.licenses")
    package = loaded(".ci/package.py")
    written = METADATA.format(licence, words).encode()
    if said is None:
        package.check_metadata(written, "x.whl")
        return
    with pytest.raises(SystemExit, match=re.escape(said)):
        package.check_metadata(written, "x.whl")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"paligemma/page.html": None}, "lacks ['paligemma/page.html']"),
        ({"paligemma/kernels/a.c": ""}, "holds ['paligemma/kernels/a.c'], which are no part"),
        ({"tests/test_a.py": ""}, "holds ['tests/test_a.py'], which are no part"),
        ({"paligemma/kernels/_native.so": ""}, "compiled kernels {'paligemma/kernels/_native.so'}"),
    ],
)
def test_a_wheel_with_other_files_than_the_clone_ends_the_build(
    change: dict[str, str | None], said: str | None, tmp_path: Path
) -> None:
    pytest.importorskip("packaging.licenses")
    package = loaded(".ci/package.py")
    source = tmp_path / "src"
    (source / "paligemma" / "kernels").mkdir(parents=True)
    for name in ("__init__.py", "page.html", "kernels/a.c"):
        (source / "paligemma" / name).touch()
    info = "paligemma-0.1.0.dist-info/METADATA"
    files = {"paligemma/__init__.py": "", "paligemma/page.html": ""} | change
    wheel = tmp_path / "paligemma-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in ({info: METADATA.format("MIT", "")} | files).items():
            if text is not None:
                archive.writestr(name, text)
    if said is None:
        package.check_contents(wheel, "pure", source)
        return
    with pytest.raises(SystemExit, match=re.escape(said)):
        package.check_contents(wheel, "pure", source)
