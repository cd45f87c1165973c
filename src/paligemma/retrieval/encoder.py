"""What an index asks of a model, and how one is loaded by its name."""

from __future__ import annotations

import os
from typing import Any, Protocol

from paligemma.retrieval.vectors import Vectors

DEFAULT_MODEL = "tiny"


class Encoder(Protocol):
    """What an index asks of a model; `ColPali` is one."""

    @property
    def identity(self) -> str:
        """Stable name of weights and preset."""

    @property
    def dim(self) -> int:
        """Width of a vector."""

    @property
    def image_size_px(self) -> int:
        """Side of the model's input."""

    def encode_pages(self, pictures: Any, *, batch_size: int = ...) -> list[Vectors]:
        """Vectors of each picture."""

    def encode_queries(self, texts: Any, *, batch_size: int = ...) -> list[Vectors]:
        """Vectors of each text."""


def load_colpali(name: str, **options: Any) -> Encoder:
    """The ColPali of a name; see `ColPali.from_pretrained`."""
    from paligemma.retrieval.colpali import ColPali

    return ColPali.from_pretrained(name, **options)


def lasting_name(model: str) -> str:
    """The name of a model, a folder's from the root: it is found from every working folder."""
    folder = os.path.expanduser(model)
    return os.path.abspath(folder) if model != DEFAULT_MODEL and os.path.exists(folder) else model
