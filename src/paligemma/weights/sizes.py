"""How many bytes the parameters of a model take, and how they are divided over several devices."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from paligemma.adapt.quant import Quant, place_quantised
from paligemma.config import PaliGemmaConfig
from paligemma.errors import ConfigError
from paligemma.kernels.narrow_layers import NarrowEmbedding, NarrowLinear
from paligemma.kernels.nf4 import NF4Linear
from paligemma.kernels.packed_layers import packed_weights
from paligemma.kernels.packed_matrix import packed_bytes
from paligemma.model import PaliGemmaModel
from paligemma.weights.shapes import parameter_shapes

logger = logging.getLogger(__name__)

_BLOCKS = "text.blocks."


@dataclass(frozen=True, kw_only=True)
class ParameterBytes:
    """Bytes of one parameter.

    Attributes:
        stays: in its kind.
        drawn: of the bfloat16 tensor that it is quantised from, 0 where it is not.
    """

    stays: int
    drawn: int


def parameter_bytes(
    config: PaliGemmaConfig, quant: Quant | None, dtype: torch.dtype, *, packs: bool = True
) -> dict[str, ParameterBytes]:
    """Bytes of every parameter by its name in a plain model; nothing is allocated.

    Args:
        dtype: of the parameters that are not quantised.
        packs: as in `place_quantised`.
    """
    with torch.device("meta"):
        model = PaliGemmaModel(config)
        if quant is not None:
            place_quantised(model, quant, dtype, packs=packs)
    packed, found = packed_weights(model), {}
    for name, shape in parameter_shapes(config).items():
        owner, _, leaf = name.rpartition(".")
        layer: Any = model.get_submodule(owner)
        numbers = math.prod(shape)
        is_matrix = leaf in ("weight", "head")
        if name in packed:
            stays = packed_bytes(packed[name].kind, packed[name].n, packed[name].k)
        elif leaf == "weight" and isinstance(layer, NF4Linear):
            stays = sum(one.nbytes for one in layer.buffers())
        elif is_matrix and isinstance(layer, NarrowLinear | NarrowEmbedding):
            stays = layer.matrix.num_bytes
        else:
            found[name] = ParameterBytes(stays=numbers * dtype.itemsize, drawn=0)
            continue
        found[name] = ParameterBytes(stays=stays, drawn=numbers * torch.bfloat16.itemsize)
    return found


@dataclass(frozen=True, kw_only=True)
class Card:
    """What lies on one of several devices.

    Attributes:
        blocks: of the decoder. The first card also has all that is no block.
        weights: bytes of its parameters.
        room: bytes that it has, or None where that is not known.
    """

    blocks: range
    weights: int
    room: int | None

    def __str__(self) -> str:
        first, last = self.blocks.start, self.blocks.stop - 1
        return f"blocks {first} to {last}" if len(self.blocks) else "no blocks"


def divide(sizes: Mapping[str, ParameterBytes], rooms: Sequence[int | None]) -> list[Card]:
    """Divide a model over devices: the blocks in order, as many bytes as the device has a share.

    Tower, projector, embedding, final norm and head lie on the first one.

    Args:
        rooms: bytes that each device has; where one is not known, all shares are equal.
    """
    each: dict[int, int] = {}
    rest = 0
    for name, one in sizes.items():
        if name.startswith(_BLOCKS):
            number = int(name.removeprefix(_BLOCKS).partition(".")[0])
            each[number] = each.get(number, 0) + one.stays
        else:
            rest += one.stays
    shares = [room or 1 for room in rooms] if all(rooms) else [1 for _ in rooms]
    total, scale = rest + sum(each.values()), sum(shares)
    cards, start, before = [], 0, rest
    for number, room in enumerate(rooms):
        until = total * sum(shares[: number + 1]) / scale
        stop, weights = start, 0 if number else rest
        is_last = number == len(rooms) - 1
        while stop < len(each) and (is_last or before + each[stop] / 2 <= until):
            before += each[stop]
            weights += each[stop]
            stop += 1
        cards.append(Card(blocks=range(start, stop), weights=weights, room=room))
        start = stop
    return cards


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the parameters of a model go.

    Attributes:
        first: has all that is no block of the decoder.
        blocks: one device for each block.
    """

    first: torch.device
    blocks: tuple[torch.device, ...]

    def of(self, name: str) -> torch.device:
        """Where a parameter goes."""
        if not name.startswith(_BLOCKS):
            return self.first
        return self.blocks[int(name.removeprefix(_BLOCKS).partition(".")[0])]


def room_on(device: torch.device) -> int | None:
    """Bytes that are free on a CUDA device; None for any other, and where there is none."""
    is_known = device.type == "cuda" and torch.cuda.is_available()
    return torch.cuda.mem_get_info(device)[0] if is_known else None


def placed(
    config: PaliGemmaConfig,
    quant: Quant | None,
    dtype: torch.dtype,
    devices: Sequence[torch.device],
    *,
    packs: bool,
) -> Placement:
    """Divide a model over devices by the bytes that are free on them.

    Raises:
        ConfigError: the parameters do not fit on one of them.
    """
    rooms = [room_on(one) for one in devices]
    if rooms == [None]:
        return Placement(first=devices[0], blocks=(devices[0],) * config.text.depth)
    cards = divide(parameter_bytes(config, quant, dtype, packs=packs), rooms)
    for device, card in zip(devices, cards, strict=True):
        logger.info("%s: %s, %.2f GB of weights", device, card, card.weights / 1e9)
        if card.room is not None and card.weights > card.room:
            raise ConfigError(
                f"the weights must fit on {device}: {card.weights / 1e9:.1f} GB of them go there "
                f"({card}), {card.room / 1e9:.1f} GB are free; ask for fewer bits with quant, or "
                "name more devices"
            )
    pairs = zip(devices, cards, strict=True)
    blocks = tuple(device for device, card in pairs for _ in card.blocks)
    return Placement(first=devices[0], blocks=blocks)
