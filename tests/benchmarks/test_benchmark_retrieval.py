"""benchmarks/retrieval.py on a few pages, in this process."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "retrieval.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_retrieval", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_engines_find_the_same_pages_in_the_same_order(
    script: ModuleType, tmp_path: Path
) -> None:
    pytest.importorskip("qdrant_edge")
    found = {}
    for engine in script.ENGINES:
        assert script.fill(engine, tmp_path / engine, 6) > 0
        report = script.measure(engine, tmp_path / engine, 6)
        assert report["all_s"] > 0
        assert report["peak_mb"] > 50
        found[engine] = report["all_found"]
    assert found["ours"] == found["direct"] == found["exact"]
    assert [len(set(pages)) for pages in found["ours"]] == [5] * script.NUM_QUERIES


def test_recall_is_the_share_of_the_true_pages(script: ModuleType) -> None:
    assert script.recall([[1, 2], [3, 4]], [[2, 1], [3, 9]]) == 0.75
