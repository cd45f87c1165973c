"""Weights that bitsandbytes saved in four or eight bits, widened while they are read.

Four bits: `X.weight` holds two codes a byte, the first in the upper half; each is an entry of
`X.weight.quant_map`, times the magnitude of its block, `X.weight.absmax`. Magnitudes may be bytes
themselves (`nested_*`). Sizes and dtype are JSON in `X.weight.quant_state.bitsandbytes__nf4`. Eight
bits: `X.weight` times `X.SCB` / 127, row by row.

Source: bitsandbytes functional.py, QuantState, and nn/modules.py, Linear8bitLt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paligemma.errors import CheckpointError
from paligemma.json_file import parse_json
from paligemma.weights.dtypes import DTYPES
from paligemma.weights.hf_config import BITS, read_json

METHOD = "bitsandbytes"
_STATE = ".quant_state.bitsandbytes__"
_SCALES = ".SCB"
_MAX_STATE_BYTES = 4096
_MAX_BLOCK = 1 << 16

Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class Widened:
    """A weight and the keys that belong to it.

    Attributes:
        key: of the codes.
        shape, dtype: of the weight that they stand for.
        state: what the file states about four bits; empty for eight.
    """

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    state: dict[str, Any]

    def read(self, read: Read) -> Tensor:
        """The weight.

        Raises:
            CheckpointError: a part is missing, or of another size or dtype than it must have.
        """
        try:
            return self._four_bits(read) if self.state else self._eight_bits(read)
        except (KeyError, ValueError, RuntimeError, IndexError) as error:
            raise _fault(self.key) from error

    def _eight_bits(self, read: Read) -> Tensor:
        codes, scales = read(self.key), read(_scales_of(self.key))
        _require(scales.shape == self.shape[:1] and scales.dtype == torch.float32)
        _require(codes.dtype == torch.int8)
        return codes.float().mul_(scales[:, None] / 127)

    def _four_bits(self, read: Read) -> Tensor:
        count, block = math.prod(self.shape), self.state["blocksize"]
        codes, magnitudes = read(self.key).flatten(), read(f"{self.key}.absmax")
        table = read(f"{self.key}.quant_map").float()
        num_blocks = -(-count // block)
        _require(codes.dtype == torch.uint8 and len(codes) == -(-count // 2))
        _require(table.shape == (16,) and magnitudes.shape == (num_blocks,))
        if "nested_blocksize" in self.state:
            _require(magnitudes.dtype == torch.uint8)
            size = self.state["nested_blocksize"]
            steps, levels = (read(f"{self.key}.nested_{name}") for name in ("absmax", "quant_map"))
            _require(steps.shape == (-(-num_blocks // size),) and levels.shape == (256,))
            steps = steps.repeat_interleave(size)[:num_blocks]
            magnitudes = levels[magnitudes.int()] * steps + self.state["nested_offset"]
        _require(magnitudes.is_floating_point())
        every = torch.arange(256)
        pairs = torch.stack([table[every >> 4], table[every & 15]], dim=1)
        values = pairs[codes.int()].flatten()[:count]
        values = torch.nn.functional.pad(values, (0, num_blocks * block - count))
        values = values.view(num_blocks, block).mul_(magnitudes[:, None])
        return values.flatten()[:count].view(self.shape).to(self.dtype)


def require_known_bits(config: Path | None) -> None:
    """Check that a config.json, if it can be read, names no program whose bits are not read.

    Raises:
        CheckpointError: it does.
    """
    stated = None
    if config is not None:
        with suppress(CheckpointError):  # raised again by who needs the whole of it
            raw = read_json(config)
            stated = "MLX" if "quantization" in raw else raw.get(BITS)
    method = stated.get("quant_method") if isinstance(stated, dict) else stated
    if method not in (None, METHOD):
        raise CheckpointError(
            "weights in fewer bits are read as bitsandbytes or convert --quant saved them, "
            f"{config} names {method!s:.100}; take the unquantised checkpoint, and ask for fewer "
            "bits with --quant"
        )


def find(keys: Iterable[str], read: Read) -> tuple[dict[str, Widened], set[str]]:
    """Weights of bitsandbytes among the keys of a checkpoint, and the keys of their other parts.

    Raises:
        CheckpointError: what the file states about a weight is beyond sense.
    """
    every = set(keys)
    found: dict[str, Widened] = {}
    for key in every:
        weight, mark, kind = key.partition(_STATE)
        if mark and weight in every:
            found[weight] = _stated(weight, kind, read(key))
        elif key.endswith(_SCALES) and (weight := f"{key.removesuffix(_SCALES)}.weight") in every:
            shape = tuple(read(weight).shape)
            layout = f"{weight}_format"
            if len(shape) != 2 or (layout in every and bool(read(layout).any())):
                raise _fault(weight)
            found[weight] = Widened(weight, shape, torch.float32, {})
    parts = {f"{weight}_format" for weight in found} | {_scales_of(weight) for weight in found}
    parts |= {key for key in every if f"{key.partition('.weight.')[0]}.weight" in found}
    return found, (parts & every) - found.keys()


def _stated(weight: str, kind: str, text: Tensor) -> Widened:
    try:
        _require(kind in ("nf4", "fp4") and text.numel() <= _MAX_STATE_BYTES)
        state = parse_json(bytes(text.tolist()))
        shape = tuple(state["shape"])
        _require(len(shape) == 2 and all(type(n) is int and 0 < n < 2**31 for n in shape))
        sizes = [state[name] for name in ("blocksize", "nested_blocksize") if name in state]
        _require(bool(sizes) and all(type(n) is int and 0 < n <= _MAX_BLOCK for n in sizes))
        offset = state.get("nested_offset", 0.0)
        _require(isinstance(offset, float | int))
        return Widened(weight, shape, DTYPES[state["dtype"]], state)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise _fault(weight) from error


def _scales_of(weight: str) -> str:
    return weight.removesuffix(".weight") + _SCALES


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError("out of bounds")


def _fault(weight: str) -> CheckpointError:
    return CheckpointError(
        f"a weight in bits of bitsandbytes must have its scales and sizes beside it, {weight:.200} "
        "has not, or others than fit; fetch the files again, or take the unquantised checkpoint"
    )
