"""Adds random pages to an index until it is killed; says so after each.

python killed_adding.py URL
"""

from __future__ import annotations

import sys

import torch
from colour_encoder import DIM, ColourEncoder

from paligemma.retrieval.index import PageIndex
from paligemma.retrieval.items import Item
from paligemma.retrieval.vectors import Vectors


def page_id(number: int) -> str:
    """The id of a page of this program."""
    return f"{number:064x}:1"


def item(number: int) -> Item:
    """A page whose vectors follow from its number."""
    values = torch.randn(40, DIM, generator=torch.Generator().manual_seed(number))
    values = torch.nn.functional.normalize(values, dim=-1)
    return Item(id=page_id(number), vectors=Vectors(values=values, grid=(6, 6)))


def main(url: str) -> None:
    """Add pages, two at once, each written twice."""
    with PageIndex.open(url, ColourEncoder()) as index:
        number = index.count()
        while True:
            for _ in range(2):
                index.upsert([item(number), item(number + 1)])
            number += 2
            print(number, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
