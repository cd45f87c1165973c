"""Draw docs/review.webp, the page of `paligemma review`: the embedded model and Chromium."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

from draw_page import opened, write
from playwright.sync_api import sync_playwright

from paligemma import PaliGemma
from paligemma.jobs.labelling.answering import ModelLabeller
from paligemma.jobs.labelling.run import Labelling, label
from paligemma.review.choice import chosen
from paligemma.review.decisions import Reviewed
from paligemma.review.server import ReviewServer

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "detect cat ; pizza ; trumpet ; star"


def draw(target: Path) -> None:
    """Label the desk, open its review, and write what the browser shows."""
    with tempfile.TemporaryDirectory() as folder:
        job = Labelling(
            input=ROOT / "examples" / "desk.png", output=Path(folder) / "labels", prompt=PROMPT
        )
        labelled = label(job, ModelLabeller(PaliGemma.from_pretrained("tiny"))).folder
        reviewed = Reviewed(Path(folder) / "reviewed", labelled.path, chosen(labelled.records(), 1))
        with ReviewServer(reviewed) as server, sync_playwright() as playwright:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            with opened(playwright, server.url, (1000, 620)) as page:
                page.wait_for_selector("#names span")
                page.wait_for_function("document.getElementById('picture').naturalWidth > 0")
                write(page, target)
            server.shutdown()


if __name__ == "__main__":
    draw(ROOT / "docs" / "review.webp")
