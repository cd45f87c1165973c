"""The program run in this process, on a random model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_folder import write_random_tiny

from paligemma.cli import main


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a run of the program ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on standard output."""
        return json.loads(self.out)


Run = Callable[..., Done]


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_tiny(tmp_path_factory.mktemp("models") / "random-tiny")


@pytest.fixture
def paligemma(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """paligemma("caption", "a.png") -> what the program printed; the model is the random one."""
    monkeypatch.setenv("PALIGEMMA_MODEL", str(tiny_dir))

    def run(*args: object) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(arg) for arg in args])
        printed = capfd.readouterr()
        return Done(status=ended.value.code or 0, out=printed.out, err=printed.err)

    return run
