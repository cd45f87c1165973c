"""A user's script passes the strict type checker, and a misspelt option does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "user_script.py"


def strict(path: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    command = ["-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", str(cache)]
    # Away from the repository, whose own settings must not help.
    return subprocess.run(
        [sys.executable, *command, "--config-file", "", str(path)],
        capture_output=True,
        text=True,
        cwd=path.parent,
    )


def test_a_script_of_a_user_passes_the_strict_type_checker(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(SCRIPT.read_text())
    bad.write_text(SCRIPT.read_text().replace("threshold=0.3", "treshold=0.3"))
    done = strict(good, tmp_path / "cache")
    assert (done.returncode, done.stdout) == (0, "")
    wrong = strict(bad, tmp_path / "cache")
    assert wrong.returncode == 1
    assert 'Unexpected keyword argument "treshold"' in wrong.stdout
