"""A random model of the embedded one's shape, loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_folder import write_random_tiny

from paligemma import PaliGemma


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_tiny(tmp_path_factory.mktemp("models") / "random-tiny")


@pytest.fixture(scope="session")
def random_tiny(tiny_dir: Path) -> PaliGemma:
    return PaliGemma.from_pretrained(tiny_dir, kv_cache_dtype="float32")
