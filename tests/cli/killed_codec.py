"""Stops `paligemma train codec` twice and goes on with it: `python killed_codec.py FOLDER`.

The programs are forked from this process, so that no time goes into imports; they draw forty masks
instead of sixteen thousand. Prints how each ended, as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from paligemma.cli import main as program
from paligemma.tiny import mask_codec

collect_masks = mask_codec.collect_masks


def few_masks(num_masks: int, **options: Any) -> mask_codec.MaskSet:
    return collect_masks(min(num_masks, 40), **options)


def begin(path: Path) -> int:
    """The process of the program, which writes a codec."""
    child = os.fork()
    if not child:
        words = ["train", "codec", "--steps", "12", "--quiet", "--output", str(path)]
        sys.argv[1:] = words
        program()
    return child


def ended(path: Path, number: int, is_time: Callable[[], bool]) -> int:
    """The exit code of a program that gets a signal once it has come so far."""
    child, started = begin(path), time.monotonic()
    while not is_time():
        if time.monotonic() - started > 60:
            os.kill(child, signal.SIGKILL)
            raise SystemExit("a training does not come so far")
        time.sleep(0.002)
    os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    # What torch imports for its first optimiser is imported once.
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    mask_codec.collect_masks = few_masks
    path = folder / "cut.safetensors"
    metrics = folder / "cut.train" / "metrics.jsonl"

    def has_lines(count: int) -> bool:
        return metrics.exists() and metrics.read_text().count("\n") >= count

    codes = [
        ended(path, signal.SIGKILL, lambda: has_lines(2)),
        ended(path, signal.SIGTERM, lambda: has_lines(4)),
    ]
    for name in ("cut", "whole"):
        child = begin(folder / f"{name}.safetensors")
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
