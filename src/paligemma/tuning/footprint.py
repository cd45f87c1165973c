"""Memory and work of one update, measured on a model without storage.

The real model runs forward and backward on fake tensors, which have shapes and no values: every
allocation is counted, so activation checkpointing, chunks of logits and soft-capped scores count
as they are. A model of 28B needs half a minute and no memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from paligemma.adapt.checkpointing import checkpoint_blocks
from paligemma.adapt.lora import Adapter, attach
from paligemma.adapt.quant import Quant, place_quantised
from paligemma.config import PaliGemmaConfig
from paligemma.kernels.nf4 import DEVICE_WEIGHTS, NF4Linear, tables
from paligemma.model.paligemma import PaliGemmaModel
from paligemma.train.loss import supervised_losses, token_losses
from paligemma.train.rules import STARTS
from paligemma.tuning.recipe import Recipe, part_table


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows that are computed at once.

    Attributes:
        count: number of rows.
        num_text: tokens of prompt and answer.
        num_answer: supervised tokens among them.
    """

    count: int
    num_text: int = 128
    num_answer: int = 32


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What one process holds while it trains, in bytes, and what an update computes.

    Attributes:
        parts: rows of `part_table`, each with its `bytes`.
        weights: all parameters.
        gradients: gradients of what is trained.
        state: state of the update rule, and averages.
        working: most that is allocated beside these at once: activations, logits, temporary sums.
        table: the embedding table.
        block: the largest decoder block.
        flops: operations of forward and backward.
    """

    parts: list[dict[str, Any]]
    weights: int
    gradients: int
    state: int
    working: int
    table: int
    block: int
    flops: int

    @property
    def total(self) -> int:
        """What one process needs without sharding."""
        return self.weights + self.gradients + self.state + self.working


# The registry has the attention of a GPU alone; that of a CPU multiplies the same matrices.
_SAME_WORK = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        torch.ops.aten._scaled_dot_product_flash_attention
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        torch.ops.aten._scaled_dot_product_flash_attention_backward
    ),
}


class _Meter(TorchDispatchMode):
    """Counts the storages that operations allocate, while they live, and the operations.

    Args:
        known: tensors whose storage is not counted.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self._kept = [x.untyped_storage() for x in known]
        self._live = {id(storage): 0 for storage in self._kept}
        self.now = self.peak = self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        packet = func.overloadpacket
        count = flop_registry.get(_SAME_WORK.get(packet, packet))
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._live:
            return
        self._live[key] = storage.nbytes()
        self.now += self._live[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._live.pop(key)


def footprint(
    config: PaliGemmaConfig,
    recipe: Recipe,
    rows: Rows,
    *,
    base_dtype: torch.dtype,
    compute_dtype: torch.dtype,
) -> Footprint:
    """Measure one update.

    Args:
        base_dtype: dtype of frozen weights under an adapter; a whole model is float32.
        compute_dtype: dtype of the products.
    """
    if recipe.quant is not None:
        tables(torch.device("cpu"))  # they are kept, so they must not be made of fake tensors
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        _default_dtype(base_dtype if recipe.lora is not None else torch.float32),
    ):
        model = PaliGemmaModel(config)
        with _default_dtype(torch.float32):
            if recipe.quant is not None:
                place_quantised(model, Quant.parse(recipe.quant), base_dtype)
                for layer in model.modules():
                    if isinstance(layer, NF4Linear):
                        layer.weights_at_once = DEVICE_WEIGHTS
            if recipe.lora is not None:
                attach(model, Adapter.new(model, recipe.lora))
            parts = part_table(model, recipe.optim())
            _freeze(model, recipe)
            if recipe.checkpointing:
                checkpoint_blocks([*model.vision.blocks, *model.text.blocks])
            model.train()
            trained = [p for p in model.parameters() if p.requires_grad]
            gradients = _bytes(trained)
            start = STARTS[recipe.rule]
            state = sum(_bytes(start(p.detach()).values()) for p in trained)
            state += gradients if recipe.average is not None else 0
            meter = _Meter([*model.parameters(), *model.buffers()])
            with meter:
                _loss(model, rows, compute_dtype).backward()
            stored = dict(model.named_parameters()) | dict(model.named_buffers())
            sizes = {name: _bytes([tensor]) for name, tensor in stored.items()}
            return Footprint(
                parts=parts,
                weights=sum(sizes.values()),
                gradients=gradients,
                state=state,
                working=max(0, meter.peak - gradients),
                table=sum(size for name, size in sizes.items() if name.startswith("text.embed")),
                block=max(_bytes(one.parameters()) for one in model.text.blocks),
                flops=meter.flops,
            )


def _loss(model: PaliGemmaModel, rows: Rows, dtype: torch.dtype) -> Tensor:
    """The loss of rows of zeros; the places of the answers are known without looking at values."""
    side = model.config.vision.image_size_px
    images = torch.zeros(rows.count, side, side, 3)
    tokens = torch.zeros(rows.count, rows.num_text, dtype=torch.int64)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False):
        hidden = model.hidden(model.encode_image(images), tokens, tokens)
        answer = slice(rows.num_text - rows.num_answer, None)
        losses = supervised_losses(
            model.text.logits,
            hidden[:, answer].flatten(0, 1),
            tokens[:, answer].flatten(),
            model.config.vocab.size,
            token_losses,
            0.0,
        )
    return losses.mean()


def _freeze(model: nn.Module, recipe: Recipe) -> None:
    named = dict(model.named_parameters())
    for name, rate in recipe.optim().peak_rates(named).items():
        named[name].requires_grad_(rate is not None)


def _bytes(tensors: Any) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
