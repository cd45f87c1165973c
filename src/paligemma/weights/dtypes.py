"""The three dtypes weights are stored in, and casting between them without silent overflow."""

from __future__ import annotations

import torch
from torch import Tensor

from paligemma.errors import CheckpointError, ConfigError

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def dtype_name(dtype: torch.dtype) -> str:
    """torch.bfloat16 -> "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def parse_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A dtype weights can be stored in, by name or as it is.

    Raises:
        ConfigError: any other dtype.
    """
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise ConfigError(f"the dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    return found  # type: ignore[return-value]


def require_numbers(name: str, tensor: Tensor) -> None:
    """Check weights before they are quantised.

    Raises:
        CheckpointError: NaN or infinity, which fewer bits would turn into ordinary numbers.
    """
    lowest, highest = tensor.aminmax()
    if not (lowest.isfinite() and highest.isfinite()):
        raise CheckpointError(
            f"weights must be numbers to be quantised, {name} has NaN or infinity; look at the "
            "file with paligemma doctor, or fetch it again"
        )


def cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The tensor in another dtype.

    Raises:
        CheckpointError: a finite weight would become infinite.
    """
    result = tensor.to(dtype)
    narrows = tensor.dtype == torch.float64 or (
        dtype == torch.float16 and tensor.dtype != torch.float16
    )
    if narrows and bool((result.isinf() & tensor.isfinite()).any()):
        largest = tensor[tensor.isfinite()].abs().max().item()
        raise CheckpointError(
            f"{dtype_name(dtype)} holds numbers up to {torch.finfo(dtype).max:.6g}, {name} reaches "
            f"{largest:.6g}; use {'bfloat16' if dtype == torch.float16 else 'the original'}"
        )
    return result
