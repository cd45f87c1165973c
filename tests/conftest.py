"""Fixtures shared by all rooms."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from paligemma.kernels import native

# One commit, one verdict: by default the same draws every time. HYPOTHESIS_PROFILE=explore draws
# anew, which is how to look for what nobody thought of.
settings.register_profile("repeat", derandomize=True, database=None)
settings.register_profile("explore", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))

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
    # Who starts the tests in the background may ignore these, and every child would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def golden_dir(request: pytest.FixtureRequest) -> Path:
    """Directory of golden vectors; the bundled copy unless --golden names another."""
    return request.config.getoption("--golden")


_LOGGER = logging.getLogger("paligemma")
_AT_START = (_LOGGER.level, list(_LOGGER.handlers))


@pytest.fixture(autouse=True)
def _untouched_logger() -> Iterator[None]:
    """The command line sets up the package's logger; every test finds it as it was at the start.

    What a fixture of a module or of the whole run left is undone too: such a fixture runs
    before this one.
    """

    def undo() -> None:
        level, handlers = _AT_START
        _LOGGER.setLevel(level)
        _LOGGER.handlers[:] = handlers

    undo()
    yield
    undo()


@pytest.fixture(params=["plain C", "AVX2", "AVX-512", "NEON"])
def level(request: pytest.FixtureRequest) -> Iterator[int]:
    """Each level of the compiled kernels that this CPU has, set while a test runs."""
    library = native.library()
    if library is None:
        pytest.skip(native.describe())
    best = library.pg_best_level()
    names = [native.level_name(library, number) for number in range(best + 1)]
    if request.param not in names:
        pytest.skip(f"this CPU has no {request.param}")
    library.pg_set_level(names.index(request.param))
    yield library.pg_level()
    library.pg_set_level(best)
