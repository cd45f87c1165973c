"""Pages of PDFs, pictures and folders, within bounds."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from PIL import Image

from paligemma.errors import ConfigError, ImageError
from paligemma.retrieval import page_worker
from paligemma.retrieval.page_files import Page, PageBounds, PageFault, pages_of, read_page

pytest.importorskip("pypdfium2")

from pdf_files import write_pdf

SMALL = PageBounds(size_px=64)


def pages(*paths: Path, bounds: PageBounds = SMALL) -> list[Page]:
    found = list(pages_of(paths, bounds))
    assert [str(one) for one in found if isinstance(one, PageFault)] == []
    return [one for one in found if isinstance(one, Page)]


def faults(*paths: Path, bounds: PageBounds = SMALL) -> list[str]:
    return [str(one) for one in pages_of(paths, bounds) if isinstance(one, PageFault)]


def test_a_pdf_gives_its_pages_with_ids_and_text(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "report.pdf", ["first words", "second words"])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    first, second = pages(path)
    assert (first.id, second.id) == (f"{digest}:1", f"{digest}:2")
    assert (first.number, second.number, first.num_pages) == (1, 2, 2)
    assert (first.text, second.text) == ("first words", "second words")
    assert first.picture.mode == "RGB"
    assert first.picture.convert("L").getextrema()[0] < 64  # writing is drawn


def test_a_page_is_drawn_for_the_resolution_of_the_model(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", ["x"], size_pt=(300, 600))
    (page,) = pages(path, bounds=PageBounds(size_px=100))
    assert page.size == (200, 400)


def test_a_huge_page_is_drawn_within_the_bound_of_pixels(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "poster.pdf", ["x"], size_pt=(14_000, 14_000))
    (page,) = pages(path, bounds=PageBounds(size_px=4096, max_pixels=10_000))
    assert page.size == (100, 100)


def test_a_page_of_no_paper_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "vast.pdf", ["x"], size_pt=(72_000, 72_000))
    good = write_pdf(tmp_path / "good.pdf", ["y"])
    found = list(pages_of([path, good], SMALL))
    assert "page 1: the page cannot be drawn: it measures" in str(found[0])
    assert isinstance(found[1], Page)


def test_a_locked_pdf_opens_with_its_password_alone(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "locked.pdf", ["secret"], password="open sesame")
    assert "needs a password" in faults(path)[0]
    wrong = PageBounds(size_px=64, password="sesame")
    assert "another password than the one given" in faults(path, bounds=wrong)[0]
    (page,) = pages(path, bounds=PageBounds(size_px=64, password="open sesame"))
    assert page.text == "secret"


@pytest.mark.parametrize("content", [b"", b"%PDF-1.4\n", b"%PDF-1.7\n" + b"\0" * 5000])
def test_a_broken_pdf_is_named_and_left_out(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.pdf"
    path.write_bytes(content)
    (fault,) = faults(path)
    assert "this one cannot be opened" in fault


def test_more_pages_than_the_bound_are_left_out_with_a_word(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "long.pdf", ["a", "b", "c"])
    found = list(pages_of([path], PageBounds(size_px=64, max_pages=2)))
    assert [isinstance(one, Page) for one in found] == [True, True, False]
    assert "--max-pages is 2, the file has 3" in str(found[2])


def test_a_pdf_is_known_by_its_content(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "download", ["a"])
    assert len(pages(path)) == 1


def test_a_page_that_takes_too_long_is_named_and_the_next_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o755)
    path = write_pdf(tmp_path / "slow.pdf", ["a"])
    with monkeypatch.context() as patch:
        patch.setattr(page_worker.sys, "executable", str(sleeper))
        (fault,) = faults(path, bounds=PageBounds(size_px=64, timeout_s=0.3))
    assert "longer than 0.3 s" in fault
    assert len(pages(path)) == 1


def test_a_process_that_ends_costs_one_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_pdf(tmp_path / "three.pdf", ["a", "b", "c"])
    draw = page_worker.PdfPages.draw

    def dies_at_the_second(self: page_worker.PdfPages, page: int, *size: int) -> object:
        if page == 1:
            self._process.kill()
        return draw(self, page, *size)

    monkeypatch.setattr(page_worker.PdfPages, "draw", dies_at_the_second)
    found = list(pages_of([path], SMALL))
    assert [one.number for one in found] == [1, 2, 3]
    assert "process ended" in str(found[1])
    assert [one.text for one in found if isinstance(one, Page)] == ["a", "c"]


def test_a_file_whose_pages_end_their_process_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_pdf(tmp_path / "hostile.pdf", [f"page {number}" for number in range(40)])
    draw = page_worker.PdfPages.draw

    def dies(self: page_worker.PdfPages, page: int, *size: int) -> object:
        if page > 1:
            self._process.kill()
        return draw(self, page, *size)

    monkeypatch.setattr(page_worker.PdfPages, "draw", dies)
    found = list(pages_of([path], SMALL))
    assert [one.number for one in found] == list(range(1, 9))
    assert "5 pages of the file ended their process" in str(found[-1])


def test_a_module_of_the_current_folder_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("json.py", "pypdfium2.py"):
        (tmp_path / name).write_text("open('was-run', 'w')")
    assert len(pages(write_pdf(tmp_path / "a.pdf", ["a"]))) == 1
    assert not (tmp_path / "was-run").exists()


def test_pictures_folders_and_patterns_are_pages_too(tmp_path: Path) -> None:
    Image.new("RGB", (90, 60), "red").save(tmp_path / "a.png")
    write_pdf(tmp_path / "b.pdf", ["x", "y"])
    (tmp_path / "notes.txt").write_text("no page")
    assert [(Path(one.path).name, one.number) for one in pages(tmp_path)] == [
        ("a.png", 1),
        ("b.pdf", 1),
        ("b.pdf", 2),
    ]
    assert len(pages(tmp_path / "*.pdf")) == 2
    assert pages(tmp_path / "a.png")[0].size == (90, 60)


def test_every_page_of_a_tiff_is_one(tmp_path: Path) -> None:
    sides = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    sides[0].save(tmp_path / "fax.tiff", save_all=True, append_images=sides[1:])
    first, second = pages(tmp_path / "fax.tiff")
    assert (first.number, second.number) == (1, 2)
    assert second.picture.getpixel((0, 0)) == (0, 0, 255)


def test_a_scan_is_made_smaller_within_the_bound(tmp_path: Path) -> None:
    Image.new("RGB", (400, 100)).save(tmp_path / "scan.png")
    (page,) = pages(tmp_path / "scan.png", bounds=PageBounds(size_px=64, max_pixels=10_000))
    assert page.size == (200, 50)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    assert "cannot be recognised" in faults(tmp_path / "a.png")[0]
    assert "of documents holds files such as .pdf, .jpg or .png, " in faults(tmp_path / "empty")[0]
    (tmp_path / "letter.docx").write_bytes(b"PK\x03\x04")
    assert "must be a PDF or a picture" in faults(tmp_path / "letter.docx")[0]
    assert "No such file" in faults(tmp_path / "nowhere.pdf")[0]


def test_known_pages_are_not_drawn_again(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", ["a", "b"])
    first, _ = pages(path)
    found = list(pages_of([path], SMALL, is_known=lambda page_id: page_id == first.id))
    assert [one.number for one in found] == [2]


def test_one_page_is_read_by_its_number(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", ["a", "b"])
    assert read_page(str(path), 2, SMALL).text == "b"
    with pytest.raises(ImageError, match="no page 3"):
        read_page(str(path), 3, SMALL)


def test_bounds_are_checked() -> None:
    with pytest.raises(ConfigError, match="max_pages is a whole number"):
        PageBounds(max_pages=0)
    with pytest.raises(ConfigError, match="timeout_s"):
        PageBounds(timeout_s=float("nan"))
