"""Kills a run at random moments and goes on with it: `python killed_run.py FOLDER KILLS SEED`.

Prints one JSON object. The runs are forked from this light process, so that no time goes into
imports; each is a process of its own and dies by SIGKILL.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from toy_task import TOY, ToyAnswerer

from paligemma.eval.options import EvalOptions
from paligemma.eval.runner import evaluate
from paligemma.jobs.run_folder import load_run

OPTIONS = EvalOptions(batch_size=9, num_workers=0, limit=190, seed=3)
# About 0.15 s a run.
BATCH_S = 0.006


def begin(folder: Path) -> int:
    """The process that runs the task to its end."""
    child = os.fork()
    if child:
        return child
    try:
        evaluate(TOY, ToyAnswerer(BATCH_S), None, "test", OPTIONS, folder, command="toy")
    except BaseException as error:
        sys.stderr.write(f"{error!r}\n")
        os._exit(1)
    os._exit(0)


def num_lines(folder: Path) -> int:
    path = folder / "predictions.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def has_ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def killed(folder: Path, rng: random.Random) -> bool:
    """Begin or go on, kill at some moment; whether it was killed before it had ended.

    The moment is counted in batches first and then in time, so that kills fall everywhere on a slow
    machine too; every third may come before anything was done.
    """
    target = num_lines(folder) + 9 * rng.randrange(3)
    child = begin(folder)
    while num_lines(folder) < target and not has_ended(child):
        time.sleep(0.0005)
    time.sleep(rng.uniform(0.0, 2 * BATCH_S))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a run failed")
    return os.WIFSIGNALED(status)


def main(root: Path, num_kills: int, seed: int) -> None:
    rng = random.Random(seed)
    folders = [root / "run0"]
    progress: list[int] = []
    while len(progress) < num_kills:
        if killed(folders[-1], rng):
            progress.append(num_lines(folders[-1]))
        else:
            folders.append(root / f"run{len(folders)}")
    for folder in folders:
        status = os.waitpid(begin(folder), 0)[1]
        if status:
            raise SystemExit("a run failed")
    whole = root / "whole"
    evaluate(TOY, ToyAnswerer(), None, "test", OPTIONS, whole, command="toy")
    expected = load_run(whole)
    value = TOY.score(*expected.answered())[0].value
    runs = [load_run(folder) for folder in folders]
    print(
        json.dumps(
            {
                "kills": len(progress),
                "progress": progress,
                "value": value,
                "values": [TOY.score(*run.answered())[0].value for run in runs],
                "same": [run.predictions == expected.predictions for run in runs],
                "missing": [len(run.missing) for run in runs],
                "duplicates": [run.num_duplicates for run in runs],
                "lines": [len((f / "predictions.jsonl").read_text().splitlines()) for f in folders],
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
