"""The npz container, streamed: one slice of one array in memory at a time, no pickle.

An npz is a zip of .npy files. Arrays in C order can be read and written along their first axis, so
that a stacked array of all layers never exists as a whole. bfloat16 is stored as NumPy does, as
two-byte void.
"""

from __future__ import annotations

import io
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from paligemma.errors import CheckpointError
from paligemma.stand_ins import stand_in

_CHUNK_BYTES = 16 << 20
# Members this large that shrink this well together are a bomb, not weights.
_BOMB_BYTES = 64 << 20
_BOMB_RATIO = 20
_MAX_ARRAYS = 100_000
# What the standard library and NumPy raise on damaged files; RuntimeError is encryption, and the
# parser of headers answers brackets without end with a MemoryError.
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    SyntaxError,
    TypeError,
    LookupError,
    MemoryError,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
_DESCR = {torch.float32: "<f4", torch.float16: "<f2", torch.bfloat16: "|V2"}


class PartedFile(io.RawIOBase):
    """Several files read as one, in the given order (the hub splits large npz files bytewise)."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [path.open("rb") for path in paths]
        self._starts = [0]
        for path in paths:
            self._starts.append(self._starts[-1] + path.stat().st_size)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._starts[-1]}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        for file, start, end in zip(self._files, self._starts[:-1], self._starts[1:], strict=True):
            if start <= self._position < end:
                file.seek(self._position - start)
                count = file.readinto(memoryview(buffer)[: end - self._position])
                self._position += count
                return count
        return 0

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()


@dataclass(frozen=True, kw_only=True)
class ArrayInfo:
    """What the header of one array says."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    fortran_order: bool


class NpzReader:
    """Arrays of an npz, by key.

    Args:
        paths: the file, or all its `.part*` pieces in order.

    Raises:
        CheckpointError: unreadable or truncated file, an array of objects, or one of a dtype that
            weights do not have.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.name = str(paths[0])
        try:
            self._file = io.BufferedReader(PartedFile(paths), _CHUNK_BYTES)
            self._zip = zipfile.ZipFile(self._file)
            self._file.seek(0)
            is_first = self._file.read(2) == b"PK"
        except _DAMAGE as error:
            raise CheckpointError(
                f"an npz must be a complete zip file, {self.name} is not "
                f"({stand_in(paths[0]) or str(error)[:200]}); download it again, with all its "
                ".part pieces if it has any"
            ) from error
        if not is_first:
            raise CheckpointError(
                f"an npz must begin as a zip file does, {self.name} does not; fetch it again, or "
                "the first of its .part pieces, which may be missing"
            )
        # ZipInfo.is_dir fails on a name of no characters.
        members = [m for m in self._zip.infolist() if not m.filename.endswith("/")]
        if len(members) > _MAX_ARRAYS:
            raise CheckpointError(
                f"{self.name} may hold at most {_MAX_ARRAYS} arrays, it holds {len(members)}; "
                "this is no checkpoint"
            )
        packed = sum(member.compress_size for member in members)
        unpacked = sum(member.file_size for member in members)
        if unpacked > max(_BOMB_BYTES, _BOMB_RATIO * packed):
            raise CheckpointError(
                f"weights do not shrink more than {_BOMB_RATIO}-fold, {self.name} grows from "
                f"{packed} to {unpacked} bytes; this looks like a zip bomb, get the file from its "
                "publisher"
            )
        # NumPy reads members without the suffix too.
        self._members = {m.filename.removesuffix(".npy"): m for m in members}
        if len(self._members) < len(members):
            raise CheckpointError(
                f"each array must appear once in {self.name}, it holds {len(members)} under "
                f"{len(self._members)} names; write the file again with numpy.savez"
            )
        self.arrays = {key: self._info(m) for key, m in self._members.items()}

    def __enter__(self) -> NpzReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()
        self._file.close()

    def _info(self, member: zipfile.ZipInfo) -> ArrayInfo:
        try:
            with self._zip.open(member) as file:
                shape, fortran_order, dtype = _read_header(file)
                header_bytes = file.tell()
        except _DAMAGE as error:
            raise CheckpointError(
                f"every member of {self.name} must be a .npy array, {member.filename!r:.200} is "
                f"not ({error!s:.200}); write the file again with numpy.savez"
            ) from error
        if dtype.hasobject:
            raise CheckpointError(
                f"arrays must hold plain numbers, {member.filename!r:.200} of {self.name} holds "
                "Python objects, which could run code; save the weights as float arrays"
            )
        known = {
            np.dtype("<f4"): torch.float32,
            np.dtype("<f2"): torch.float16,
            np.dtype("V2"): torch.bfloat16,
        }
        if dtype not in known:
            raise CheckpointError(
                f"arrays must be float32, float16 or bfloat16 (|V2), {member.filename!r:.200} of "
                f"{self.name} is {dtype}; cast it"
            )
        if header_bytes + math.prod(shape) * dtype.itemsize != member.file_size:
            raise CheckpointError(
                f"the size of {member.filename!r:.200} in {self.name} must follow from its shape "
                f"{shape}, it has {member.file_size} bytes; the file is damaged, fetch it again"
            )
        return ArrayInfo(shape=shape, dtype=known[dtype], fortran_order=fortran_order)

    def read(self, key: str) -> Tensor:
        """One whole array."""
        return next(self._blocks(key, whole=True))

    def slices(self, key: str) -> Iterator[Tensor]:
        """The array along its first axis, one slice in memory at a time."""
        if self.arrays[key].fortran_order:
            yield from self.read(key)
        else:
            yield from self._blocks(key, whole=False)

    def _blocks(self, key: str, *, whole: bool) -> Iterator[Tensor]:
        info = self.arrays[key]
        shape = info.shape if whole else info.shape[1:]
        try:
            with self._zip.open(self._members[key]) as file:
                _read_header(file)
                for _ in range(1 if whole else info.shape[0]):
                    block = torch.empty(
                        shape[::-1] if info.fortran_order else shape, dtype=info.dtype
                    )
                    _fill(file, block)
                    yield (
                        block.permute(*reversed(range(block.ndim)))
                        if (info.fortran_order)
                        else block
                    )
        except _DAMAGE as error:
            raise CheckpointError(
                f"array {key!r:.200} of {self.name} must be readable in full, it is not "
                f"({error!s:.200}); the file is damaged or truncated, fetch it again"
            ) from error


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _fill(file: IO[bytes], block: Tensor) -> None:
    """Read a contiguous tensor's bytes in chunks, so that nothing exists twice."""
    target = block.reshape(-1).view(torch.uint8).numpy()
    done = 0
    while done < len(target):
        chunk = file.read(min(_CHUNK_BYTES, len(target) - done))
        if not chunk:
            raise EOFError(f"{len(target) - done} bytes are missing")
        target[done : done + len(chunk)] = np.frombuffer(chunk, dtype=np.uint8)
        done += len(chunk)


class NpzWriter:
    """Writes an uncompressed npz slice by slice; use as a context manager on a temporary path."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)

    def __enter__(self) -> NpzWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def write(
        self, key: str, shape: tuple[int, ...], dtype: torch.dtype, blocks: Iterable[Tensor]
    ) -> None:
        """Write one array.

        Args:
            key: name without ".npy".
            shape: of the whole array.
            dtype: float32, float16 or bfloat16.
            blocks: tensors of that dtype whose concatenation in C order is the array.
        """
        # A fixed date makes equal weights equal files.
        member = zipfile.ZipInfo(key + ".npy", date_time=(1980, 1, 1, 0, 0, 0))
        with self._zip.open(member, "w", force_zip64=True) as file:
            file.write(_header(shape, _DESCR[dtype]))
            for block in blocks:
                if block.dtype != dtype:
                    raise ValueError(f"{key} must be written as {dtype}, got {block.dtype}")
                flat = block.detach().cpu().contiguous().reshape(-1)
                file.write(flat.view(torch.uint8).numpy().data)


def _header(shape: tuple[int, ...], descr: str) -> bytes:
    """A version 1.0 .npy header; NumPy's own writer cannot be given a bare void dtype in time."""
    text = repr({"descr": descr, "fortran_order": False, "shape": shape})
    prefix = np.lib.format.magic(1, 0)
    padding = -(len(prefix) + 2 + len(text) + 1) % 64
    body = (text + " " * padding + "\n").encode("latin1")
    return prefix + struct.pack("<H", len(body)) + body
