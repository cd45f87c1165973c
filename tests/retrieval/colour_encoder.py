"""A model that finds colours: small enough to foresee every score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor

from paligemma.retrieval.vectors import Vectors

GRID = (4, 4)
DIM = 8


class ColourEncoder:
    """A vector of each of 16 patches: its mean colour, by a fixed projection, unit length."""

    dim = DIM
    image_size_px = 32

    def __init__(self, identity: str = "colours 1") -> None:
        self.identity = identity
        self.num_encoded = 0

    def encode_pages(
        self, pictures: Sequence[Image.Image], *, batch_size: int = 1
    ) -> list[Vectors]:
        """Patches, and one more vector for the prompt."""
        self.num_encoded += len(pictures)
        found = []
        for picture in pictures:
            small = picture.convert("RGB").resize(GRID, Image.Resampling.BOX)
            colours = torch.from_numpy(np.array(small)).float().reshape(-1, 3)
            values = torch.cat([_embedded(colours), _embedded(torch.full((1, 3), 99.0))])
            found.append(Vectors(values=values, grid=GRID))
        return found

    def encode_queries(self, texts: Sequence[str], *, batch_size: int = 8) -> list[Vectors]:
        """A vector of each word, which is the name of a colour."""
        found = []
        for text in texts:
            colours = [ImageColor.getrgb(word)[:3] for word in text.split()]
            values = _embedded(torch.tensor(colours).float())
            found.append(Vectors(values=values, pieces=tuple(text.split())))
        return found


def _embedded(colours: torch.Tensor) -> torch.Tensor:
    weights = torch.linspace(-1, 1, 4 * DIM).sin().mul(9).cos().reshape(4, DIM)
    ones = torch.ones(len(colours), 1)
    seen = torch.cat([colours / 127.5 - 1, ones / 4], 1) @ weights
    return torch.nn.functional.normalize(seen, dim=-1)


def picture_of(*colours: str) -> Image.Image:
    """Stripes of colours."""
    picture = Image.new("RGB", (len(colours) * 8, 8))
    for place, colour in enumerate(colours):
        picture.paste(Image.new("RGB", (8, 8), colour), (place * 8, 0))
    return picture


def write_pictures(folder: Path) -> list[Path]:
    """Three pictures of two colours or one, in a new folder."""
    folder.mkdir()
    colours = {"sea": ("blue", "navy"), "fire": ("red", "orange"), "leaf": ("green",)}
    for name, stripes in colours.items():
        picture_of(*stripes).save(folder / f"{name}.png")
    return sorted(folder.iterdir())
