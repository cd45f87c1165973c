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
_HUGE = 1 << 21


class PackedMatrix:
    """A matrix [N, K], or one of several that share panels.

    Args:
        kind: one of `KINDS`.
        n, k: N and K.
        data: uint8, the panels from this matrix's first on; not copied.
        scale: float32[16 a panel] of int8 and fp8, else empty.
        stride: distance in panels from one panel of this matrix to its next.
    """

    def __init__(
        self, kind: str, n: int, k: int, data: Tensor, scale: Tensor, stride: int = 1
    ) -> None:
        self.kind, self.n, self.k, self.stride = kind, n, k, stride
        self.data, self.scale = data, scale
        num_panels = (self.num_panels - 1) * stride + 1
        needed = num_panels * self.panel_bytes
        if data.dtype != torch.uint8 or data.numel() < needed or not data.is_contiguous():
            raise ValueError(f"{kind} of {n} x {k} needs {needed} bytes, got {data.numel()}")
        if self.has_row_scale and scale.numel() < num_panels * PANEL:
            raise ValueError(f"{kind} needs {num_panels * PANEL} scales, got {scale.numel()}")

    @classmethod
    def empty(cls, kind: str, n: int, k: int) -> PackedMatrix:
        """A matrix to be filled, in huge pages where the system has them."""
        num_panels = -(-n // PANEL)
        size = num_panels * panels.panel_bytes(kind, k)
        data = torch.empty(size, dtype=torch.uint8)
        library = native.library()
        if library is not None and size >= _HUGE:
            library.pg_advise_huge(data.data_ptr(), size)
        scales = num_panels * PANEL if kind in panels.ROW_SCALED else 0
        return cls(kind, n, k, data, torch.empty(scales))

    @property
    def num_panels(self) -> int:
        return -(-self.n // PANEL)

    @property
    def panel_bytes(self) -> int:
        return panels.panel_bytes(self.kind, self.k)

    @property
    def has_row_scale(self) -> bool:
        return self.kind in panels.ROW_SCALED

    @property
    def nbytes(self) -> int:
        """Bytes of its panels and scales."""
        scales = self.num_panels * PANEL * 4 if self.has_row_scale else 0
        return self.num_panels * self.panel_bytes + scales

    def part(self, first: int, n: int, stride: int = 1) -> PackedMatrix:
        """N rows in panels `first`, `first + stride`, ... as a matrix in the same memory."""
        data = self.data[first * self.stride * self.panel_bytes :]
        scale = self.scale[first * self.stride * PANEL :] if self.has_row_scale else self.scale
        return PackedMatrix(self.kind, n, self.k, data, scale, self.stride * stride)

    def pack(self, rows: Tensor) -> None:
        """Take float[N, K] as the matrix, rounded to its kind."""
        if tuple(rows.shape) != (self.n, self.k):
            raise ValueError(f"the matrix is {self.n} x {self.k}, got {tuple(rows.shape)}")
        if rows.dtype != torch.bfloat16:
            rows = rows.float()
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        if native.library() is None:
            panels.pack(self.kind, rows, self.data, self.scale, self.stride)
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
            return panels.unpack(
                self.kind, self.n, self.k, self.data, self.scale, self.stride, start, stop
            )
        rows = torch.empty(stop - start, self.k)
        native.on_all_threads().pg_unpack(self.descriptor(), start, stop, rows.data_ptr())
        return rows

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Products with every row, in float32.

        Args:
            x: float[..., K].
            bias: float32[N], or None.

        Returns:
            float32[..., N].
        """
        rows = x.reshape(-1, x.shape[-1]).float()
        if rows.shape[1] != self.k:
            raise ValueError(f"inputs must be {self.k} wide, got {rows.shape[1]}")
        if native.library() is None:
            y = panels.multiply(self, rows)
            return (y if bias is None else y + bias).view(*x.shape[:-1], self.n)
        rows = rows.contiguous()
        added = None if bias is None else bias.float().contiguous()
        y = torch.empty(len(rows), self.n)
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
        return y.view(*x.shape[:-1], self.n)

    def descriptor(self) -> native.Matrix:
        """The matrix for the kernels; valid as long as this object lives."""
        return native.Matrix(
            native.KINDS[self.kind],
            self.n,
            self.k,
            self.stride,
            self.data.data_ptr(),
            self.scale.data_ptr() if self.has_row_scale else None,
        )
