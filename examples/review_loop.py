"""Label, review, train, and measure: the loop of docs/batch.md, with the truth as its reviewer.

    python examples/review_loop.py

Draws pictures with arrows, which the embedded model has never seen, labels them by
`paligemma batch`, answers the page of `paligemma review` as a person would who knows the truth (a
box is accepted where it is right, and drawn where it is not), trains an adapter by
`paligemma train` on what was written, and measures held-out pictures before and after.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from draw_arrows import LABEL, write_rows

from paligemma.outputs.boxes import box_iou, decode_boxes
from paligemma.outputs.parse import parse_objects

PAGE = re.compile(r"http://127\.0\.0\.1:\d+/")
RIGHT = 0.7


def run(*words: object) -> str:
    command = [sys.executable, "-m", "paligemma", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def decision(record: dict[str, Any], truth: list[list[float]]) -> tuple[dict[str, Any], int]:
    """What the reviewer decides, and how many boxes were drawn anew."""
    boxes = [one["box_yxyx"] for one in record["detections"] if one.get("valid", True)]
    overlap = box_iou(np.array(truth)[:, None], np.array(boxes)[None]) if boxes else None
    objects, num_drawn = [], 0
    for k, true in enumerate(truth):
        best = -1 if overlap is None else int(overlap[k].argmax())
        is_right = overlap is not None and overlap[k, best] >= RIGHT
        num_drawn += not is_right
        objects.append({"label": LABEL, "box_yxyx": boxes[best] if is_right else true})
    return {"state": "accepted", "objects": objects}, num_drawn


def review(labels: Path, output: Path, rows: Path) -> tuple[int, int]:
    """Decide every row by the page's own requests; rows, and boxes drawn anew."""
    truth = {}
    for line in rows.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        objects = parse_objects(row["suffix"]).objects
        truth[row["image"]] = [decode_boxes(one.loc).tolist() for one in objects]
    words = ["review", labels, "--output", output, "--no-open", "--choose", "rows"]
    command = [sys.executable, "-m", "paligemma", *map(str, words), "--limit", str(len(truth))]
    num_drawn = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as page:
        try:
            assert page.stdout is not None
            found = PAGE.search(page.stdout.readline())
            assert found is not None
            with httpx.Client(base_url=found[0]) as client:
                listed = client.get("rows").json()["rows"]
                for one in listed:
                    record = client.get(f"rows/{one['row']}").json()["record"]
                    decided, drawn = decision(record, truth[record["image"]])
                    client.post(f"decisions/{one['row']}", json=decided).raise_for_status()
                    num_drawn += drawn
        finally:
            page.terminate()
    return len(listed), num_drawn


def ap50(data: Path, output: Path, *adapter: object) -> float:
    shutil.rmtree(output, ignore_errors=True)
    run(
        "eval", "own", "--data", data, "--split", "valid", "--output", output, "--no-html", *adapter
    )
    found: float = json.loads((output / "scores.json").read_text(encoding="utf-8"))["score"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo/loop"))
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    if min(options.rows, options.steps) < 1:
        parser.error("--rows and --steps are numbers of 1 or more")
    folder: Path = options.output
    data, labels, reviewed, trained = (folder / n for n in ("data", "labels", "reviewed", "run"))
    for old in (labels, reviewed, trained):
        shutil.rmtree(old, ignore_errors=True)
    write_rows(data, "train", options.rows, 40_000_000)
    write_rows(data, "valid", 60, 41_000_000)
    before = ap50(data, folder / "before")
    clock = time.monotonic()

    def took() -> str:
        nonlocal clock
        seconds, clock = time.monotonic() - clock, time.monotonic()
        return f"{seconds:.0f} s"

    asked = ("--prompt", f"detect {LABEL}", "--model", "tiny")
    run("batch", "--input", data / "train.jsonl", "--output", labels, *asked)
    print(f"batch: {options.rows} rows, {took()}")
    num_rows, num_drawn = review(labels, reviewed, data / "train.jsonl")
    print(f"review: {num_rows} rows, {num_drawn} boxes drawn anew, {took()}")
    adapter = ("--rank", 16, "--parts", "decoder,vision,projector", "--lr", 2e-3)
    length = ("--steps", options.steps, "--output", trained)
    run("train", "--data", reviewed, "--model", "tiny", *adapter, *length)
    print(f"train: {options.steps} updates, {took()}")
    after = ap50(data, folder / "after", "--adapter", trained)
    print(f"AP50 of {LABEL} on 60 held-out pictures: {before:.1f} -> {after:.1f}")


if __name__ == "__main__":
    main()
