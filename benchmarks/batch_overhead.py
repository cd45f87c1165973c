"""What `paligemma batch` costs beside the model: a stand-in answers synthetic rows.

python benchmarks/batch_overhead.py --rows 1000000 --folder /tmp/rows

Prints milliseconds a row, the growth of memory from the first tenth of the rows to the last, and
the time from the start of a killed run to its first new answer.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paligemma.example import Example
from paligemma.jobs.labelling.folder import LabelFolder
from paligemma.jobs.labelling.run import Labelling, label

_THING = {"label": "cat", "score": 0.9, "box_xyxy_px": [1.0, 2.0, 3.0, 4.0]}
_THING["box_yxyx"] = [0.1, 0.2, 0.3, 0.4]
_RECORD = {"text": "<loc0102><loc0204><loc0307><loc0409> cat", "logprob": -0.5, "num_tokens": 6}


class StandIn:
    """Answers without reading a picture; dies where it is told to."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.dies_at = dies_at
        self.num = 0
        self.first: float | None = None
        self.memory: list[int] = []

    def settings(self) -> Mapping[str, Any]:
        return {"model": "stand-in"}

    def read(self, examples: Sequence[Example]) -> None:
        return None

    def answer(self, examples: Sequence[Example], prepared: None) -> list[Any]:
        if self.first is None:
            self.first = time.perf_counter()
        self.num += len(examples)
        if self.dies_at is not None and self.num > self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.num % 4096 < len(examples):
            self.memory.append(_memory_bytes())
        return [{**_RECORD, "width": 640, "height": 480, "detections": [_THING]} for _ in examples]


def _memory_bytes() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize()


def _run(folder: Path, dies_at: int | None) -> None:
    labeller = StandIn(dies_at)
    job = Labelling(
        input=folder / "rows.jsonl", output=folder / "labels", prompt="detect cat", part_rows=1024
    )
    began = time.perf_counter()
    found = label(job, labeller)  # type: ignore[arg-type]
    tenth = max(1, len(labeller.memory) // 10)
    first, last = (sum(m) / len(m) for m in (labeller.memory[:tenth], labeller.memory[-tenth:]))
    until = (labeller.first or began) - began
    print(
        f"{found.num_new:,} rows: {1000 * found.seconds / found.num_new:.3f} ms a row, memory "
        f"{first / 2**20:.0f} -> {last / 2**20:.0f} MiB, first answer after {until:.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--dies-at", type=int)
    parser.add_argument("--inner", action="store_true", help="one run alone")
    options = parser.parse_args()
    folder: Path = options.folder
    if options.inner:
        _run(folder, options.dies_at)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as file:
        for k in range(options.rows):
            file.write(json.dumps({"image": f"{k // 1000:04d}/{k:07d}.jpg", "id": k}) + "\n")
    inner = [sys.executable, __file__, "--folder", str(folder), "--inner"]
    killed = subprocess.run([*inner, "--dies-at", str(options.rows // 2)])
    assert killed.returncode == -signal.SIGKILL
    subprocess.run(inner, check=True)
    rows = [one["row"] for one in LabelFolder(folder / "labels").records()]
    assert rows == list(range(options.rows)), "a row is missing or twice"
    print("every row is there once")


if __name__ == "__main__":
    main()
