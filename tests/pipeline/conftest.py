"""A random model of the embedded one's kind, loaded once, and one that writes what it is told."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_folder import write_random_tiny
from torch import Tensor

from paligemma import PaliGemma

Scripted = Callable[..., PaliGemma]


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_tiny(tmp_path_factory.mktemp("models") / "random-tiny")


@pytest.fixture(scope="session")
def random_tiny(tiny_dir: Path) -> PaliGemma:
    return PaliGemma.from_pretrained(tiny_dir, kv_cache_dtype="float32")


class ScriptedModel:
    """Writes given ids, each with the same probability; the others share the rest."""

    device = torch.device("cpu")
    training = False
    vision = projector = torch.nn.Identity()

    def __init__(self, pg: PaliGemma, ids: list[int], probability: float) -> None:
        self.config = pg.config
        others = (1 - probability) / (pg.vocab.size - 1)
        self.rows = torch.full((len(ids), pg.vocab.size), others)
        self.rows[range(len(ids)), ids] = probability

    def encode_image(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 1, self.config.text.width)

    def new_cache(self, batch_size: int, capacity: int, dtype: torch.dtype) -> SimpleNamespace:
        return SimpleNamespace(step=0)

    def prefill(
        self,
        soft: Tensor,
        tokens: Tensor,
        ar: Tensor,
        valid: Tensor,
        cache: SimpleNamespace,
        **_: object,
    ) -> tuple[Tensor, Tensor]:
        return self.rows[:1].log(), valid.sum(dim=1)

    def decodes_runs(self, cache: SimpleNamespace) -> bool:
        return False

    def decode_step(self, tokens: Tensor, positions: Tensor, cache: SimpleNamespace) -> Tensor:
        cache.step += 1
        return self.rows[cache.step : cache.step + 1].log()


@pytest.fixture
def scripted(random_tiny: PaliGemma) -> Scripted:
    """scripted(text, probability=0.9) -> a PaliGemma that answers every prompt with that text."""

    def make(text: str, probability: float = 0.9) -> PaliGemma:
        ids = [*random_tiny.processor.tokenizer.encode(text), random_tiny.vocab.eos]
        pg = copy.copy(random_tiny)
        pg.__dict__.pop("mask_codec", None)
        pg.model = ScriptedModel(random_tiny, ids, probability)  # type: ignore[assignment]
        return pg

    return make
