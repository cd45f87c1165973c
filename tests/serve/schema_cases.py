"""Requests drawn from /openapi.json, valid and not, and what must hold of every answer.

python -m tests.serve.schema_cases --max-examples 200
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI

from paligemma import PaliGemma
from paligemma.serve.app import create_app
from paligemma.serve.asking import Service
from paligemma.serve.models import Models, ModelSpec
from paligemma.serve.options import ServerOptions
from tests.serve.conftest import tiny
from tests.serve.live import live

# A schema cannot tell which base64 is a picture or which text is a prompt, so valid fields may be
# refused; all other checks hold.
LEFT_OUT = "positive_data_acceptance"
# Of schemathesis 4.32.5 itself, which cannot check some broken forms that it draws. It then goes
# on with the next operation.
FAULT_OF_THE_TOOL = "Unsupported type: 'Binary'"


def app_of(load: Callable[[], PaliGemma]) -> FastAPI:
    """A server of one model."""
    options = ServerOptions()
    models = Models([ModelSpec(name="tiny", load=load)], options)
    return create_app(Service.of(models, options))


def run(
    url: str,
    folder: Path,
    *,
    num_examples: int,
    phases: str = "examples,coverage,fuzzing",
    paths: str = ".*",
) -> tuple[int, str]:
    """Ask a server.

    Args:
        folder: where the tool may write.
        num_examples: most drawn requests of each operation and phase.
        paths: a pattern of the operations that are asked.

    Returns:
        The number of requests, and the report if anything failed.
    """
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
            *("--checks", "all", "--exclude-checks", LEFT_OUT, "--max-examples", str(num_examples)),
            *(
                "--seed",
                "1",
                "--include-path-regex",
                paths,
                "--phases",
                phases,
                "--no-color",
                "--request-timeout",
                "60",
            ),
            *("--continue-on-failure", "--generation-database", "none"),
        ],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    num_cases, num_passed = (_count(done.stdout, word) for word in ("generated", "passed"))
    errors = set(re.findall(r"^Runtime Error\n\n(.*)$", done.stdout, re.MULTILINE))
    is_fine = done.returncode == 0 or (
        num_cases == num_passed
        and errors == {FAULT_OF_THE_TOOL}
        and not re.search("^=+ FAILURES", done.stdout, re.MULTILINE)
    )
    return num_cases, "" if is_fine else done.stdout + done.stderr


def _count(report: str, word: str) -> int:
    found = re.search(rf"^Test cases:\n.*?(\d+) {word}", report, re.MULTILINE)
    return int(found[1]) if found else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--max-examples", type=int, default=200)
    chosen = parser.parse_args()
    with live(app_of(tiny)) as server:
        num_cases, report = run(
            server.url, Path(tempfile.mkdtemp()), num_examples=chosen.max_examples
        )
    print(report or f"{num_cases} cases, no failure")
    sys.exit(1 if report or not num_cases else 0)
