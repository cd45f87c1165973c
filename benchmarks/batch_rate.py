"""The rate of `paligemma batch` beside the engine's own, of two workers beside one, and of a plan.

    python benchmarks/batch_rate.py --pictures 1024 --folder /tmp/rate

Draws pictures into the folder and asks the embedded model for objects in each, one thread a model:
the engine alone, whose pictures were read before its time begins; `batch` in one process; `batch`
with two processes through Ray. A pilot of two processes over a part of the pictures is measured
too, and what `plan batch` makes of it is compared with the whole run of two. Rates are of the time
in which answers are computed, without the start of a program; the plan's hours hold the start of
its workers. Every run is repeated, and the runs take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from paligemma.bench.machine import describe
from paligemma.scenes import SceneOptions, draw_scene

LABELS = ("star", "heart", "cat")
DRAWN = SceneOptions(thing_share=0.5)
BATCH_SIZE, PART_ROWS = 32, 64
PILOT_ROWS = 6 * PART_ROWS
MODES = ("engine", "one process", "two processes")


def engine_rate(pictures: Path) -> float:
    """Rows a second of the engine on pictures that lie in memory."""
    from paligemma import PaliGemma

    pg = PaliGemma.from_pretrained("tiny", device="cpu")
    images = [Image.open(path).convert("RGB") for path in sorted(pictures.iterdir())]
    for image in images:
        image.load()
    pg.detect(images[:BATCH_SIZE], LABELS)
    began = time.perf_counter()
    for start in range(0, len(images), BATCH_SIZE):
        pg.detect(images[start : start + BATCH_SIZE], LABELS)
    return len(images) / (time.perf_counter() - began)


def batch_command(pictures: Path, output: Path, *, processes: int, limit: int | None) -> list[str]:
    words = [sys.executable, "-m", "paligemma", "batch", "--input", str(pictures)]
    words += ["--output", str(output), "--task", "detect", "--labels", " ; ".join(LABELS)]
    words += ["--model", "tiny", "--batch-size", str(BATCH_SIZE), "--part-rows", str(PART_ROWS)]
    words += ["--processes", str(processes)]
    return words if limit is None else [*words, "--limit", str(limit)]


def batch_run(
    pictures: Path, output: Path, *, processes: int, limit: int | None = None
) -> tuple[float, float]:
    """Rows a second from the first worker that is ready on, and seconds from then on."""
    shutil.rmtree(output, ignore_errors=True)
    command = batch_command(pictures, output, processes=processes, limit=limit)
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    parts = [one for one in log if "part" in one]
    begun = min(one["at"] - one["seconds"] for one in parts)
    seconds = max(one["at"] for one in parts) - begun
    return sum(one["rows"] for one in parts) / seconds, max(one["at"] for one in parts)


def measured(folder: Path, *, rounds: int) -> Iterator[tuple[str, float, float]]:
    pictures = folder / "pictures"
    for _ in range(rounds):
        inner = [sys.executable, __file__, "--folder", str(folder), "--engine"]
        found = subprocess.run(inner, check=True, capture_output=True, text=True)
        yield "engine", float(found.stdout), 0.0
        for processes, mode in ((1, "one process"), (2, "two processes")):
            yield mode, *batch_run(pictures, folder / "labels", processes=processes)


def planned_s(folder: Path, num_rows: int) -> float:
    """Seconds that `plan batch` makes of a pilot of a fifth of the rows."""
    pilot = folder / "pilot"
    batch_run(folder / "pictures", pilot, processes=2, limit=max(PILOT_ROWS, num_rows // 5))
    command = [sys.executable, "-m", "paligemma", "plan", "batch", "--images", str(num_rows)]
    command += ["--pilot", str(pilot), "--processes", "2", "--part-rows", str(PART_ROWS)]
    command += ["--stragglers", "0", "--json"]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(found.stdout)["plans"][0]["hours"] * 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=1024)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", action="store_true", help="the engine alone, in this process")
    options = parser.parse_args()
    if options.pictures < PILOT_ROWS or options.rounds < 1:
        parser.error(f"a pilot alone labels {PILOT_ROWS} pictures, and a round is the least")
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    folder: Path = options.folder
    if options.engine:
        import torch

        torch.set_num_threads(1)
        print(engine_rate(folder / "pictures"))
        return
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for seed in range(options.pictures):
        target = folder / "pictures" / f"{seed:06d}.jpg"
        if not target.exists():
            Image.fromarray(draw_scene(seed, DRAWN).image).save(target, quality=90)
    print(describe(), flush=True)
    plan = planned_s(folder, options.pictures)
    rates: dict[str, list[float]] = {mode: [] for mode in MODES}
    whole: list[float] = []
    for mode, rate, seconds in measured(folder, rounds=options.rounds):
        rates[mode].append(rate)
        print(f"{mode}: {rate:.2f} rows a second", flush=True)
        if mode == "two processes":
            whole.append(seconds)
    middle = {mode: statistics.median(found) for mode, found in rates.items()}
    print(f"batch beside the engine: {middle['one process'] / middle['engine']:.3f}")
    print(f"two processes beside one: {middle['two processes'] / middle['one process']:.2f}")
    took = statistics.median(whole)
    print(f"planned {plan:.0f} s, took {took:.0f} s: {plan / took - 1:+.1%}")


if __name__ == "__main__":
    main()
