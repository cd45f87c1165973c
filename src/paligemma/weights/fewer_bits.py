"""A model that is there already, in fewer bits: for measuring and comparing kinds of weights."""

from __future__ import annotations

import torch

from paligemma.adapt.quant import Quant, place_quantised
from paligemma.model import PaliGemmaModel
from paligemma.weights.load import take_quantised


def in_fewer_bits(model: PaliGemmaModel, quant: str) -> PaliGemmaModel:
    """The same values in fewer bits, in rows, on the same device; what stays plain is shared.

    Args:
        quant: as for `Quant.parse`.

    Raises:
        ConfigError: no such kind.
        CheckpointError: NaN or infinity, which fewer bits would turn into ordinary numbers.
    """
    with torch.device("meta"):
        narrow = PaliGemmaModel(model.config)
    place_quantised(narrow, Quant.parse(quant), model.dtype, packs=False)
    for name, parameter in model.named_parameters():
        if not take_quantised(narrow, name, parameter.detach(), model.device):
            owner, _, leaf = name.rpartition(".")
            narrow.get_submodule(owner)._parameters[leaf] = parameter
    narrow.text.embed_scale = model.text.embed_scale
    return narrow.eval()
