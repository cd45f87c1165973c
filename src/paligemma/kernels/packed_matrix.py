"""A matrix in panels of 16 rows, as the compiled kernels read it; kernels.h describes the bytes.

Where the kernels are not there, torch widens the matrix for its products. Both read the same bytes.

Axes: N outputs (rows of the matrix), K inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paligemma.kernels import native, panels

PANEL = panels.PANEL
KINDS = tuple(native.KINDS)
# Version of the bytes of panels; a file of another version is not read.
LAYOUT = 1
# Panels begin at multiples of so many bytes, in memory and in files.
ALIGNMENT = 64
# Rows that are packed at once where they must be widened before.
_ROWS_AT_ONCE = 1 << 13


def num_bytes(kind: str, n: int, k: int) -> int:
    """Bytes of the panels of a matrix [N, K], filled up to a multiple of `ALIGNMENT`."""
    size = -(-n // PANEL) * panels.panel_bytes(kind, k)
    return size + -size % ALIGNMENT


def num_scales(kind: str, n: int) -> int:
    """Number of scales beside the panels; int4 and nf4 have theirs in them."""
    return -(-n // PANEL) * PANEL if kind in panels.ROW_SCALED else 0


def packed_bytes(kind: str, n: int, k: int) -> int:
    """Bytes of panels and scales of a matrix [N, K]."""
    return num_bytes(kind, n, k) + 4 * num_scales(kind, n)


class PackedMatrix:
    """A matrix [N, K].

    Args:
        kind: one of `KINDS`.
        n, k: N and K.
        data: uint8, the panels; not copied.
        scale: float32[16 a panel] of int8 and fp8, else empty.
    """

    def __init__(self, kind: str, n: int, k: int, data: Tensor, scale: Tensor) -> None:
        self.kind, self.n, self.k = kind, n, k
        self.data, self.scale = data, scale
        needed = self.num_panels * panels.panel_bytes(kind, k)
        if data.dtype != torch.uint8 or data.numel() < needed or not data.is_contiguous():
            raise ValueError(f"{kind} of {n} x {k} needs {needed} bytes, got {data.numel()}")
        if scale.numel() < self.num_scales:
            raise ValueError(f"{kind} needs {self.num_scales} scales, got {scale.numel()}")

    @classmethod
    def empty(cls, kind: str, n: int, k: int) -> PackedMatrix:
        """A matrix to be filled, in huge pages where the system has them."""
        data = native.in_huge_pages(torch.empty(num_bytes(kind, n, k), dtype=torch.uint8))
        data[-ALIGNMENT:] = 0
        return cls(kind, n, k, data, torch.empty(num_scales(kind, n), dtype=torch.float32))

    @property
    def num_panels(self) -> int:
        return -(-self.n // PANEL)

    @property
    def num_scales(self) -> int:
        return num_scales(self.kind, self.n)

    @property
    def nbytes(self) -> int:
        """Bytes of its panels and scales."""
        return packed_bytes(self.kind, self.n, self.k)

    def pack(self, rows: Tensor) -> None:
        """Take float[N, K] as the matrix, rounded to its kind."""
        if tuple(rows.shape) != (self.n, self.k):
            raise ValueError(f"the matrix is {self.n} x {self.k}, got {tuple(rows.shape)}")
        for start in range(0, self.n, _ROWS_AT_ONCE):
            some = rows[start : start + _ROWS_AT_ONCE]
            some = some if some.dtype == torch.bfloat16 else some.float()
            self._rows(start, len(some))._pack(some if some.stride(1) == 1 else some.contiguous())

    def _rows(self, start: int, count: int) -> PackedMatrix:
        """The matrix of some rows, from the first of a panel on, in the same memory."""
        data = self.data[start // PANEL * panels.panel_bytes(self.kind, self.k) :]
        return PackedMatrix(self.kind, count, self.k, data, self.scale[start:])

    def _pack(self, rows: Tensor) -> None:
        if native.library() is None:
            panels.pack(self.kind, rows, self.data, self.scale)
            return
        native.on_all_threads().pg_pack(
            self.descriptor(), rows.data_ptr(), rows.stride(0), rows.dtype == torch.bfloat16
        )

    def unpack(self, start: int = 0, stop: int | None = None) -> Tensor:
        """float32[stop - start, K]: the values that the rows stand for."""
        stop = self.n if stop is None else stop
        if not 0 <= start <= stop <= self.n:
            raise ValueError(f"rows must lie in 0..{self.n}, got {start}..{stop}")
        if native.library() is None:
            return self.take(torch.arange(start, stop))
        rows = torch.empty(stop - start, self.k, dtype=torch.float32)
        native.on_all_threads().pg_unpack(self.descriptor(), start, stop, rows.data_ptr())
        return rows

    def take(self, numbers: Tensor) -> Tensor:
        """float32[M, K]: the values of rows int64[M]."""
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < self.n:
            raise ValueError(f"rows must lie in 0..{self.n - 1}, got others")
        if native.library() is None:
            return panels.unpack(self.kind, self.k, self.data, self.scale, numbers)
        numbers = numbers.contiguous()
        rows = torch.empty(len(numbers), self.k, dtype=torch.float32)
        native.on_all_threads().pg_unpack_rows(
            self.descriptor(), numbers.data_ptr(), len(numbers), rows.data_ptr()
        )
        return rows

    def multiply(self, x: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Products with every row, in float32.

        Args:
            x: float[..., K].
            bias: float32[N], or None.
            out: float32[..., N], contiguous, to take the products, or None for new memory.

        Returns:
            float32[..., N].
        """
        shape = (*x.shape[:-1], self.n)
        if out is not None and (
            tuple(out.shape) != shape or not out.is_contiguous() or out.dtype != torch.float32
        ):
            raise ValueError(
                f"products are float32 {shape} and contiguous, got {out.dtype} {tuple(out.shape)}"
            )
        rows = x.reshape(-1, x.shape[-1]).float()
        if rows.shape[1] != self.k:
            raise ValueError(f"inputs must be {self.k} wide, got {rows.shape[1]}")
        if native.library() is None:
            y = panels.multiply(self, rows)
            y = (y if bias is None else y + bias).view(shape)
            return y if out is None else out.copy_(y)
        rows = rows.contiguous()
        added = None if bias is None else bias.float().contiguous()
        y = native.in_huge_pages(rows.new_empty(shape)) if out is None else out
        if len(rows):
            native.on_all_threads().pg_multiply(
                self.descriptor(),
                rows.data_ptr(),
                self.k,
                None if added is None else added.data_ptr(),
                y.data_ptr(),
                self.n,
                len(rows),
            )
        return y

    def descriptor(self) -> native.Matrix:
        """The matrix for the kernels; valid as long as this object lives."""
        return native.Matrix(
            native.KINDS[self.kind],
            self.n,
            self.k,
            self.data.data_ptr(),
            self.scale.data_ptr() if self.num_scales else None,
        )
