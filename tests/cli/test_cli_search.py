"""Documents added and searched through the program, with a random ColPali."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run
from PIL import Image
from retrieval_folders import write_colpali

from paligemma.retrieval.page_files import PageBounds, pages_of
from tests.retrieval.pdf_files import write_pdf

pytest.importorskip("qdrant_edge")
pytest.importorskip("pypdfium2")


@pytest.fixture(scope="module")
def colpali_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colpali(tmp_path_factory.mktemp("models") / "colpali")


@pytest.fixture
def documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a PDF of two pages and a picture; the current folder is above it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "documents"
    folder.mkdir()
    sides = [Image.new("RGB", (60, 80), colour) for colour in ("white", "gray")]
    sides[0].save(folder / "report.pdf", save_all=True, append_images=sides[1:])
    Image.new("RGB", (64, 64), "red").save(folder / "scan.png")
    return folder


def test_pages_are_added_listed_searched_and_removed(
    paligemma: Run, documents: Path, colpali_dir: Path
) -> None:
    done = paligemma("index", "add", documents, "--model", colpali_dir)
    assert (done.status, done.out) == (0, "3 pages added; library has 3\n")
    again = paligemma("index", "add", documents, "--json").json
    counts = {"added": 0, "kept": 3, "moved": 0, "outdated": 0, "removed": False, "pages": 3}
    assert again == {**counts, "faults": []}

    listed = paligemma("index", "list", "--json").json["pages"]
    assert [(Path(page["path"]).name, page["page"]) for page in listed] == [
        ("report.pdf", 1),
        ("report.pdf", 2),
        ("scan.png", 1),
    ]
    assert f"{documents / 'scan.png'}, page 1" in paligemma("index", "list").out
    stats = paligemma("index", "stats", "--json").json
    assert (stats["pages"], stats["files"], stats["model"]) == (3, 2, str(colpali_dir))
    assert paligemma("index", "verify").out == "3 pages, no faults\n"

    found = paligemma("search", "red", "-k", 2, "--json").json
    assert found["query"] == "red"
    scores = [hit["score"] for hit in found["hits"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 2
    lines = paligemma("search", "red", "--rerank", "all").out.splitlines()
    assert len(lines) == 3
    assert float(lines[0].split()[0]) == pytest.approx(scores[0], abs=1e-3)

    assert paligemma("index", "snapshot", "copy").status == 0
    gone = paligemma("index", "remove", documents / "report.pdf")
    assert gone.out == "2 pages removed; library has 1\n"
    assert (
        paligemma("search", "red", "--index", "copy", "--json").json["hits"][0] == found["hits"][0]
    )
    nothing = paligemma("index", "remove", "nowhere.pdf")
    assert nothing.status == 2
    assert "see them with: paligemma index list --index library" in nothing.err


def test_one_page_is_not_called_pages(paligemma: Run, documents: Path, colpali_dir: Path) -> None:
    scan = documents / "scan.png"
    assert paligemma("index", "add", scan, "--model", colpali_dir).out.startswith("1 page added;")
    assert paligemma("index", "stats").out.startswith("1 page of 1 file\n")
    assert paligemma("index", "verify").out == "1 page, no faults\n"
    paligemma("search", "red", "--html", "results.html")
    assert "1 page found in library, 1 page<" in Path("results.html").read_text()
    assert paligemma("index", "remove", scan).out == "1 page removed; library has 0\n"


def test_a_changed_file_is_said_and_replaced_on_request(
    paligemma: Run, documents: Path, colpali_dir: Path
) -> None:
    command = ("index", "add", documents)
    paligemma(*command, "--model", os.path.relpath(colpali_dir))
    assert paligemma("index", "stats", "--json").json["model"] == str(colpali_dir)
    Image.new("RGB", (64, 64), "blue").save(documents / "scan.png")
    done = paligemma(*command)
    assert done.out == "1 page added, 2 there already; library has 4\n"
    assert "1 page shows what these files held before they were changed; --replace" in done.err
    Image.new("RGB", (64, 64), "green").save(documents / "scan.png")
    done = paligemma(*command, "--replace")
    assert done.out == (
        "1 page added, 2 there already, 2 of earlier contents removed; library has 3\n"
    )
    assert paligemma("index", "remove", documents).out == "3 pages removed; library has 0\n"


def test_what_cannot_be_read_is_named_and_the_rest_is_added(
    paligemma: Run, documents: Path, colpali_dir: Path
) -> None:
    (documents / "broken.pdf").write_bytes(b"%PDF-1.4 and no more")
    done = paligemma("index", "add", documents, "--model", colpali_dir, "--max-pages", 1)
    assert (done.status, done.out) == (2, "2 pages added, 2 not read; library has 2\n")
    assert f"{documents / 'broken.pdf'}: a PDF must be whole" in done.err
    assert f"{documents / 'report.pdf'}, page 2: --max-pages is 1, the file has 2" in done.err


def test_the_page_of_results_shows_each_hit(
    paligemma: Run, documents: Path, colpali_dir: Path
) -> None:
    pytest.importorskip("paligemma.retrieval.results_page")
    paligemma("index", "add", documents, "--model", colpali_dir)
    done = paligemma("search", "red chart", "--html", "results.html")
    assert done.status == 0
    text = Path("results.html").read_text()
    assert text.count("scan.png") >= 1
    assert "red chart" in text
    Path("notes.html").write_text("mine")
    kept = paligemma("search", "red", "--html", "notes.html")
    assert (kept.status, Path("notes.html").read_text()) == (2, "mine")


def test_the_best_pages_are_read_and_each_answer_names_its_page(
    paligemma: Run, documents: Path, colpali_dir: Path, tiny_dir: Path
) -> None:
    paligemma("index", "add", documents, "--model", colpali_dir)
    command = ("search", "which colour?", "--answer", "--answer-model", tiny_dir)
    found = paligemma(*command, "--answer-pages", 2, "--json", "--html", "found.html").json
    pages = [one["page"]["id"] for one in found["answers"]]
    assert pages == [hit["id"] for hit in found["hits"][:2]]
    assert all(isinstance(one["text"], str) for one in found["answers"])
    assert Path("found.html").read_text().count('class="answer"') == 2
    best = found["hits"][0]
    assert f"  ({best['path']}, page {best['page']})\n\n" in paligemma(*command).out

    paligemma("index", "remove", documents / "report.pdf")
    (first,) = paligemma(*command, "--json").json["answers"]
    assert first["page"]["path"] == str(documents / "scan.png")
    (documents / "scan.png").unlink()
    done = paligemma(*command, "--json")
    assert "is read as it was kept, smaller" in done.err
    assert done.json["answers"][0]["text"] == first["text"]


def test_a_locked_pdf_is_read_with_its_password(
    paligemma: Run, documents: Path, colpali_dir: Path, tiny_dir: Path
) -> None:
    locked = write_pdf(documents / "locked.pdf", ["red"], password="sesame")
    paligemma("index", "add", locked, "--model", colpali_dir, "--password", "sesame")
    command = ("search", "red", "--answer", "--answer-model", tiny_dir)
    assert "give it with --password" in paligemma(*command).err
    done = paligemma(*command, "--password", "sesame")
    assert done.status == 0
    assert "is read as it was kept" not in done.err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("search", "red"), "no index is at 'library'"),
        (("search", " "), "at least one word"),
        (("search", "red", "--rerank", "3", "-k", "5"), "whole number from -k on"),
        (("search", "red", "--index", "ftp://x"), "an index is a folder"),
        (("index", "list"), "make one with: paligemma index add FILES --index library"),
        (
            ("search", "red", "--index", "documents"),
            "no index is at 'documents', a folder of other",
        ),
        (("index", "add"), "Missing argument 'FILE...'"),
        (("index", "ad"), "did you mean add?"),
    ],
)
def test_what_is_wrong_is_said(
    paligemma: Run, documents: Path, words: tuple[object, ...], why: str
) -> None:
    done = paligemma(*words)
    assert (done.status, done.out) == (2, "")
    assert why in done.err
    assert not Path("library").exists()


def test_the_help_states_the_bounds_that_hold_without_options(paligemma: Run) -> None:
    text = " ".join(paligemma("index", "add", "--help").out.split())
    bounds = PageBounds()
    assert f"Of a file; by default {bounds.max_pages:,}." in text
    assert f"By default {bounds.max_pixels // 1_000_000} million." in text
    assert f"For a page; by default {bounds.timeout_s:g}." in text


def test_another_model_is_refused(
    paligemma: Run, documents: Path, colpali_dir: Path, tmp_path: Path
) -> None:
    paligemma("index", "add", documents / "scan.png", "--model", colpali_dir)
    other = write_colpali(tmp_path / "other", seed=1)
    done = paligemma("search", "red", "--model", other)
    assert done.status == 2
    assert "vectors of another model" in done.err
    done = paligemma("search", "red", "--preset", "v1.1")
    assert done.status == 2
    assert f"made with {colpali_dir} of other weights, preset or resolution (" in done.err


def test_a_killed_adding_goes_on_where_it_stopped(
    paligemma: Run, documents: Path, colpali_dir: Path
) -> None:
    for number in range(12):
        Image.new("RGB", (64, 64), (number * 20, 0, 0)).save(documents / f"{number}.png")
    command = [sys.executable, "-m", "paligemma", "index", "add", str(documents)]
    killed = subprocess.Popen(
        [*command, "--model", str(colpali_dir)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    library = Path("library")
    while not (library / "index.json").exists() and killed.poll() is None:
        pass
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    kept = paligemma("index", "stats", "--json").json["pages"]
    done = paligemma("index", "add", documents, "--json").json
    assert done["kept"] == kept
    assert done["added"] == 15 - kept
    assert paligemma("index", "verify", "--json").json == {"pages": 15, "faults": []}
    assert len({page.id for page in pages_of([documents])}) == 15  # type: ignore[union-attr]
    assert json.loads((library / "index.json").read_text())["kind"] == "edge"


def test_an_index_that_ends_with_the_command_takes_no_pages(
    paligemma: Run, documents: Path, colpali_dir: Path
) -> None:
    done = paligemma("index", "add", documents, "--index", "memory://", "--model", colpali_dir)
    assert done.status == 2
    assert "memory:// ends with this command" in done.err


def test_a_name_with_a_line_break_is_listed_on_one_line(
    paligemma: Run, documents: Path, colpali_dir: Path
) -> None:
    path = documents / "two\nlines.png"
    Image.new("RGB", (64, 64), "green").save(path, "PNG")
    assert paligemma("index", "add", path, "--model", colpali_dir).status == 0
    assert paligemma("index", "list").out.endswith("two\\nlines.png, page 1\n")
    found = paligemma("search", "green", "-k", 1)
    assert "two\\nlines.png, page 1" in found.out
    assert json.loads(paligemma("index", "list", "--json").out)["pages"][0]["path"] == str(path)
