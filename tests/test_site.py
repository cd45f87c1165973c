"""The site: its pages, what links become, and the build."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import paligemma

ROOT = Path(__file__).parents[1]


def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_of_docs", ROOT / "docs" / "site.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "pages"
    site().put_together(folder, runs_notebooks=False)
    return folder


def test_every_page_is_in_the_menu_or_linked_from_one_that_is(pages: Path) -> None:
    menu = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    there = {str(path.relative_to(pages)) for path in pages.rglob("*.md")}
    assert menu <= there
    linked = {target for page in menu for target in targets(pages / page)}
    assert {name for name in there - menu if (pages / name).resolve() not in linked} == set()


def targets(page: Path) -> Iterator[Path]:
    """Files that a page links to, fenced code aside."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\((?![a-z]+:)([^)#\s]+)[^)]*\)", text):
        yield (page.parent / target).resolve()


def test_links_lead_to_pages_of_the_site_and_pictures_travel_along(pages: Path) -> None:
    lost = [str(to) for page in pages.rglob("*.md") for to in targets(page) if not to.exists()]
    assert lost == []
    start = (pages / "index.md").read_text()
    assert "](pictures/desk_sheet.png)" in start
    assert "](notebooks/detect.md)" in start
    # What is no page is named by its path.
    assert "(tests/gpu, run on" in (pages / "gpu.md").read_text()


def test_a_notebook_becomes_a_page_with_what_it_printed(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Find\n", "words"]},
        {
            "cell_type": "code",
            "source": ["print(1)"],
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": ["1\n"]},
                {"output_type": "stream", "name": "stderr", "text": ["a warning\n"]},
                {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo=\n"}},
            ],
        },
    ]
    made = site().notebook({"cells": cells}, tmp_path, "find")
    assert made.startswith("# Find\nwords\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n![")
    assert (tmp_path / "find-1.png").read_bytes() == b"\x89PNG\r\n\x1a\n"


def test_the_page_on_the_api_shows_each_public_name_once() -> None:
    shown = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    homes = {f"{home}.{name}" for name, home in paligemma._HOMES.items()}
    assert len(shown) == len(set(shown))
    assert set(shown) == homes
    assert set(paligemma.__all__) <= set(paligemma._HOMES)


def test_the_site_is_built_without_a_warning(pages: Path) -> None:
    pytest.importorskip("zensical")
    pytest.importorskip("mkdocstrings_handlers.python")
    # What zensical reads must lie below the file of its settings.
    root = pages.parent
    config = (ROOT / "mkdocs.yml").read_text()
    config = config.replace("build/pages", "pages").replace("build/site", "out")
    (root / "mkdocs.yml").write_text(config.replace("[src]", f"[{ROOT / 'src'}]"))
    words = ["-m", "zensical", "build", "--strict", "--config-file", str(root / "mkdocs.yml")]
    env = {**os.environ, "SITE_URL": "https://host/below/"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    # What docstrings state of parameters is stated of parameters that are there.
    assert "griffe:" not in done.stdout + done.stderr
    # Methods of the tasks, which the class inherits, are shown.
    api = (root / "out" / "api.html").read_text()
    for words in ("from_pretrained", "Raises", "PageIndex", "max_overlap"):
        assert words in api
    assert 'id="paligemma.pipeline.paligemma.PaliGemma.detect"' in api
    # A sentence about what is returned stays whole.
    assert "tokens are all\nthere, of at least the threshold" in api
    assert "<h1" in (root / "out" / "index.html").read_text()
    # The page of a missing address stands anywhere below the site's own.
    assert 'href="/below/assets/stylesheets/' in (root / "out" / "404.html").read_text()
    assert lost_anchors(root / "out") == []


def lost_anchors(site: Path) -> list[str]:
    """Links of a built site to places that its pages do not have."""
    texts = {path.resolve(): path.read_text() for path in site.rglob("*.html")}
    places = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in texts.items()}
    assert sum(map(len, places.values())) > 100
    lost = []
    for path, text in texts.items():
        for name, anchor in re.findall(r'href="([^":#]*)#([^"]+)"', text):
            page = (path.parent / name).resolve() if name else path
            if anchor not in places.get(page, ()):
                lost.append(f"{path.name}: {name}#{anchor}")
    return lost
