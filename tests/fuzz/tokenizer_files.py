"""Damaged and hostile tokenizers: SentencePiece models, tokenizer.json, lists of added tokens."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

from fuzz.damage import damaged_bytes, damaged_json
from fuzz.folders import Files, changed
from fuzz.models import new_place
from tiny_folder import EMBEDDED
from tokenizer_json import hub_json

from paligemma.processing.tokenizer import load_tokenizer

NAME = "tokenizer_files"
MAX_MB = 1024

_TEXTS = ("", "detect star ; car\n", "<eos><bos>a<image><loc0001>", "é日本😀" * 40, "x" * 5000)
_STEPS = (
    {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""},
    {"type": "Replace", "pattern": {"String": ""}, "content": "xx"},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 4000},
    {"type": "Prepend", "prepend": "x" * 9999},
    {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"String": "a"}, "behavior": "x", "invert": False},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 99},
    {"type": "Strip", "content": "x", "start": 2**63, "stop": -1},
    {"type": "ByteFallback"},
)


@cache
def folders() -> dict[str, Path]:
    """A sound tokenizer of each kind."""
    found = {name: new_place() for name in ("pieces", "json")}
    (found["pieces"] / "tokenizer.model").write_bytes((EMBEDDED / "tokenizer.model").read_bytes())
    hub_json(load_tokenizer(EMBEDDED), found["json"] / "tokenizer.json")
    size = load_tokenizer(EMBEDDED).vocab.size
    tokens = {str(size + k): {"content": f"<t{k}>", "lstrip": k == 1} for k in range(3)}
    names = {row["content"]: int(key) for key, row in tokens.items()}
    for folder in found.values():
        (folder / "added_tokens.json").write_text(json.dumps(names))
        config = {"added_tokens_decoder": tokens}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return found


def _damaged_pieces(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """An entry of the protobuf message removed, doubled, moved, cut or with other content."""
    if rng.random() < 0.4:
        return damaged_bytes(data, rng)
    entries, at = [], 0
    while at < len(data) and data[at] == 0x0A and data[at + 1] < 0x80:
        end = at + 2 + data[at + 1]
        entries.append(data[at:end])
        at = end
    chosen = rng.randrange(min(len(entries), rng.choice((8, len(entries)))))
    way = rng.choice(("drop", "double", "move", "text", "kind", "score", "tail"))
    entry = entries[chosen]
    if way == "drop":
        del entries[chosen]
    elif way == "double":
        entries.insert(chosen, entry)
    elif way == "move":
        entries.insert(rng.randrange(len(entries)), entries.pop(chosen))
    elif way == "text":
        text = rng.choice((b"", b"\xff\xfe", b"<loc0000>", b"x" * 100, b"\x00", b"\x1b[2J"))
        body = b"\x0a" + bytes([len(text)]) + text
        entries[chosen] = b"\x0a" + bytes([len(body)]) + body
    elif way == "kind":
        body = entry[2:] + b"\x18" + bytes([rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 99))])
        entries[chosen] = b"\x0a" + bytes([len(body)]) + body
    elif way == "score":
        body = entry[2:] + b"\x15" + rng.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff"))
        entries[chosen] = b"\x0a" + bytes([len(body)]) + body
    tail = damaged_bytes(data[at:], rng)[1] if way == "tail" else data[at:]
    return f"{way} of piece {chosen}", b"".join(entries) + tail


def _damaged_hub(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A section with another step, or any value with a fault."""
    if rng.random() < 0.5:
        content = json.loads(data)
        section = rng.choice(("normalizer", "pre_tokenizer", "decoder", "post_processor"))
        content[section] = rng.choice(_STEPS)
        if rng.random() < 0.3:
            content[section] = {"type": "Sequence", f"{section}s": rng.choices(_STEPS, k=3)}
        return f"{section} {content[section]!r:.60}", json.dumps(content).encode()
    return damaged_json(data, rng)


def make(rng: random.Random) -> tuple[str, tuple[str, Files, str]]:
    """A tokenizer with a damaged file, and a text."""
    kind = rng.choice(("pieces", "json"))
    folder = folders()[kind]
    names = sorted(path.name for path in folder.iterdir())
    name = rng.choice((*names, names[-1] if kind == "pieces" else "tokenizer.json"))
    damage = {"tokenizer.model": _damaged_pieces, "tokenizer.json": _damaged_hub}
    what, data = damage.get(name, damaged_json)((folder / name).read_bytes(), rng)
    return f"{kind}, {name}: {what}", (kind, {name: data}, rng.choice(_TEXTS))


def attempt(given: tuple[str, Files, str]) -> None:
    """Load it, encode a text, decode the ids, and write it."""
    kind, files, text = given
    with changed(folders()[kind], files) as folder:
        tokenizer = load_tokenizer(folder)
        ids = tokenizer.encode(text)
        assert all(0 <= token < tokenizer.vocab.size for token in ids)
        tokenizer.decode(ids)
        tokenizer.decode(range(min(tokenizer.vocab.size, 5000)))
        (folder.parent / "out").mkdir()
        tokenizer.save(folder.parent / "out")
