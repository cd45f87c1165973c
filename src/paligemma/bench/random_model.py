"""A model with a release's shapes and random weights: speed and memory need no others.

Every tensor has values of its own: a runtime that shared equal ones would look impossibly fast.
"""

from __future__ import annotations

import torch
from torch import nn
from tqdm.auto import tqdm

from paligemma.adapt.quant import Quant, place_quantised
from paligemma.config import PaliGemmaConfig, find_release, release_config
from paligemma.model import PaliGemmaModel
from paligemma.weights.load import take_quantised
from paligemma.weights.shapes import parameter_shapes

_NUM_VALUES = 2**24 - 3


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
    values, shapes = _Values(), parameter_shapes(config).items()
    for name, shape in tqdm(shapes, desc="random weights", leave=False, disable=None):
        drawn = values.take(shape, dtype if quant is None else torch.bfloat16)
        if not take_quantised(model, name, drawn, "cpu"):
            owner, _, leaf = name.rpartition(".")
            parameter = nn.Parameter(drawn.to(dtype), requires_grad=False)
            model.get_submodule(owner).register_parameter(leaf, parameter)
    return model.eval()


class _Values:
    """Values of the size that trained weights have: about 1/sqrt(columns); norms near zero.

    Normal numbers, drawn once and read in a circle: drawing billions takes minutes. Their count is
    a prime, so no two rows or tensors of a size begin at the same place.
    """

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._circle = torch.randn(_NUM_VALUES, generator=generator).bfloat16()
        self._place = 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The next values in a shape of their own memory."""
        drawn = torch.empty(shape, dtype=dtype)
        scale = 0.1 if len(shape) == 1 else shape[-1] ** -0.5
        left = drawn.view(-1)
        while len(left):
            part = self._circle[self._place : self._place + len(left)]
            torch.mul(part, scale, out=left[: len(part)])
            left = left[len(part) :]
            self._place = (self._place + len(part)) % _NUM_VALUES
        return drawn
