"""JSON from outside: every value as the standard library reads it, and no file without bounds."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from paligemma.json_file import MAX_DEPTH, parse_json, read_json


@pytest.mark.parametrize(
    "value",
    [None, True, "ü", 0, -7, 10**300, 1.5e-300, -0.0, 1e308, [], {}, {"a": [{"b": [1, "[[["]}]}],
)
def test_what_is_within_the_bounds_is_read_as_it_stands(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    ("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]"), ('[1,"x",[', "]]")]
)
def test_depth_is_bounded_whatever_is_nested(opening: str, closing: str) -> None:
    levels = opening.count("[") + opening.count("{")
    fits = MAX_DEPTH // levels
    parse_json(opening * fits + "0" + closing * fits)
    for times in (fits + 1, 400, 200_000):
        with pytest.raises(ValueError, match=f"nested {MAX_DEPTH} deep"):
            parse_json(opening * times + "0" + closing * times)
    with pytest.raises(ValueError, match=r"nested|Expecting"):
        parse_json(opening * 200_000)


@pytest.mark.parametrize(
    "number", ["1e400", "-1e400", "1" * 310, "-" + "9" * 5000, "1" * 300 + "e99", "NaN", "Infinity"]
)
def test_numbers_beyond_a_float_are_refused_where_they_stand(number: str) -> None:
    with pytest.raises(ValueError, match="must be finite and below 1e308, got") as caught:
        parse_json('{"a": [1, {"b": ' + number + "}]}")
    assert len(str(caught.value)) < 100


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf[1, 2]")
    assert read_json(path) == [1, 2]
    assert read_json(path, max_bytes=9) == [1, 2]
    with pytest.raises(ValueError, match="may have 8 bytes and has more"):
        read_json(path, max_bytes=8)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "b.json")


def test_a_small_file_takes_little_memory_however_large_it_might_be(tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    path.write_text("[1]")
    tracemalloc.start()
    assert read_json(path, max_bytes=1 << 30) == [1]
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
