"""A server of the embedded model, in this process."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

from starlette.testclient import TestClient

from paligemma import PaliGemma
from paligemma.serve.app import create_app
from paligemma.serve.asking import Service
from paligemma.serve.models import Models, ModelSpec
from paligemma.serve.options import ServerOptions

DESK = Path(__file__).parents[2] / "examples" / "desk.png"


def tiny() -> PaliGemma:
    return PaliGemma.from_pretrained("tiny", kv_cache_dtype="float32")


@pytest.fixture(scope="session")
def local() -> PaliGemma:
    """The same model without a server."""
    return tiny()


def serving(**bounds: Any) -> Service:
    """A service of the embedded model."""
    options = ServerOptions(**bounds)
    return Service.of(Models([ModelSpec(name="tiny", load=tiny)], options), options)


@pytest.fixture(scope="session")
def client() -> Iterator[TestClient]:
    with TestClient(create_app(serving())) as found:
        yield found


@pytest.fixture(scope="session")
def desk() -> str:
    """The repository's picture as a data URL."""
    return "data:image/png;base64," + base64.b64encode(DESK.read_bytes()).decode()
