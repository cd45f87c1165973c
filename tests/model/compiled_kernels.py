"""Launches of a decoding step that compile their kernels for an H100, and run nothing."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from paligemma.config import PaliGemmaConfig
from paligemma.kernels import gpu_step
from paligemma.kernels.gpu_step import GpuBlock, GpuStep, RowMatrix

_POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.float8_e4m3fn: "*fp8e4nv",
}


class Compiling:
    """Stands in for the module of the kernels.

    Attributes:
        compiled: name and bytes of shared memory of every kernel in every form.
    """

    def __init__(self) -> None:
        from paligemma.kernels import triton_step

        self._kernels = triton_step
        self.tl = triton_step.tl
        self.compiled: list[tuple[str, int]] = []
        self._forms: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return _Kernel(self, getattr(self._kernels, name))

    def compile(self, kernel: Any, values: dict[str, Any], options: dict[str, int]) -> None:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        signature, constants, hints = {}, {}, {}
        for one in kernel.params:
            value = values[one.name]
            if one.is_constexpr:
                signature[one.name], constants[(one.num,)] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[one.name] = _POINTERS[value.dtype]
                hints[(one.num,)] = [["tt.divisibility", 16]]
            else:
                signature[one.name] = "fp32" if isinstance(value, float) else "i32"
        form = repr((kernel.__name__, signature, constants, options))
        if form in self._forms:
            return
        self._forms.add(form)
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=hints)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        self.compiled.append((kernel.__name__, made.metadata.shared))


class _Kernel:
    def __init__(self, to: Compiling, kernel: Any) -> None:
        self._to, self._kernel = to, kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*values: Any, **named: Any) -> None:
            options = {key: named.pop(key) for key in ("num_warps", "num_stages") if key in named}
            given = dict(zip(self._kernel.arg_names, values, strict=False)) | named
            self._to.compile(self._kernel, given, options)

        return launch


def launched(
    config: PaliGemmaConfig,
    kind: str | None,
    dtype: torch.dtype,
    rows: int,
    kernels: Compiling,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Launch the kernels of a step on tensors without values."""
    import paligemma.kernels

    text, num_tokens = config.text, config.vocab.size

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    def matrix(n: int, k: int) -> RowMatrix:
        if kind is None:
            weight = empty(n, k)
            return RowMatrix(kind=0, codes=weight, scale=weight, n=n, k=k)
        if kind == "int4":
            codes = empty(n, k // 2, dtype=torch.uint8)
            scale = empty(n, k // 32, dtype=torch.float16)
            return RowMatrix(kind=2, codes=codes, scale=scale, n=n, k=k)
        codes = empty(n, k, dtype=torch.int8 if kind == "int8" else torch.float8_e4m3fn)
        return RowMatrix(kind=1, codes=codes, scale=empty(n, dtype=torch.float32), n=n, k=k)

    heads, kv = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    norm = empty(text.width)
    block = GpuBlock(
        q=matrix(heads, text.width),
        k=matrix(kv, text.width),
        v=matrix(kv, text.width),
        out=matrix(text.width, heads),
        gate=matrix(text.mlp_dim, text.width),
        up=matrix(text.mlp_dim, text.width),
        down=matrix(text.width, text.mlp_dim),
        attn_norm=norm,
        mlp_norm=norm,
        attn_post_norm=norm if text.post_norms else None,
        mlp_post_norm=norm if text.post_norms else None,
    )
    table = matrix(num_tokens, text.width)
    step = GpuStep(
        text,
        [block] * text.depth,
        table=table,
        head=table,
        norm=norm,
        wavelengths=empty(text.head_dim // 2, dtype=torch.float32),
        embed_scale=45.25,
        dtype=dtype,
    )
    monkeypatch.setitem(sys.modules, "paligemma.kernels.triton_step", kernels)
    monkeypatch.setattr(paligemma.kernels, "triton_step", kernels)
    step._launch(gpu_step._State(step, rows), torch.bfloat16)
