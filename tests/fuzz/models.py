"""Model folders of a narrow random model, and faults for their files."""

from __future__ import annotations

import io
import random
import struct
import tempfile
import zipfile
from dataclasses import replace
from functools import cache
from pathlib import Path

from fuzz.damage import damaged_bytes, damaged_json
from tiny_folder import EMBEDDED

from paligemma.model.paligemma import PaliGemmaModel, init_weights
from paligemma.outputs.vqvae import MaskCodec, MaskCodecConfig
from paligemma.processing.tokenizer import load_tokenizer
from paligemma.tiny.start import tiny_config
from paligemma.weights.save import save_model

# Whatever holds one of these is let go at the end of the process.
_PLACES: list[tempfile.TemporaryDirectory[str]] = []


def new_place() -> Path:
    """A folder that lasts as long as the process."""
    _PLACES.append(tempfile.TemporaryDirectory())
    return Path(_PLACES[-1].name)


@cache
def model_folder(kind: str = "hf") -> Path:
    """Path of a model: of kind "hf", "sharded" or "npz"."""
    config = tiny_config(load_tokenizer(EMBEDDED).vocab, image_size_px=32)
    narrow = {"width": 16, "depth": 2, "mlp_dim": 24}
    text = replace(config.text, **narrow, num_heads=2, num_kv_heads=1, head_dim=8)
    vision = replace(config.vision, **narrow, num_heads=2)
    model = PaliGemmaModel(replace(config, vision=vision, text=text))
    init_weights(model)
    folder = new_place() / kind
    tokenizer = EMBEDDED / "tokenizer.model"
    if kind == "npz":
        save_model(model, folder, dtype="float32", layout="npz", extra_files=[tokenizer])
    else:
        size = {"max_shard_bytes": 40_000} if kind == "sharded" else {}
        save_model(model, folder, dtype="float16", extra_files=[tokenizer], **size)
    codec = MaskCodec(MaskCodecConfig(channels=(4, 4, 4), hidden=8, code_dim=8, num_codes=128))
    codec.save(folder / "mask_codec.safetensors", dtype="float32")
    if kind == "sharded":  # beside the other, so that both containers are tried
        codec.save(folder / "mask_codec.npz", dtype="float32")
    return folder


def damaged_safetensors(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A fault in the header, in its length, or anywhere."""
    way = rng.choice(("header", "header", "header", "length", "bytes", "cut"))
    (length,) = struct.unpack_from("<Q", data)
    head, body = data[8 : 8 + length], data[8 + length :]
    if way == "header":
        what, head = damaged_json(head, rng)
        return what, struct.pack("<Q", len(head)) + head + body
    if way == "length":
        wrong = rng.choice((0, 1, length - 1, length + 1, len(data), 2**31, 2**63, 2**64 - 1))
        return f"length {wrong}", struct.pack("<Q", wrong) + head + body
    if way == "cut":
        return "cut", data[: -rng.choice((1, 2, len(body) // 2 or 1, len(body) or 1))]
    return damaged_bytes(data, rng)


_HEADERS = (
    "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999, 99999999), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<f4', 'fortran_order': True, 'shape': (), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
    "{'descr': [('a', '<f4'), ('b', '<i8')], 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 2), }",
    "{'descr': '<U9', 'fortran_order': False, 'shape': (2,), }",
    "{'descr': '<c8', 'fortran_order': 1, 'shape': (2, 2), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2), }",
    "[" * 3000,
    "{'descr': '<f4'}",
    "__import__('os')",
)


def damaged_npz(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A fault in one member of the zip, in its name, or anywhere."""
    if rng.random() < 0.3:
        return damaged_bytes(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    at = rng.randrange(len(members))
    name, content = members[at]
    way = rng.choice(("header", "header", "bytes", "drop", "double", "name", "empty"))
    said = f"{way} of {name}"
    if way == "header":
        head = rng.choice(_HEADERS).encode("latin1") + b"\n"
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + content[128:]
        members[at] = name, content
    elif way == "bytes":
        what, content = damaged_bytes(content, rng)
        members[at] = name, content
        said += f" {what}"
    elif way == "drop":
        del members[at]
    elif way == "double":
        members.append(members[at])
    elif way == "name":
        members[at] = rng.choice(("../x.npy", "x", "/x.npy", "a/b/c.npy", "\x1b[2J.npy")), content
    else:
        members[at] = name, b""
    return said, _zipped(members, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


def _zipped(members: list[tuple[str, bytes]], method: int) -> bytes:
    buffer = io.BytesIO()
    import warnings

    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def damaged_model(kind: str, rng: random.Random) -> tuple[str, dict[str, bytes]]:
    """One or two damaged files of a model folder."""
    folder = model_folder(kind)
    names = sorted(path.name for path in folder.iterdir() if path.name != "tokenizer.model")
    said, files = [], {}
    for name in rng.sample(names, k=rng.choice((1, 1, 1, 2))):
        data = (folder / name).read_bytes()
        damage = {".json": damaged_json, ".npz": damaged_npz}.get(
            Path(name).suffix, damaged_safetensors
        )
        what, files[name] = damage(data, rng)
        said.append(f"{name}: {what}")
    return "; ".join(said), files
