"""Faults for bytes, JSON and lines of JSON, drawn from a generator."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

EXTREMES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF, 12000, 2000)
# JSON that is hostile to a reader of numbers, texts, lists or objects.
TOKENS = (
    *("null", "true", "false", "0", "1", "2", "-1", "0.5", "-0.0", "1e300", "1e400", "-1e400"),
    *("NaN", "Infinity", "1" + "0" * 400, str(2**31), str(2**63), str(2**64), "1e-320"),
    *('""', '"x"', '"0"', '"nan"', r'"\u0000"', r'"\ud800"', '"../../x"', '"/dev/zero"'),
    *(r'"\u001b]0;t\u0007"', '"' + "x" * 5000 + '"', '"é日本😀"', r'"a\nb"', '"."', '"(a+)+$"'),
    *("[]", "{}", "[[]]", "[null]", "[1, 2, 3]", '["x", "x"]', '{"a": 1}', '{"": []}'),
    *("[-1, 0]", "[0.1, 0.2, 0.3, 0.4]", "[1e400, 0, 1, 1]", "[" * 80 + "]" * 80),
)


def truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def flip(data: bytearray, rng: random.Random) -> None:
    end = rng.choice((64, 512, len(data)))
    for _ in range(rng.choice((1, 3, 20))):
        data[rng.randrange(min(end, len(data)))] = rng.randrange(256)


def number(data: bytearray, rng: random.Random) -> None:
    """A size, length, count or offset becomes an extreme one."""
    layout = rng.choice(("<H", ">H", "<I", ">I"))
    width = struct.calcsize(layout)
    at = rng.randrange(max(min(rng.choice((80, len(data))), len(data) - width), 1))
    value = rng.choice(EXTREMES) & (0xFFFF if width == 2 else 0xFFFFFFFF)
    data[at : at + width] = struct.pack(layout, value)


def repeat(data: bytearray, rng: random.Random) -> None:
    """A piece, such as a chunk or a scan, comes hundreds of times."""
    start = rng.randrange(len(data))
    piece = data[start : start + rng.choice((4, 12, 40, 300))]
    data[start:start] = piece * rng.choice((2, 100, 2000))


BYTE_FAULTS = (truncate, flip, number, number, repeat)


def damaged_bytes(
    data: bytes,
    rng: random.Random,
    faults: Sequence[Callable[[bytearray, random.Random], None]] = BYTE_FAULTS,
) -> tuple[str, bytes]:
    """The bytes with one to three faults, and their names."""
    changed = bytearray(data)
    chosen = rng.choices(faults, k=rng.choice((1, 1, 2, 3)))
    for fault in chosen:
        if changed:
            fault(changed, rng)
    return " and ".join(fault.__name__.strip("_") for fault in chosen), bytes(changed)


def damaged_json(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A JSON text with one to three values replaced, removed, added or exchanged."""
    if rng.random() < 0.08:
        return damaged_bytes(data, rng)
    value = json.loads(data)
    said, tokens = [], {}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(value, ""))
        if not places:
            break
        holder, key, name = rng.choice(places)
        action = rng.choice(("replace", "replace", "replace", "remove", "add", "exchange"))
        mark = f"@{len(tokens)}@"
        if action == "replace":
            tokens[mark] = rng.choice(TOKENS)
            holder[key] = mark
            name += f" = {tokens[mark][:30]}"
        elif action == "remove":
            del holder[key]
        elif action == "add" and isinstance(holder, dict):
            tokens[mark] = rng.choice(TOKENS)
            holder[rng.choice(("x", "", str(key).upper(), f"{key}_", "\x1b[2J"))] = mark
        elif action == "add":
            holder.insert(key, holder[key])
        else:
            other, at, _ = rng.choice(places)
            holder[key] = json.loads(json.dumps(other[at])) if at in _keys(other) else None
        said.append(f"{action} {name}")
    text = json.dumps(value)
    for mark, token in tokens.items():
        text = text.replace(f'"{mark}"', token)
    return ", ".join(said), text.encode()


def _keys(holder: Any) -> Any:
    return holder.keys() if isinstance(holder, dict) else range(len(holder))


def _places(value: Any, name: str) -> Any:
    """Every place of a value: what holds it, its key there, and its name; few of long lists."""
    if isinstance(value, dict):
        keys: Any = list(value)
    elif isinstance(value, list):
        keys = range(min(len(value), 8))
    else:
        return
    for key in keys:
        where = f"{name}.{key}" if name else str(key)
        yield value, key, where
        yield from _places(value[key], where)


def damaged_lines(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Lines of JSON with a fault in one of them, or in their order."""
    if rng.random() < 0.08:
        return damaged_bytes(data, rng)
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    action = rng.choice(("change", "change", "change", "change", "drop", "double", "tear", "put"))
    said = f"{action} line {at + 1}"
    if action == "change":
        what, lines[at] = damaged_json(lines[at], rng)
        said += f": {what}"
    elif action == "drop":
        del lines[at]
    elif action == "double":
        lines.insert(rng.randrange(len(lines) + 1), lines[at])
    elif action == "tear":
        return said, b"\n".join([*lines[:at], lines[at][: rng.randrange(len(lines[at]) + 1)]])
    else:
        lines.insert(at, rng.choice(TOKENS).encode())
    return said, b"\n".join(lines) + rng.choice((b"\n", b"\n", b"\r\n", b""))
