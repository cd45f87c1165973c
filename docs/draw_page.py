"""Draw docs/page.webp, the page of `paligemma serve`: the embedded model and Chromium."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PORT = 8411
READY_S = 60


def draw(target: Path) -> None:
    """Ask about the desk on the page of a server, and write what the browser shows."""
    command = [sys.executable, "-m", "paligemma", "serve", "--model", "tiny", "--port", str(PORT)]
    url = f"http://127.0.0.1:{PORT}"
    with subprocess.Popen(command) as serving, sync_playwright() as playwright:
        try:
            _await(f"{url}/ready")
            browser = playwright.chromium.launch(
                executable_path=os.environ.get("PALIGEMMA_CHROMIUM") or shutil.which("chromium"),
                args=["--no-sandbox"],
            )
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(url)
            page.click("#drop-examples [aria-label='Example: Desk']")
            page.wait_for_selector(".stage")
            page.check("#composer .chip input[value=detect]")
            page.click("#composer button[type=submit]")
            page.wait_for_selector(".answer:not(.streaming) .status b")
            shown = Image.open(io.BytesIO(page.screenshot()))
            browser.close()
        finally:
            serving.terminate()
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
    draw(ROOT / "docs" / "page.webp")
