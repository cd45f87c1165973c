"""Which way a decoding step takes: one call in C over packed matrices, or torch's layers.

The call in C computes what the layers compute, so it is used wherever every layer of the decoder
is packed. A layer of another type, such as one with an adapter, computes something of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from paligemma.kernels.native import describe, library
from paligemma.kernels.native_step import DecoderStep, StepBlock, unfit_sizes
from paligemma.kernels.packed_matrix import PackedMatrix
from paligemma.model.attention import rope_wavelengths
from paligemma.model.seen import Seen, Unfit

if TYPE_CHECKING:
    from paligemma.model.gemma import Gemma
    from paligemma.model.kv_cache import KVCache


@dataclass(frozen=True, kw_only=True)
class _Route:
    """What was found about a decoder.

    Attributes:
        step: the step in C, or None.
        words: the route for people.
    """

    step: DecoderStep | None
    words: str
    seen: Seen


_ROUTES: WeakKeyDictionary[nn.Module, _Route] = WeakKeyDictionary()


def step_in_c(text: Gemma, cache: KVCache) -> DecoderStep | None:
    """The step in C for a decoder and a cache, or None where torch's layers must compute."""
    if torch.is_grad_enabled() or not DecoderStep.takes(cache.keys[0].dtype):
        return None
    return _route(text).step


def route_in_words(text: Gemma) -> str:
    """How the decoder computes a decoding step, and why not in C where it does not."""
    return _route(text).words


def _route(text: Gemma) -> _Route:
    route = _ROUTES.get(text)
    if route is None or not route.seen.is_there():
        route = _ROUTES[text] = _find(text)
    return route


def _find(text: Gemma) -> _Route:
    seen = Seen()
    try:
        step = _Search(seen).step_of(text)
    except Unfit as error:
        return _Route(step=None, words=f"torch's layers ({error})", seen=seen)
    return _Route(step=step, words="one call in C a token", seen=seen)


class _Search:
    """Collects the parts of a decoder, and notes every place where it looked.

    A later change of such a place, as when an adapter wraps a layer, is found by comparing.
    """

    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    def step_of(self, text: Gemma) -> DecoderStep:
        embed = self._child(text, "embed")
        head = getattr(embed, "head", None)
        if not isinstance(head, PackedMatrix):
            raise Unfit("the output head is not packed")
        if library() is None:
            raise Unfit(describe())
        config = text.config
        if (reason := unfit_sizes(config)) is not None:
            raise Unfit(reason)
        blocks = self._child(text, "blocks")
        return DecoderStep(
            config,
            [self._block(self._child(blocks, name), name) for name in blocks._modules],
            head=head,
            norm=self._norm(text, "norm"),
            wavelengths=rope_wavelengths(config.head_dim, config.rope_theta),
        )

    def _block(self, block: nn.Module, number: str) -> StepBlock:
        attn, mlp = self._child(block, "attn"), self._child(block, "mlp")
        matrices = {
            name: self._matrix(self._child(parent, name), f"{name} of block {number}")
            for parent, names in ((attn, ("q", "k", "v", "out")), (mlp, ("gate", "up", "down")))
            for name in names
        }
        for names in (("q", "k", "v"), ("gate", "up")):
            if len({matrices[name].kind for name in names}) > 1:
                raise Unfit(f"{', '.join(names)} of block {number} are of several kinds")
        return StepBlock(
            **matrices,
            attn_norm=self._norm(block, "pre_attn_norm"),
            mlp_norm=self._norm(block, "pre_ffw_norm"),
            attn_post_norm=self._optional_norm(block, "post_attn_norm"),
            mlp_post_norm=self._optional_norm(block, "post_ffw_norm"),
        )

    def _child(self, parent: nn.Module, name: str) -> Any:
        return self._seen.look(parent._modules, name)

    @staticmethod
    def _matrix(layer: nn.Module, words: str) -> PackedMatrix:
        matrix = getattr(layer, "matrix", None)
        if not isinstance(matrix, PackedMatrix):
            raise Unfit(f"{words} is not packed")
        if getattr(layer, "bias", None) is not None:
            raise Unfit(f"{words} has a bias")
        return matrix

    def _norm(self, parent: nn.Module, name: str) -> Tensor:
        scale = self._seen.look(self._child(parent, name)._parameters, "scale")
        if not isinstance(scale, Tensor) or scale.dtype != torch.float32:
            raise Unfit(f"{name} is not float32")
        return scale

    def _optional_norm(self, parent: nn.Module, name: str) -> Tensor | None:
        has_norm = not isinstance(self._child(parent, name), nn.Identity)
        return self._norm(parent, name) if has_norm else None
