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
    found = re.search(r"(\d+) generated", done.stdout.replace(",", ""))
    return int(found[1]) if found else 0, "" if done.returncode == 0 else done.stdout + done.stderr


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--max-examples", type=int, default=200)
    chosen = parser.parse_args()
    with live(app_of(tiny)) as server:
        num_cases, report = run(
            server.url, Path(tempfile.mkdtemp()), num_examples=chosen.max_examples
        )
    print(report or f"{num_cases} cases, no failure")
