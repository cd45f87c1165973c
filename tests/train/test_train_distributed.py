"""Two processes that train one model: the numbers of one process, through the command."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_folder import write_random_tiny

COLOURS = ((220, 30, 30), (30, 30, 220), (20, 160, 60))
NAMES = ("red", "blue", "a dark green")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_tiny(tmp_path_factory.mktemp("base") / "model", dtype="float32")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with one picture and with two, and answers of unequal length."""
    folder = tmp_path_factory.mktemp("colours")
    rows: list[dict[str, Any]] = []
    for name, rgb in zip(NAMES, COLOURS, strict=True):
        Image.fromarray(np.full((40, 60, 3), rgb, np.uint8)).save(folder / f"{name}.png")
        rows.append({"image": f"{name}.png", "prefix": "answer en color?", "suffix": name})
    pair = [f"{name}.png" for name in NAMES[:2]]
    rows.append({"image": pair, "prefix": "answer en colors?", "suffix": "red, then blue"})
    for split, some in (("train", rows), ("valid", rows[:3])):
        lines = "".join(json.dumps(row) + "\n" for row in some)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def start(number: int, *words: object) -> list[subprocess.Popen[str]]:
    """The command in some processes, with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "paligemma", *map(str, words)]
    started = []
    for rank in range(number):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        if number > 1:
            env |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
        started.append(
            subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    return started


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, standard output and standard error of each."""
    found = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        found.append((process.returncode, out, err))
    return found


def losses(folder: Path) -> list[float]:
    lines = (folder / "train" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_an_adapter_trained_by_two_processes_has_the_losses_of_one(
    base: Path, data: Path, tmp_path: Path
) -> None:
    words = ["train", "--data", data, "--model", base, "--steps", 6, "--batch-size", 3,
             "--rank", 4, "--lr", 3e-3, "--mean", "token", "--quiet"]  # fmt: skip
    (alone,) = ended(start(1, *words, "--output", tmp_path / "one"))
    first, second = ended(start(2, *words, "--output", tmp_path / "two"))
    assert (alone[0], first[0], second[0]) == (0, 0, 0), (alone, first, second)
    assert second[1] == ""
    assert "answer_accuracy" in first[1]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    reports = [json.loads((tmp_path / k / "report.json").read_text()) for k in ("one", "two")]
    assert reports[0] == reports[1]
