"""The three graphs of a model as ONNX files, named and shaped as transformers.js expects."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from paligemma.errors import MissingExtraError
from paligemma.export.graphs import (
    Decoder,
    TokenEmbedding,
    VisionEncoder,
    cache_names,
    empty_cache,
)
from paligemma.model import PaliGemmaModel

VISION, EMBEDDING, DECODER = "vision_encoder", "embed_tokens", "decoder_model_merged"
GRAPHS = (VISION, EMBEDDING, DECODER)
# Read by onnxruntime since 1.14 and by its builds for browsers.
OPSET = 18
# A file of protobuf holds 2 GiB; larger weights go beside it.
MAX_INLINE_BYTES = 1_500_000_000

_BATCH, _NEW, _PAST, _ALL = "batch_size", "sequence_length", "past_sequence_length", "total_length"


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """A module with an example of its inputs, and the names of its axes that vary."""

    module: nn.Module
    inputs: tuple[Any, ...]
    axes: Mapping[str, Mapping[int, str]]
    outputs: Sequence[str]
    output_axes: Mapping[str, Mapping[int, str]]


def require_onnx() -> None:
    """Raise MissingExtraError unless the packages that write and run ONNX are installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"an export to ONNX needs {error.name}; pip install 'paligemma[onnx]'"
        ) from error


def write_graphs(model: PaliGemmaModel, folder: Path) -> list[Path]:
    """Write the graphs of a float32 model into a folder.

    Returns:
        Their files; weights too large for one lie beside it as FILE_data.

    Raises:
        MissingExtraError: a package of the extra `onnx` is missing.
    """
    require_onnx()
    return [_write(graph, folder / f"{name}.onnx") for name, graph in _graphs(model).items()]


def _graphs(model: PaliGemmaModel) -> dict[str, _Graph]:
    text, side = model.config.text, model.config.vision.image_size_px
    past = cache_names(text, "past_key_values")
    present = cache_names(text, "present")
    # Sizes of examples are neither 0 nor 1, which a tracer takes for constants.
    batch, new, cached = 2, 5, 7
    ids = torch.zeros(batch, new, dtype=torch.long)
    decoder_inputs = (
        torch.zeros(batch, new, text.width),
        torch.ones(batch, new + cached, dtype=torch.long),
        ids,
        torch.tensor(1),
        empty_cache(text, batch, cached),
    )
    return {
        VISION: _Graph(
            module=VisionEncoder(model),
            inputs=(torch.zeros(batch, 3, side, side),),
            axes={"pixel_values": {0: _BATCH}},
            outputs=("image_features",),
            output_axes={"image_features": {0: _BATCH}},
        ),
        EMBEDDING: _Graph(
            module=TokenEmbedding(model),
            inputs=(ids,),
            axes={"input_ids": {0: _BATCH, 1: _NEW}},
            outputs=("inputs_embeds",),
            output_axes={"inputs_embeds": {0: _BATCH, 1: _NEW}},
        ),
        DECODER: _Graph(
            module=Decoder(model),
            inputs=decoder_inputs,
            axes={
                "inputs_embeds": {0: _BATCH, 1: _NEW},
                "attention_mask": {0: _BATCH, 1: _ALL},
                "position_ids": {0: _BATCH, 1: _NEW},
                "num_logits_to_keep": {},
                **{name: {0: _BATCH, 2: _PAST} for name in past},
            },
            outputs=("logits", *present),
            output_axes={
                "logits": {0: _BATCH, 1: "num_logits"},
                **{name: {0: _BATCH, 2: _ALL} for name in present},
            },
        ),
    }


@torch.no_grad()
def _write(graph: _Graph, path: Path) -> Path:
    import onnx_ir

    axes = list(graph.axes.values())
    shapes: list[Any] = [dict.fromkeys(one, Dim.DYNAMIC) for one in axes]
    if len(axes) > len(graph.inputs):  # the last input is a list
        first = len(graph.inputs) - 1
        shapes[first:] = [shapes[first:]]
    with _quiet():
        traced = torch.export.export(
            graph.module.eval(), graph.inputs, dynamic_shapes=tuple(shapes)
        )
        program = torch.onnx.export(
            traced,
            input_names=list(graph.axes),
            output_names=list(graph.outputs),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    written = program.model
    named = {**graph.axes, **graph.output_axes}
    for value in (*written.graph.inputs, *written.graph.outputs):
        sizes: list[Any] = list(value.shape or ())
        for axis, name in named[value.name or ""].items():
            sizes[axis] = name
        value.shape = onnx_ir.Shape(sizes)
    weights = [one.const_value for one in written.graph.initializers.values()]
    num_bytes = sum(one.nbytes for one in weights if one is not None)
    beside = f"{path.name}_data" if num_bytes > MAX_INLINE_BYTES else None
    onnx_ir.save(written, path, external_data=beside)
    return path


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says of its own parts and of packages that are not needed."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
