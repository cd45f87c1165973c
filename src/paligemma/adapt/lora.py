"""Low-rank adapters: trained beside a frozen model, attached to it, detached, or merged into it.

An adapter is an object of its own. Attaching puts an `AdaptedLinear` in the place of each linear
layer that it changes, an `AdaptedEmbedding` in that of the embedding where it has token rows, and a
`ReplacedLinear` where it has a layer whole. The layers themselves stay as they are, so one model
serves several adapters in turn.

Axes: D input width, E output width, R rank, N token rows, V vocabulary.
Source: LoRA arXiv 2106.09685, rsLoRA 2312.03732, DoRA 2402.09353, in PEFT's arithmetic.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paligemma.adapt.token_rows import TOKEN_KINDS, AdaptedEmbedding, TokenRows, ids_of
from paligemma.adapt.whole_layers import ReplacedLinear
from paligemma.errors import ConfigError
from paligemma.kernels.linear import Linear
from paligemma.kernels.narrow_layers import NarrowEmbedding, NarrowLinear
from paligemma.kernels.nf4 import NF4Linear
from paligemma.kernels.packed_layers import PackedEmbedding, PackedLinear

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
EMBEDDING = "text.embed"
_MAX_RANK = 4096
# Largest difference in float32 that merging may make, as a share of the largest output.
MAX_DIFFERENCE = 1e-5


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
        token_rows: names of `TOKEN_KINDS`, whose rows of the embedding table are learnt too.
    """

    rank: int = 16
    alpha: float = 32.0
    parts: tuple[str, ...] = ("decoder",)
    dropout: float = 0.0
    rank_stabilised: bool = False
    dora: bool = False
    token_rows: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= _MAX_RANK:
            raise ConfigError(f"the rank must lie in 1..{_MAX_RANK}, got {self.rank}")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"alpha must be positive and finite, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"the dropout must lie in [0, 1), got {self.dropout}")
        for kind in self.token_rows:
            if kind not in TOKEN_KINDS:
                raise ConfigError(
                    f"token rows are those of {' or '.join(TOKEN_KINDS)}, got {kind!r:.100}"
                )
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

    def fold(self) -> Linear:
        """The layer itself, with the update in its weights."""
        self.base.assign(self.update.merged(self.base.dense()))
        return self.base


# What stands in the place of a model's own layer, its `base`.
_Attached = AdaptedLinear | AdaptedEmbedding | ReplacedLinear


@dataclass(frozen=True)
class Adapter:
    """Updates of some linear layers of a model, and of rows of its embedding table.

    Attributes:
        config: what it changes, and how.
        updates: name of the layer -> update.
        token_rows: rows of the table, or None.
        layers: name of a layer -> the layer that replaces it, which is not trained here.
    """

    config: LoraConfig
    updates: Mapping[str, LoraUpdate]
    token_rows: TokenRows | None = None
    layers: Mapping[str, Linear] = field(default_factory=dict)

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
            layer = base_layer(model, name)
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
            updates[name] = _beside(update, layer)
        return cls(config, updates, _new_rows(model, config))

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name of the layer and of the matrix, parameter)."""
        for name, update in self.updates.items():
            for leaf, parameter in update.named_parameters():
                yield f"{name}.{leaf}", parameter
        if self.token_rows is not None:
            yield f"{EMBEDDING}.rows", self.token_rows.rows
        for name, layer in self.layers.items():
            for leaf, parameter in layer.named_parameters():
                yield f"{name}.{leaf}", parameter

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for _, parameter in self.named_parameters())

    @property
    def is_active(self) -> bool:
        """Whether it changes any number: some `up` is not zero, or a row is not the table's.

        Layers that are replaced whole count as changed.
        """
        rows = self.token_rows
        return (
            bool(self.layers)
            or any(bool(update.up.any()) for update in self.updates.values())
            or (rows is not None and rows.is_active)
        )


def _new_rows(model: nn.Module, config: LoraConfig) -> TokenRows | None:
    if not config.token_rows:
        return None
    vocab: Any = model.config.vocab  # type: ignore[union-attr]
    kinds = [kind for kind in TOKEN_KINDS if kind in config.token_rows]
    ids = torch.tensor([one for kind in kinds for one in ids_of(kind, vocab)])
    embedding = base_layer(model, EMBEDDING)
    start = embedding(ids.to(embedding.device)).detach()
    return TokenRows(ids, start.float().clone(), start).to(embedding.device)


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
    needs = {name: (len(one.up), one.down.shape[1]) for name, one in adapter.updates.items()}
    needs |= {name: (one.out_features, one.in_features) for name, one in adapter.layers.items()}
    for name, needed in needs.items():
        layer = base_layer(model, name)
        sizes = (layer.out_features, layer.in_features)
        if sizes != needed:
            raise ConfigError(
                f"an adapter fits the model it was trained for, {name} has size {sizes}, the "
                f"adapter's {needed}"
            )
        layers[name] = layer
    rows = adapter.token_rows
    if rows is not None:
        table = base_layer(model, EMBEDDING)
        sizes, needed = (table.num_tokens, table.width), (int(rows.ids.max()), rows.rows.shape[1])
        if needed[0] >= sizes[0] or needed[1] != sizes[1]:
            raise ConfigError(
                f"an adapter fits the model it was trained for, its table has {sizes[0]} rows of "
                f"{sizes[1]}, the adapter's row {needed[0]} has {needed[1]}"
            )
    detach(model)
    for name, update in adapter.updates.items():
        put_layer(model, name, AdaptedLinear(layers[name], _beside(update, layers[name])))
    for name, layer in adapter.layers.items():
        put_layer(model, name, ReplacedLinear(layers[name], layer))
    if rows is not None:
        put_layer(model, EMBEDDING, AdaptedEmbedding(table, rows.to(table.device)))


def detach(model: nn.Module) -> None:
    """Give a model its own layers back; nothing happens to one without an adapter."""
    for name, module in _adapted(model):
        put_layer(model, name, module.base)


_QUANTISED = (NF4Linear, PackedLinear, PackedEmbedding, NarrowLinear, NarrowEmbedding)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add the attached adapter to the weights, which stay in their dtype, and detach it.

    Raises:
        ConfigError: no adapter is attached, or a layer under it is quantised.
    """
    adapted = list(_adapted(model))
    if not adapted:
        raise ConfigError("merging needs an adapter on the model; attach one first")
    for name, module in adapted:
        if isinstance(module.base, _QUANTISED):
            raise ConfigError(
                f"an adapter is merged into plain weights, {name} is quantised; load the model "
                "without quantisation, or let the adapter stay beside it"
            )
    for name, module in adapted:
        put_layer(model, name, module.fold())


@torch.no_grad()
def merge_difference(model: nn.Module) -> float:
    """How far merging moves the outputs of a model's adapted layers; one is computed at a time.

    Returns:
        The largest difference in float32 between a merged layer and the adapted one, for inputs
        that a seed draws, as a share of the layer's largest output; NaN where an update is.
    """
    worst = torch.zeros(())
    for _, module in _adapted(model):
        if not isinstance(module, AdaptedLinear):
            continue
        update, dense = module.update, module.base.dense()
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4, module.in_features, generator=generator).to(dense.device)
        plain = Linear(module.in_features, module.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(dense, requires_grad=False)
        live = AdaptedLinear(plain, update).eval()(x)
        largest = live.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        difference = (F.linear(x, update.merged(dense)) - live).abs().max() / largest
        worst = torch.maximum(worst, difference.cpu())  # which keeps NaN
    return float(worst)


def _adapted(model: nn.Module) -> Iterator[tuple[str, _Attached]]:
    for name, module in list(model.named_modules()):
        if isinstance(module, _Attached):
            yield name, module


def _beside(update: LoraUpdate, layer: Linear) -> LoraUpdate:
    """The update on the device of its layer; a fake tensor cannot be moved where it is."""
    return update if update.down.device == layer.device else update.to(layer.device)


def base_layer(model: nn.Module, name: str) -> Any:
    """A model's own layer of a name, whether or not an adapter stands in its place.

    Raises:
        ConfigError: the model has none.
    """
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise ConfigError(
            f"an adapter fits the model it was trained for, which has a layer {name}; this one "
            "has none"
        ) from error
    return module.base if isinstance(module, _Attached) else module


def put_layer(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a layer in the place of the one that has its name."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)
