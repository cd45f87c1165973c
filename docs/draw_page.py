"""Draw docs/page.webp and docs/documents.webp: the page of `paligemma serve` in Chromium."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Page, Playwright, sync_playwright

from paligemma.scenes.pages import draw_page

DOCS = Path(__file__).resolve().parent
PALIGEMMA = (sys.executable, "-m", "paligemma")
PORT = 8411
READY_S = 60
PAGE_SEEDS = range(900, 916)


def draw_asking(target: Path) -> None:
    """Ask about the desk, and write what the browser shows."""
    with browsing((1440, 900), "--model", "tiny") as page:
        page.click("#drop-examples [aria-label='Example: Desk']")
        page.wait_for_selector(".stage")
        page.check("#composer .chip input[value=detect]")
        page.click("#composer button[type=submit]")
        page.wait_for_selector(".answer:not(.streaming) .status b")
        write(page, target)


def draw_documents(target: Path) -> None:
    """Search drawn pages for two words, and write what the browser shows of the heat of one."""
    with tempfile.TemporaryDirectory() as folder:
        pages, library = Path(folder) / "pages", Path(folder) / "library"
        pages.mkdir()
        for k, seed in enumerate(PAGE_SEEDS):
            Image.fromarray(draw_page(seed).image).save(pages / f"page-{k:02}.png")
        made = [*PALIGEMMA, "index", "add", pages, "--index", library, "--model", "tiny"]
        subprocess.run(made, check=True)
        with browsing((1240, 805), "--model", "tiny", "--index", str(library)) as page:
            page.click("text=Documents")
            page.fill("#documents input[type=search]", "IRON and COLD")
            page.press("#documents input[type=search]", "Enter")
            page.wait_for_selector("#documents .hit")
            page.check("#documents .words label:has-text('IRON') input")
            page.wait_for_timeout(500)  # until the heat is painted
            write(page, target)


@contextmanager
def browsing(size_wh: tuple[int, int], *words: str) -> Iterator[Page]:
    """The page of a server that is started with these options."""
    command = [*PALIGEMMA, "serve", *words, "--port", str(PORT)]
    url = f"http://127.0.0.1:{PORT}"
    with subprocess.Popen(command) as serving, sync_playwright() as playwright:
        try:
            _await(f"{url}/ready")
            with opened(playwright, url, size_wh) as page:
                yield page
        finally:
            serving.terminate()


@contextmanager
def opened(playwright: Playwright, url: str, size_wh: tuple[int, int]) -> Iterator[Page]:
    """An address in Chromium, in a window of this size in pixels."""
    browser = playwright.chromium.launch(
        executable_path=os.environ.get("PALIGEMMA_CHROMIUM") or shutil.which("chromium"),
        args=["--no-sandbox"],
    )
    page = browser.new_page(viewport={"width": size_wh[0], "height": size_wh[1]})
    page.goto(url)
    yield page
    browser.close()


def write(page: Page, target: Path) -> None:
    """Write what the browser shows as WebP."""
    shown = Image.open(io.BytesIO(page.screenshot()))
    shown.convert("RGB").save(target, "WEBP", quality=85)


def _await(url: str) -> None:
    end = time.monotonic() + READY_S
    while True:
        try:
            httpx.get(url).raise_for_status()
            return
        except httpx.HTTPError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


if __name__ == "__main__":
    draw_asking(DOCS / "page.webp")
    draw_documents(DOCS / "documents.webp")
