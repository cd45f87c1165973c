"""A short name for a model's weights, that follows from their numbers and costs next to nothing.

It is equal for the same weights in another layout, in float32 and in bfloat16, and differs after
training. It is no proof against a forger: only some numbers of each tensor are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

_SAMPLES = 64  # numbers of each tensor
_MAX_BYTES = 1 << 20  # of each packed file
_HEX_DIGITS = 32


def of_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The fingerprint of named tensors, whose numbers are rounded to bfloat16 first."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // _SAMPLES)][:_SAMPLES].cpu().to(torch.bfloat16)
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(some.contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:_HEX_DIGITS]


def of_files(paths: Iterable[Path]) -> str:
    """The fingerprint of files of packed weights: of their sizes and beginnings."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(f"{path.stat().st_size} ".encode() + file.read(_MAX_BYTES))
    return digest.hexdigest()[:_HEX_DIGITS]
