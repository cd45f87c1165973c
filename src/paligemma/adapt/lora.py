"""Low-rank adapters: trained beside a frozen model, attached to it, detached, or merged into it.

An adapter is an object of its own. Attaching puts an `AdaptedLinear` in the place of each linear
layer that it changes and leaves the layer itself as it is, so one model serves several adapters in
turn.

Axes: D input width, E output width, R rank, N token rows, V vocabulary.
Source: LoRA arXiv 2106.09685, rsLoRA 2312.03732, DoRA 2402.09353, in PEFT's arithmetic.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paligemma.errors import ConfigError
from paligemma.kernels.linear import Linear

# Exact layers of each part, never by suffix: tower and decoder both have a `q`.
PARTS: Mapping[str, str] = {
    "decoder.attention": r"text\.blocks\.\d+\.attn\.(q|k|v|out)",
    "decoder.mlp": r"text\.blocks\.\d+\.mlp\.(gate|up|down)",
    "vision.attention": r"vision\.blocks\.\d+\.attn\.(q|k|v|out)",
    "vision.mlp": r"vision\.blocks\.\d+\.mlp\.(fc1|fc2)",
    "projector": r"projector",
}
_GROUPS = {
    "decoder": ("decoder.attention", "decoder.mlp"),
    "vision": ("vision.attention", "vision.mlp"),
}
_MAX_RANK = 4096


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """What an adapter changes, and how.

    Attributes:
        rank: R, inner width of every update.
        alpha: the update is multiplied by alpha / R.
        parts: names of `PARTS`; "decoder" and "vision" stand for both of theirs.
        dropout: share of the update's inputs that training drops.
        rank_stabilised: multiply by alpha / sqrt(R) instead (rsLoRA).
        dora: learn the norm of each output's weights apart from their direction (DoRA).
    """

    rank: int = 16
    alpha: float = 16.0
    parts: tuple[str, ...] = ("decoder",)
    dropout: float = 0.0
    rank_stabilised: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= _MAX_RANK:
            raise ConfigError(f"the rank must lie in 1..{_MAX_RANK}, got {self.rank}")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"alpha must be positive and finite, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"the dropout must lie in [0, 1), got {self.dropout}")
        expand_parts(self.parts)

    @property
    def scale(self) -> float:
        """Factor on the product of both matrices."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


def expand_parts(parts: Sequence[str]) -> tuple[str, ...]:
    """The names of `PARTS` that a choice stands for, in their order, each once.

    Raises:
        ConfigError: nothing is chosen, or a name is unknown.
    """
    known = (*_GROUPS, *PARTS)
    if isinstance(parts, str):
        parts = (parts,)
    for part in parts:
        if part not in known:
            near = difflib.get_close_matches(part, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"a part must be one of {', '.join(known)}, got {part!r}{hint}")
    chosen = {name for part in parts for name in _GROUPS.get(part, (part,))}
    if not chosen:
        raise ConfigError(f"an adapter needs at least one part of {', '.join(known)}")
    return tuple(name for name in PARTS if name in chosen)


class LoraUpdate(nn.Module):
    """The update of one linear layer: float32 matrices, however the layer is stored.

    Attributes:
        down: float32[R, D].
        up: float32[E, R].
        magnitude: float32[E], norms of the adapted weights (DoRA), or None.
    """

    def __init__(
        self, down: Tensor, up: Tensor, *, scale: float, magnitude: Tensor | None = None
    ) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)
        self.magnitude = None if magnitude is None else nn.Parameter(magnitude)
        self.scale = scale
        self.dropout = 0.0

    def delta(self) -> Tensor:
        """float32[E, D]: what is added to the weights, before the norms of DoRA."""
        return self.scale * (self.up.float() @ self.down.float())

    def merged(self, weight: Tensor) -> Tensor:
        """float32[E, D]: a layer's weights with the update in them."""
        total = weight.float() + self.delta()
        if self.magnitude is None:
            return total
        return total * (self.magnitude.float() / total.norm(dim=1))[:, None]


class AdaptedLinear(nn.Module):
    """A linear layer with an update; stands in its place, with its methods.

    Args:
        base: the layer, unchanged.
        update: the update.
    """

    def __init__(self, base: Linear, update: LoraUpdate) -> None:
        super().__init__()
        self.base, self.update = base, update
        self.in_features, self.out_features = base.in_features, base.out_features

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of inputs and outputs."""
        return self.base.dtype

    @property
    def device(self) -> torch.device:
        return self.base.device

    def forward(self, x: Tensor) -> Tensor:
        """float[..., D] -> float[..., E]."""
        update = self.update
        y = self.base(x)
        dropped = F.dropout(x, update.dropout, self.training) if update.dropout else x
        low = F.linear(F.linear(dropped.to(update.down.dtype), update.down), update.up)
        if update.magnitude is None:
            return y + (low * update.scale).to(y.dtype)
        with torch.no_grad():
            norms = (self.base.dense() + update.delta()).norm(dim=1)
        factor = update.magnitude / norms
        straight = y if dropped is x else self.base(dropped)
        if self.base.bias is not None:
            straight = straight - self.base.bias
        return y + ((factor - 1) * straight.float() + factor * low * update.scale).to(y.dtype)


@dataclass(frozen=True)
class Adapter:
    """Updates of some linear layers of a model.

    Attributes:
        config: what it changes, and how.
        updates: name of the layer -> update.
    """

    config: LoraConfig
    updates: Mapping[str, LoraUpdate]

    @classmethod
    def new(cls, model: nn.Module, config: LoraConfig, seed: int = 0) -> Adapter:
        """An adapter that changes nothing yet: `up` is zero, `down` is drawn.

        Args:
            model: the model that it will be attached to.
            config: what it changes, and how.
            seed: seed of the drawn matrices.

        Raises:
            ConfigError: the rank exceeds what a layer has.
        """
        generator = torch.Generator().manual_seed(seed)
        updates = {}
        for name in layer_names(model, config.parts):
            layer = _layer(model, name)
            narrow = min(layer.in_features, layer.out_features)
            if config.rank > narrow:
                raise ConfigError(
                    f"the rank must not exceed the width of a layer, {name} has {narrow}, got "
                    f"{config.rank}"
                )
            down = torch.empty(config.rank, layer.in_features)
            nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
            up = torch.zeros(layer.out_features, config.rank)
            magnitude = layer.dense().norm(dim=1).cpu() if config.dora else None
            update = LoraUpdate(down, up, scale=config.scale, magnitude=magnitude)
            update.dropout = config.dropout
            updates[name] = update.to(layer.device)
        return cls(config, updates)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name of the layer and of the matrix, parameter)."""
        for name, update in self.updates.items():
            for leaf, parameter in update.named_parameters():
                yield f"{name}.{leaf}", parameter

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for _, parameter in self.named_parameters())

    @property
    def is_active(self) -> bool:
        """Whether it changes any number: some `up` is not zero."""
        return any(bool(update.up.any()) for update in self.updates.values())


def layer_names(model: nn.Module, parts: Sequence[str]) -> list[str]:
    """The names of the linear layers of some parts, in the order of the model."""
    pattern = re.compile("|".join(PARTS[part] for part in expand_parts(parts)))
    names = (name.removesuffix(".base") for name, _ in model.named_modules())
    return list(dict.fromkeys(name for name in names if pattern.fullmatch(name)))


def attach(model: nn.Module, adapter: Adapter) -> None:
    """Let a model answer with an adapter, in the place of the one that it has, if any.

    Raises:
        ConfigError: the model lacks a layer of the adapter, or has it in another size.
    """
    layers = {}
    for name, update in adapter.updates.items():
        layer = _layer(model, name)
        sizes, needed = (
            (layer.out_features, layer.in_features),
            (len(update.up), update.down.shape[1]),
        )
        if sizes != needed:
            raise ConfigError(
                f"an adapter fits the model it was trained for, {name} has size {sizes}, the "
                f"adapter's {needed}"
            )
        layers[name] = layer
    detach(model)
    for name, layer in layers.items():
        _replace(model, name, AdaptedLinear(layer, adapter.updates[name].to(layer.device)))


def detach(model: nn.Module) -> None:
    """Give a model its own layers back; nothing happens to one without an adapter."""
    for name, module in list(model.named_modules()):
        if isinstance(module, AdaptedLinear):
            _replace(model, name, module.base)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add the attached adapter to the weights, which stay in their dtype, and detach it.

    Raises:
        ConfigError: no adapter is attached.
    """
    adapted = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, AdaptedLinear)
    ]
    if not adapted:
        raise ConfigError("merging needs an adapter on the model; attach one first")
    for name, module in adapted:
        module.base.assign(module.update.merged(module.base.dense()))
        _replace(model, name, module.base)


def _layer(model: nn.Module, name: str) -> Linear:
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise ConfigError(
            f"an adapter fits the model it was trained for, which has a layer {name}; this one "
            "has none"
        ) from error
    return module.base if isinstance(module, AdaptedLinear) else module  # type: ignore[return-value]


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)
