"""Tests run over the models and variants of the golden set that --golden names."""

from __future__ import annotations

import pytest
from golden_set import decodings, golden_models


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    models = golden_models(metafunc.config.getoption("--golden"))
    ways = [way for model in models for way in decodings(model)]
    cases = {
        "gold": {model.name: model for model in models},
        "decoding": {str(way): way for way in ways},
        "banning": {str(way): way for way in ways if "ban_greedy_ids" in way},
        "stopping": {str(way): way for way in ways if "stop_ids" in way},
    }
    for name in cases.keys() & set(metafunc.fixturenames):
        metafunc.parametrize(name, cases[name].values(), ids=cases[name].keys())
