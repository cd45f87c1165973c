"""Fixtures shared by all rooms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

_BUNDLED_GOLDEN = Path(__file__).parent / "golden" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=_BUNDLED_GOLDEN,
        help="directory with the original's own numbers (layout: tests/golden/data/README.md)",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Two threads a process: the suite is meant for two cores and runs in parallel processes.
    torch.set_num_threads(1 if hasattr(config, "workerinput") else 2)


@pytest.fixture(scope="session")
def golden_dir(request: pytest.FixtureRequest) -> Path:
    """Directory of golden vectors; the bundled copy unless --golden names another."""
    return request.config.getoption("--golden")
