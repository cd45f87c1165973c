"""ONNX graphs in fewer bits, by onnxruntime's own quantisers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from paligemma.export.onnx_graphs import EMBEDDING, GRAPHS, MAX_INLINE_BYTES

# What is asked for -> the suffix by which transformers.js finds the file (its dtypes q8 and q4).
SUFFIXES = {"int8": "_quantized", "int4": "_q4"}
# Weights of this many columns share a scale in four bits.
_BLOCK = 32


def quantise(folder: Path, kind: str) -> list[Path]:
    """Write every graph of a folder in fewer bits beside it.

    int8: weights per output channel, activations by their range while running. int4: blocks of 32
    weights with a scale each, activations in float32; matrix products and the table of embeddings,
    all else stays as it is.

    Args:
        kind: key of `SUFFIXES`.
    """
    write = _int8 if kind == "int8" else _int4
    written = []
    for name in GRAPHS:
        target = folder / f"{name}{SUFFIXES[kind]}.onnx"
        with _quiet():
            write(folder / f"{name}.onnx", target)
        written.append(target)
    return written


def _int8(source: Path, target: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    num_bytes = sum(one.stat().st_size for one in source.parent.glob(f"{source.name}*"))
    with TemporaryDirectory(dir=target.parent) as scratch:
        written = Path(scratch) / target.name
        quantize_dynamic(
            source,
            written,
            weight_type=QuantType.QInt8,
            per_channel=True,
            # Seven bits: processors without VNNI add pairs of products in sixteen, which eight
            # exceed.
            reduce_range=True,
            use_external_data_format=num_bytes > MAX_INLINE_BYTES,
        )
        _save(onnx.load(written), target)


def _int4(source: Path, target: Path) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantiser = MatMulNBitsQuantizer(
        onnx.load(source),
        bits=4,
        block_size=_BLOCK,
        is_symmetric=True,
        accuracy_level=None,
        op_types_to_quantize=("Gather",) if source.stem == EMBEDDING else ("MatMul",),
    )
    quantiser.process()
    _save(quantiser.model.model, target)


def _save(graph: Any, target: Path) -> None:
    """Write a graph; weights too large for it beside it, named as `write_graphs` does."""
    import onnx

    num_bytes = sum(len(one.raw_data) for one in graph.graph.initializer)
    beside = num_bytes > MAX_INLINE_BYTES
    onnx.save_model(
        graph,
        target,
        save_as_external_data=beside,
        location=f"{target.name}_data" if beside else None,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's lines about every node, and its advice to preprocess."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    ours = logging.getLogger("onnxruntime.quantization")
    before = ours.level
    ours.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
        ours.setLevel(before)
