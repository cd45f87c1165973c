"""The objective of a retriever on the embedded model: parts, hard negatives, what it teaches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from paligemma import ColPali, PaliGemma
from paligemma.adapt.lora import Adapter, LoraConfig, attach
from paligemma.errors import CheckpointError
from paligemma.model import PaliGemmaModel
from paligemma.processing.processor import Processor
from paligemma.retrieval.inputs import page_batch, query_batch
from paligemma.retrieval.keeping import save_retriever
from paligemma.retrieval.losses import PairLossConfig
from paligemma.retrieval.objective import PairBatch, PairObjective
from paligemma.retrieval.presets import PRESETS
from paligemma.scenes.pages import draw_page
from tests.retrieval.random_colpali import random_head

PRESET = PRESETS["tiny"]
PAGES = [draw_page(seed) for seed in range(4)]


def adapted() -> tuple[PaliGemmaModel, Adapter, Processor]:
    """The embedded model with an adapter that changes something."""
    pg = PaliGemma.from_pretrained("tiny", mode="exact", device="cpu")
    adapter = Adapter.new(pg.model, LoraConfig(rank=4), seed=1)
    for parameter in pg.model.parameters():
        parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    for update in adapter.updates.values():
        update.up.data.copy_(0.02 * torch.randn(update.up.shape, generator=generator))
    attach(pg.model, adapter)
    return pg.model, adapter, pg.processor


def pairs(processor: Processor, *, num_hard: int = 0) -> PairBatch:
    return PairBatch(
        queries=query_batch(PRESET, processor, [page.query for page in PAGES[:3]]),
        pages=page_batch(
            PRESET, processor, [page.image for page in (*PAGES[:3], *PAGES[3:] * num_hard)]
        ),
        page_of=(0, 1, 2),
        num_negatives=(num_hard, 0, 0) if num_hard else (),
    )


@pytest.mark.parametrize("num_hard", [0, 1])
def test_parts_give_the_loss_and_the_gradients_of_the_whole_batch(num_hard: int) -> None:
    model, adapter, processor = adapted()
    head = random_head(model.config.text.width, 16).requires_grad_(True)
    batch = pairs(processor, num_hard=num_hard)

    def run(part_size: int | None) -> tuple[float, list[Tensor]]:
        objective = PairObjective(head, PairLossConfig(), part_size=part_size)
        parameters = [*head.parameters(), *(one for _, one in adapter.named_parameters())]
        loss, logged = objective(model, batch)
        assert 0 <= logged["first"] <= 1
        return loss.item(), list(torch.autograd.grad(loss, parameters))

    whole, of_whole = run(None)
    parts, of_parts = run(2)
    assert parts == pytest.approx(whole, rel=1e-5)
    for one, other in zip(of_parts, of_whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    assert all(bool(one.any()) for one in of_whole)


def test_a_few_updates_place_every_page_first_and_what_is_kept_ranks_the_same(
    tmp_path: Path,
) -> None:
    model, adapter, processor = adapted()
    head = random_head(model.config.text.width, 32).requires_grad_(True)
    batch = pairs(processor)
    objective = PairObjective(head, PairLossConfig(kind="contrastive"))
    parameters = [*head.parameters(), *(one for _, one in adapter.named_parameters())]
    optimizer = torch.optim.Adam(parameters, lr=5e-3)
    losses = []
    for _ in range(7):
        optimizer.zero_grad()
        loss, logged = objective(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert logged["first"] == 1.0
    folder = save_retriever(
        adapter, model, head, tmp_path / "kept", base="tiny", preset=PRESET, dtype=torch.float32
    )
    loaded = ColPali.from_pretrained("tiny", adapter=folder, mode="exact", device="cpu")
    assert loaded.preset == PRESET
    assert torch.equal(loaded.head.weight, head.weight)
    with torch.inference_mode():
        expected, _ = objective(model, batch)
    objective.head = loaded.head
    found, _ = objective(loaded.pg.model, batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)
    with pytest.raises(CheckpointError, match="exists; name another"):
        save_retriever(adapter, model, head, folder, base="tiny", preset=PRESET)
