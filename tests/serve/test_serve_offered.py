"""Models, adapters and bounds by the texts that name them, as of a file or another program."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

from paligemma.errors import ConfigError
from paligemma.serve.offered import Offered, loading_options
from paligemma.serve.options import read_number


def test_options_of_loading_are_read_from_texts() -> None:
    found = loading_options(
        {"quant": "int8", "image_size_px": "448", "picture_cache_bytes": "1GB", "sliding_window": 0}
    )
    assert found == {
        "quant": "int8",
        "image_size_px": 448,
        "picture_cache_bytes": 10**9,
        "sliding_window": 0,
    }
    offered = Offered.of(["a", "b:int4"], ["cards=runs/cards", "maps@b:int4=runs/maps"], found)
    first, second = offered.models.values()
    assert (first.name, first.options["quant"], first.options["adapters"]) == (
        *("a", "int8"),
        {"cards": "runs/cards"},
    )
    assert (second.name, second.options["quant"], second.options["adapters"]) == (
        *("b", "int4"),
        {"maps": "runs/maps"},
    )
    assert [spec.name for spec in offered.specs()] == ["a", "b:int4"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"qant": "int8"}, "did you mean quant"),
        ({"image_size_px": "large"}, "image_size_px is a number"),
        ({"picture_cache_bytes": "much"}, "12GB or 500MB"),
        ({"mode": "fast"}, "mode must be one of"),
        ({"allow_url": "no"}, "allow_url"),
    ],
)
def test_what_does_not_fit_is_a_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        loading_options(values)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("max_rows", "8", 8),
        ("max_rows", 8, 8),
        ("queue_s", "2.5", 2.5),
        ("max_model_bytes", "12GB", 12 * 10**9),
        ("max_body_bytes", "1000000", 10**6),
    ],
)
def test_bounds_are_numbers(name: str, value: Any, expected: float) -> None:
    assert read_number(name, value) == expected


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("max_row", "8", "did you mean max_rows"),
        ("max_rows", "0", "a number above 0"),
        ("max_rows", "2.5", "a number above 0"),
        ("queue_s", "nan", "a number above 0"),
        ("max_rows", [8], "a number above 0"),
        ("max_body_bytes", "-1", "12GB or 500MB"),
    ],
)
def test_what_is_no_bound_is_a_sentence(name: str, value: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_number(name, value)
