"""Kills a training at random moments and goes on with it: `python killed_training.py FOLDER KILLS`.

Prints one JSON object. The trainings are forked from this process, so that no time goes into
imports; each is a process of its own and dies by SIGKILL. The first half of the kills falls on
calls to the file system that a seed draws, so that saves are cut, the other half on any moment.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from toy_training import OPTIM, RandomBatches, TextObjective, small_model

from paligemma.train.checkpoint import checkpoints
from paligemma.train.loop import METRICS_FILE, LoopOptions, train

OPTIONS = LoopOptions(
    total_steps=6, log_every=4, save_every=2, num_workers=0, progress=False, dropout_seed=5
)
# Calls to the folder of a run that are drawn from, and those before its first checkpoint begins.
CALLS, EARLY_CALLS = 60, 3
# What a clock puts into a line.
_TIMES = ("second", "_s", "time", "rss")


def begin(folder: Path, kill_at: int | None = None) -> int:
    """The process that trains to the end, or until its call to the file system of that number."""
    child = os.fork()
    if child:
        return child
    left = kill_at

    def on_call(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if left is not None and event.startswith(("open", "os.", "shutil.")):
            if not any(str(folder) in str(one) for one in arguments):
                return
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(on_call)
    try:
        train(small_model(), TextObjective(), RandomBatches(), OPTIM, OPTIONS, folder)
    except BaseException as error:
        sys.stderr.write(f"{error!r}\n")
        os._exit(1)
    os._exit(0)


def left_by(folder: Path) -> dict[str, Any]:
    """Everything in the folder of a run, without what a clock put there."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == METRICS_FILE:
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [
                {key: value for key, value in line.items() if not any(t in key for t in _TIMES)}
                for line in lines
            ]
        elif path.name == "state.json":
            found[name] = {
                key: value
                for key, value in json.loads(path.read_text()).items()
                if key != "beside"  # the seconds of an unfinished line
            }
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder"
    return found


def state_of(folder: Path) -> str:
    """How far a run had come when it was killed."""
    names = os.listdir(folder) if folder.exists() else []
    if any(name.startswith(".step_") for name in names):
        return "in a save"
    return "between saves" if checkpoints(folder) else "before the first checkpoint"


def main(root: Path, num_kills: int) -> None:
    torch.set_num_threads(1)
    rng = random.Random(0)
    whole = root / "whole"
    train(small_model(), TextObjective(), RandomBatches(), OPTIM, OPTIONS, root / "warm")
    started = time.monotonic()
    if os.waitpid(begin(whole), 0)[1]:
        raise SystemExit("the whole run failed")
    run_s = time.monotonic() - started
    folders = [root / "run0"]
    kills: list[str] = []
    while len(kills) < num_kills:
        by_call = len(kills) < num_kills / 2
        # The first falls on a new folder, before anything of a checkpoint is there.
        call = rng.randrange(CALLS if kills else EARLY_CALLS)
        child = begin(folders[-1], call if by_call else None)
        if not by_call:
            time.sleep(rng.uniform(0.0, run_s))
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            raise SystemExit("a run failed")
        if os.WIFSIGNALED(status):
            kills.append(state_of(folders[-1]))
        else:
            folders.append(root / f"run{len(folders)}")
    for folder in folders:
        if os.waitpid(begin(folder), 0)[1]:
            raise SystemExit("a run failed")
    expected = left_by(whole)
    different = []
    for folder in folders:
        found = left_by(folder)
        names = sorted(expected.keys() | found.keys())
        different += [name for name in names if expected.get(name) != found.get(name)]
    lines = [line["step"] for line in expected[METRICS_FILE]]
    print(json.dumps({"kills": kills, "lines": lines, "different": different}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
