"""The `data.yaml` of YOLO: class names and places of pictures, in the part of YAML that it uses.

Scalars, lists in brackets or by dashes, and one level of `key: value` are read; under keys that are
not asked for anything may stand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paligemma.tasks.own.labels import RowError
from paligemma.tasks.reading.files import read_text

_MAX_BYTES = 1 << 20
_KEY = re.compile(r"""(?P<key>[\w.-]+|'[^']*'|"[^"]*")\s*:(?:\s+(?P<value>.*))?$""")
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*\"""")


def read_data_yaml(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Read some keys of the file: text, list of texts, or dict of texts each.

    Raises:
        RowError: such a key holds what this reader does not know; names file and line.
        DataError: the file cannot be read.
    """
    text = read_text(path, max_bytes=_MAX_BYTES, source="the export of a YOLO set")
    found: dict[str, Any] = {}
    lines = [(n, _uncommented(line)) for n, line in enumerate(text.splitlines(), start=1)]
    lines = [(n, line) for n, line in lines if line.strip() and line.strip() != "---"]
    for (number, line), block in _blocks(lines):
        asked = _KEY.match(line)
        if asked is None or _plain(asked["key"]) not in names:
            continue
        name, value = _plain(asked["key"]), (asked["value"] or "").strip()
        where = f"{path}, line {number}"
        if name in found:
            raise RowError("classes", f"{where}: {name} stands there twice; remove one")
        whole = " ".join([value, *(one.strip() for _, one in block)]).strip()
        if value[:1] in ("[", "{"):
            found[name] = _flow(whole, where)
        elif value or not block:
            if block or value[:1] in ("&", "*", "|", ">", "!"):
                raise _unknown(where, whole)
            found[name] = _plain(value)
        else:
            found[name] = _block(block, path)
    return found


def _unknown(where: str, text: str) -> RowError:
    return RowError(
        "classes",
        f"{where}: a value must be text, a list or one level of `key: value`, got {text[:60]!r}; "
        "write it so",
    )


def _uncommented(line: str) -> str:
    """The line without its comment; a # inside quotes or a word is none."""
    masked = _QUOTED.sub(lambda quoted: "q" * len(quoted[0]), line)
    comment = re.search(r"(?:^|\s)#", masked)
    return line[: comment.start()].rstrip() if comment else line.rstrip()


def _blocks(
    lines: list[tuple[int, str]],
) -> Iterator[tuple[tuple[int, str], list[tuple[int, str]]]]:
    """Each line that begins a key, with the lines that belong to it."""
    starts = [k for k, (_, line) in enumerate(lines) if line[0] not in " \t-]}"]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield lines[start], lines[start + 1 : end]


def _block(block: list[tuple[int, str]], path: Path) -> list[str] | dict[str, str]:
    items: list[str] = []
    pairs: dict[str, str] = {}
    indent = len(block[0][1]) - len(block[0][1].lstrip())
    for number, line in block:
        text = line.strip()
        pair = _KEY.match(text)
        is_item = text.startswith("- ")
        value = text[2:].strip() if is_item else (pair["value"] or "") if pair else ""
        is_level = len(line) - len(line.lstrip()) == indent
        is_nested = is_item and bool(_KEY.match(value))
        if not is_level or not value or value[0] in "[{&*|>!" or is_nested or (items and pairs):
            raise _unknown(f"{path}, line {number}", text)
        if is_item:
            items.append(_plain(value))
        elif pair:
            pairs[_plain(pair["key"])] = _plain(value)
    return pairs or items


def _flow(text: str, where: str) -> list[str] | dict[str, str]:
    """A list in brackets or pairs in braces."""
    is_list = text[0] == "["
    if text[-1] != ("]" if is_list else "}"):
        raise _unknown(where, text)
    parts, depth = [], 0
    masked = _QUOTED.sub(lambda quoted: "q" * len(quoted[0]), text[1:-1])
    if set(masked) & set("[]{}"):
        raise _unknown(where, text)
    for one in masked.split(","):
        parts.append(text[1:-1][depth : depth + len(one)].strip())
        depth += len(one) + 1
    if parts and not parts[-1]:  # a comma may end the list
        parts.pop()
    if not all(parts):
        raise _unknown(where, text)
    if is_list:
        return [_plain(one) for one in parts]
    pairs = [_KEY.match(one) for one in parts]
    if not all(pair and pair["value"] for pair in pairs):
        raise _unknown(where, text)
    return {_plain(pair["key"]): _plain(pair["value"]) for pair in pairs if pair}


def _plain(text: str) -> str:
    text = text.strip()
    if _QUOTED.fullmatch(text):
        inner = text[1:-1]
        if text[0] == "'":
            return inner.replace("''", "'")
        try:
            return str(json.loads(text))  # Escapes such as \u00e9 are those of JSON.
        except ValueError:
            return re.sub(r"\\(.)", r"\1", inner)
    return text
