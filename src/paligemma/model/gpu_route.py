"""Whether a decoding step on a GPU is one captured graph, or torch's layers.

The graph computes what the layers compute. Where it is asked for, it is used if every layer of the
decoder is plain or in fewer bits by rows: a layer of another type, such as one with an adapter,
computes something of its own.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from paligemma.kernels.gpu_step import (
    INT4,
    PLAIN,
    ROWWISE,
    GpuBlock,
    GpuStep,
    RowMatrix,
    is_on,
    unfit_sizes,
    why_not,
)
from paligemma.kernels.linear import Linear, TiedEmbedding, UntiedEmbedding
from paligemma.kernels.narrow_layers import NarrowEmbedding, NarrowLinear, NarrowMatrix
from paligemma.kernels.panels import GROUP
from paligemma.model.attention import rope_wavelengths
from paligemma.model.seen import Seen, Unfit

if TYPE_CHECKING:
    from paligemma.model.gemma import Gemma
    from paligemma.model.kv_cache import KVCache

_log = logging.getLogger(__name__)


@dataclass
class _Route:
    """What was found about a decoder.

    Attributes:
        step: the step on the GPU, or None.
        words: the route for people.
        seen: where the parts were found.
        tensors, addresses: what the graph reads, and where that lay: `Module.to` moves the values
            of a parameter that stays the same object.
        embed_scale: of the decoder.
    """

    step: GpuStep | None
    words: str
    seen: Seen
    tensors: list[Tensor] = field(default_factory=list)
    addresses: list[int] = field(default_factory=list)
    embed_scale: float = 0.0

    def holds(self, text: Gemma) -> bool:
        return (
            self.seen.is_there()
            and self.embed_scale == text.embed_scale
            and self.addresses == list(map(Tensor.data_ptr, self.tensors))
        )


_ROUTES: WeakKeyDictionary[nn.Module, _Route] = WeakKeyDictionary()


def step_on_gpu(text: Gemma, cache: KVCache) -> GpuStep | None:
    """The step for a decoder and a cache, or None where torch's layers must compute."""
    if (
        not cache.valid.is_cuda
        or not is_on()
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cuda")
        or not GpuStep.takes(cache.num_rows, cache.keys[0].dtype)
    ):
        return None
    return _route(text).step


def route_in_words(text: Gemma) -> str:
    """How a decoder on a GPU computes a decoding step, and why not as a graph where it does not."""
    return _route(text).words


def give_up(text: Gemma, error: Exception) -> None:
    """Use torch's layers for a decoder from now on, since the kernels could not be built."""
    reason = str(error).partition("\n")[0][:300]
    _log.warning("decoding by torch's layers, the kernels for this GPU failed: %s", reason)
    _ROUTES[text].step, _ROUTES[text].words = None, f"torch's layers ({reason})"


def find_step(text: Gemma) -> tuple[GpuStep, Seen]:
    """The parts of a decoder on any device.

    Raises:
        Unfit: a part that the kernels cannot compute.
    """
    seen = Seen()
    return _Search(seen, text).step(), seen


def _route(text: Gemma) -> _Route:
    if (reason := why_not()) is not None:
        return _Route(step=None, words=f"torch's layers ({reason})", seen=Seen())
    route = _ROUTES.get(text)
    if route is None or not route.holds(text):
        route = _ROUTES[text] = _find(text)
    return route


def _find(text: Gemma) -> _Route:
    seen = Seen()
    search = _Search(seen, text)
    scale = text.embed_scale
    try:
        step = search.step()
    except Unfit as error:
        return _Route(step=None, words=f"torch's layers ({error})", seen=seen, embed_scale=scale)
    return _Route(
        step=step,
        words="one CUDA graph a token",
        seen=seen,
        tensors=search.tensors,
        addresses=list(map(Tensor.data_ptr, search.tensors)),
        embed_scale=scale,
    )


class _Search:
    """Collects the parts of a decoder, and notes every place where it looked."""

    def __init__(self, seen: Seen, text: Gemma) -> None:
        self._seen, self._text = seen, text
        self.tensors: list[Tensor] = []

    def step(self) -> GpuStep:
        text, config = self._text, self._text.config
        if (reason := unfit_sizes(config)) is not None:
            raise Unfit(reason)
        if len(set(text.block_devices)) > 1:
            raise Unfit("the blocks lie on several devices")
        if text.dtype not in (torch.bfloat16, torch.float32):
            raise Unfit(f"hidden states are {text.dtype}")
        blocks = self._child(text, "blocks")
        table, head = self._tables(self._child(text, "embed"))
        return GpuStep(
            config,
            [self._block(self._child(blocks, name), name) for name in blocks._modules],
            table=table,
            head=head,
            norm=self._norm(text, "norm"),
            wavelengths=rope_wavelengths(config.head_dim, config.rope_theta, text.device),
            embed_scale=text.embed_scale,
            dtype=text.dtype,
        )

    def _block(self, block: nn.Module, number: str) -> GpuBlock:
        attn, mlp = self._child(block, "attn"), self._child(block, "mlp")
        matrices = {
            name: self._linear(self._child(parent, name), f"{name} of block {number}")
            for parent, names in ((attn, ("q", "k", "v", "out")), (mlp, ("gate", "up", "down")))
            for name in names
        }
        for names in (("q", "k", "v"), ("gate", "up")):
            if len({(matrices[name].kind, matrices[name].codes.dtype) for name in names}) > 1:
                raise Unfit(f"{', '.join(names)} of block {number} are of several kinds")
        return GpuBlock(
            **matrices,
            attn_norm=self._norm(block, "pre_attn_norm"),
            mlp_norm=self._norm(block, "pre_ffw_norm"),
            attn_post_norm=self._optional_norm(block, "post_attn_norm"),
            mlp_post_norm=self._optional_norm(block, "post_ffw_norm"),
        )

    def _tables(self, embed: nn.Module) -> tuple[RowMatrix, RowMatrix]:
        if type(embed) is NarrowEmbedding:
            table = self._narrow(embed, "matrix", "the embedding")
            head = table if embed.is_tied else self._narrow(embed, "head", "the head")
            return table, head
        if type(embed) is TiedEmbedding:
            table = self._plain(embed, "weight", "the embedding")
            return table, table
        if type(embed) is UntiedEmbedding:
            table = self._plain(embed, "weight", "the embedding")
            return table, self._plain(embed, "head", "the head")
        raise Unfit(f"the embedding is a {type(embed).__name__}")

    def _linear(self, layer: nn.Module, words: str) -> RowMatrix:
        if type(layer) not in (Linear, NarrowLinear):
            raise Unfit(f"{words} is a {type(layer).__name__}")
        if self._seen.look(layer._parameters, "bias") is not None:
            raise Unfit(f"{words} has a bias")
        if isinstance(layer, NarrowLinear):
            return self._narrow(layer, "matrix", words)
        return self._plain(layer, "weight", words)

    def _plain(self, layer: nn.Module, name: str, words: str) -> RowMatrix:
        weight = self._seen.look(layer._parameters, name)
        if not isinstance(weight, Tensor) or weight.dtype != self._text.dtype:
            raise Unfit(f"{words} is not {self._text.dtype}")
        if not weight.is_contiguous():
            raise Unfit(f"{words} is not contiguous")
        self.tensors.append(weight)
        n, k = weight.shape
        return RowMatrix(kind=PLAIN, codes=weight, scale=weight, n=n, k=k)

    def _narrow(self, layer: Any, name: str, words: str) -> RowMatrix:
        matrix = self._child(layer, name)
        if not isinstance(matrix, NarrowMatrix):
            raise Unfit(f"{words} is not in rows")
        if layer.dtype != self._text.dtype:
            raise Unfit(f"{words} is not {self._text.dtype}")
        if matrix.kind == "int4" and matrix.k % GROUP:
            raise Unfit(f"{words} has {matrix.k} inputs, no multiple of {GROUP}")
        codes, scale = (self._seen.look(matrix._buffers, one) for one in ("codes", "scale"))
        self.tensors += [codes, scale]
        kind = INT4 if matrix.kind == "int4" else ROWWISE
        return RowMatrix(kind=kind, codes=codes, scale=scale, n=matrix.n, k=matrix.k)

    def _child(self, parent: nn.Module, name: str) -> Any:
        return self._seen.look(parent._modules, name)

    def _norm(self, parent: nn.Module, name: str) -> Tensor:
        scale = self._seen.look(self._child(parent, name)._parameters, "scale")
        if not isinstance(scale, Tensor):
            raise Unfit(f"{name} has no scale")
        self.tensors.append(scale)
        return scale

    def _optional_norm(self, parent: nn.Module, name: str) -> Tensor | None:
        has_norm = not isinstance(self._child(parent, name), nn.Identity)
        return self._norm(parent, name) if has_norm else None
