"""A model with a release's shapes and random weights: speed and memory need no others.

Every tensor has values of its own: a runtime that shared equal ones would look impossibly fast.
"""

from __future__ import annotations

import torch
from torch import nn
from tqdm import tqdm

from paligemma.adapt.quant import Quant, place_quantised
from paligemma.config import PaliGemmaConfig, find_release, release_config
from paligemma.model import PaliGemmaModel
from paligemma.weights.load import take_quantised
from paligemma.weights.shapes import parameter_shapes

_ROWS_AT_ONCE = 4096


def random_config(release: str, image_size_px: int | None = None) -> PaliGemmaConfig:
    """The config of a published name, at another resolution if one is stated.

    Raises:
        ModelNotFoundError: the name follows no published pattern.
    """
    row, resolution = find_release(release)
    return release_config(row.text, image_size_px or resolution)


@torch.no_grad()
def random_model(
    config: PaliGemmaConfig, *, quant: Quant | None, dtype: torch.dtype
) -> PaliGemmaModel:
    """Draw the weights of a model tensor by tensor, on the CPU.

    Args:
        quant: layers in fewer bits, each packed as soon as it is drawn.
        dtype: of the other parameters; packed models have float32.

    Returns:
        The model in evaluation mode.
    """
    with torch.device("meta"):
        model = PaliGemmaModel(config)
    if quant is not None:
        if quant.is_packed:
            dtype = torch.float32
        place_quantised(model, quant, dtype)
    generator = torch.Generator().manual_seed(0)
    for name, shape in tqdm(parameter_shapes(config).items(), desc="random weights", leave=False):
        drawn = _draw(shape, dtype if quant is None else torch.bfloat16, generator)
        if not take_quantised(model, name, drawn, "cpu"):
            owner, _, leaf = name.rpartition(".")
            parameter = nn.Parameter(drawn.to(dtype), requires_grad=False)
            model.get_submodule(owner).register_parameter(leaf, parameter)
    return model.eval()


def _draw(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Values of the size that trained weights have: about 1/sqrt(columns); norms near zero."""
    drawn = torch.empty(shape, dtype=dtype)
    if len(shape) == 1:
        return drawn.copy_(torch.randn(shape, generator=generator) * 0.1)
    for start in range(0, shape[0], _ROWS_AT_ONCE):
        part = drawn[start : start + _ROWS_AT_ONCE]
        part.copy_(torch.randn(part.shape, generator=generator) * shape[-1] ** -0.5)
    return drawn
