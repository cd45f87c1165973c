"""The figures of a line of metrics, on systems that tell less than Linux does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from paligemma.train.window import Window

WITHOUT_POSIX = """
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys(["fcntl", "grp", "pwd", "resource", "termios"]))
import paligemma
for room in ("train", "tuning", "jobs"):
    package = importlib.import_module(f"paligemma.{room}")
    for one in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"paligemma.{room}.{one.name}")
import paligemma.cli.finetune
"""


def resident(monkeypatch: pytest.MonkeyPatch, **modules: object) -> object:
    """What a line says of memory where there is no /proc, and modules are replaced."""

    def gone(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", gone)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    window = Window()
    window.add({})
    line = window.line(3, {"all": 1.0}, 1)
    assert line["step"] == 3
    return line.get("rss_mb")


def test_training_imports_where_python_has_no_modules_of_posix() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_memory_is_the_most_there_was_without_that_file_and_left_out_on_windows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most = resident(monkeypatch)
    assert isinstance(most, int)
    assert most > 10
    assert resident(monkeypatch, resource=None) is None
