"""The package is typed for whoever installs it: a user's script passes mypy --strict and runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from user_script import main

import paligemma

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "user_script.py"


def strict(script: Path, working_dir: Path) -> subprocess.CompletedProcess[str]:
    """mypy --strict on a script that sees the package as installed, not as sources to check."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file="]
    cache = ("--cache-dir", str(ROOT / ".mypy_cache" / "user"))
    return subprocess.run(
        [*command, *cache, str(script)],
        cwd=working_dir,
        env=os.environ | {"PYTHONPATH": str(Path(paligemma.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_marker_of_a_typed_package_is_installed() -> None:
    assert (Path(paligemma.__file__).parent / "py.typed").exists()
    assert '"py.typed"' in (ROOT / "pyproject.toml").read_text()


def test_a_users_script_passes_the_strict_type_checker(tmp_path: Path) -> None:
    done = strict(SCRIPT, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_strict_type_checker_sees_the_types_of_the_package(tmp_path: Path) -> None:
    # Were the package untyped to it, every result would be Any and nothing below an error.
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from paligemma import PaliGemma\n"
        'model = PaliGemma.from_pretrained("tiny")\n'
        'text: int = model.caption("desk.png").text\n'
        'model.detect("desk.png", ["star"], treshold=0.5)\n'
    )
    done = strict(wrong, tmp_path)
    assert 'expression has type "str", variable has type "int"' in done.stdout
    assert 'Unexpected keyword argument "treshold"' in done.stdout
    assert "Found 3 errors" in done.stdout  # an overloaded method has two for one mistake


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return main(ROOT / "examples" / "desk.png", tmp_path_factory.mktemp("found"))


def test_a_users_script_runs(lines: dict[str, str]) -> None:
    assert lines["found"].startswith("Detections(")
    assert all(lines.values())


def test_what_the_type_checker_forbids_is_reported_in_sentences(lines: dict[str, str]) -> None:
    reports = lines["mistakes"].splitlines()
    assert len(reports) == 4
    assert "max_new_tokens" in reports[0]
    assert "threshold" in reports[1]
    assert "a confidence in [0, 1], got 'high'" in reports[2]
    assert "dtype must be torch.bfloat16" in reports[3]
