"""The kinds of an index, and their names."""

from __future__ import annotations

from pathlib import Path

import pytest

KINDS = ["memory", "safetensors", "edge", "qdrant"]
KEPT = ["safetensors", "edge"]  # in a folder


def url_of(kind: str, folder: Path) -> str:
    """The name of an index in a folder."""
    if kind == "edge":
        pytest.importorskip("qdrant_edge")
    return {"safetensors": f"memory://{folder}", "edge": str(folder)}[kind]
