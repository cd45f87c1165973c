"""Batches of examples: order, targets, parts; and the memory of the loss."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_folder import EMBEDDED

from paligemma.adapt.checkpointing import checkpoint_blocks
from paligemma.batch import Batch
from paligemma.errors import DataError
from paligemma.example import Asking, Example
from paligemma.model import PaliGemmaModel
from paligemma.model.paligemma import init_weights
from paligemma.processing.processor import Processor
from paligemma.processing.tokenizer import load_tokenizer
from paligemma.tiny.start import tiny_config
from paligemma.train import loss as loss_module
from paligemma.train.data import MicroBatches
from paligemma.train.examples import ExampleSource, SuffixLoss
from paligemma.train.loss import MEANS, training_loss

ASKING = Asking(text_len=24, max_new_tokens=8)


@dataclass(frozen=True)
class Plain:
    grey: int

    def read(self, max_pixels: int) -> np.ndarray:
        return np.full((9, 14, 3), self.grey, np.uint8)


def examples(number: int) -> list[Example]:
    return [
        Example(
            id=str(k),
            prefix="answer en " + "what " * (k % 4),
            pictures=(Plain(20 * k),),
            references=None,
            targets=("red", "blue", "a star")[: 1 + k % 3],
        )
        for k in range(number)
    ]


def source(number: int = 7, **options: Any) -> ExampleSource:
    processor = Processor(load_tokenizer(EMBEDDED), 32)
    return ExampleSource(
        examples=examples(number),
        asking_of=lambda example: ASKING,
        processor=processor,
        **{"batch_size": 3, "seed": 5, **options},
    )


@pytest.fixture
def model() -> PaliGemmaModel:
    config = tiny_config(load_tokenizer(EMBEDDED).vocab, image_size_px=32)
    config = replace(
        config, vision=replace(config.vision, depth=1), text=replace(config.text, depth=2)
    )
    model = PaliGemmaModel(config)
    init_weights(model)
    return model.train()


def gradients(
    model: PaliGemmaModel, batch: Batch | MicroBatches[Batch], objective: SuffixLoss | None = None
) -> list[torch.Tensor]:
    objective = objective or SuffixLoss()
    parts = batch if isinstance(batch, MicroBatches) else MicroBatches((batch,), (1.0,))
    model.zero_grad()
    for part, share in zip(parts.parts, parts.shares, strict=True):
        (objective(model, part)[0] * share).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def ids_of(made: ExampleSource, epoch: int) -> list[str]:
    first = epoch * len(made.examples)
    return [made._visit(first + k)[0].id for k in range(len(made.examples))]


def test_an_epoch_shows_every_example_once_in_an_order_of_its_own() -> None:
    made = source()
    orders = [ids_of(made, epoch) for epoch in range(3)]
    assert all(sorted(order) == [str(k) for k in range(7)] for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert ids_of(source(seed=6), 0) != orders[0]


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    first, later = source(), source()
    later.batch(9)
    a, b = first.batch(4), later.batch(4)
    assert isinstance(a, Batch)
    assert isinstance(b, Batch)
    assert torch.equal(a.tokens, b.tokens)
    assert torch.equal(a.images, b.images)


def test_several_targets_take_turns_and_one_row_keeps_its_end_token() -> None:
    made = source()
    several = made.examples[2]
    shown = [made.row(several, visit).tokens for visit in range(30)]
    assert all(tokens[-1] == made.processor.vocab.eos for tokens in shown)
    rounds = [tuple(shown[start : start + 3]) for start in range(0, 30, 3)]
    assert all(len(set(one)) == 3 for one in rounds)
    assert len(set(rounds)) > 2  # each round in an order of its own
    # A recipe that draws with replacement shows one twice in a round sooner or later.
    drawn = [source(drawing=frozenset({0})).row(several, visit).tokens for visit in range(30)]
    assert set(drawn) == set(shown)
    assert any(len(set(drawn[start : start + 3])) < 3 for start in range(0, 30, 3))


def test_every_target_is_learnt_once_in_as_many_epochs_as_there_are_targets() -> None:
    made, weighted = source(), source(weights=(1.0, 3.0), source_of=lambda one: int(one.id) % 2)
    for one in (made, weighted):
        seen: dict[str, list[tuple[int, ...]]] = {}
        for place in range(200):
            example, visit = one._visit(place)
            seen.setdefault(example.id, []).append(one.row(example, visit).tokens)
        assert len(seen) == 7
        for name, shown in seen.items():
            number = 1 + int(name) % 3
            rounds = [shown[k : k + number] for k in range(0, len(shown) - number + 1, number)]
            assert all(len(set(targets)) == number for targets in rounds)


def test_a_row_that_would_lose_its_end_is_refused() -> None:
    made = source()
    long = Example(id="long", prefix="x", pictures=(), references=None, targets=("red " * 40,))
    with pytest.raises(DataError, match=r"long: prompt and answer may have 24 tokens"):
        made.row(long)


@pytest.mark.parametrize("mean", MEANS)
def test_parts_of_a_batch_give_the_gradients_of_the_whole(model: PaliGemmaModel, mean: str) -> None:
    whole, parts = source(mean=mean), source(mean=mean, micro_size=2)
    one, many = whole.batch(1), parts.batch(1)
    assert isinstance(many, MicroBatches)
    assert isinstance(one, Batch)
    assert len(many.parts) == 2
    lengths = one.mask_loss.sum(dim=1)
    assert len(set(lengths.tolist())) > 1, "answers of one length do not tell the means apart"
    objective = SuffixLoss(mean=mean)
    for a, b in zip(
        gradients(model, one, objective), gradients(model, many, objective), strict=True
    ):
        assert (a - b).abs().max() <= 1e-5 * max(1.0, float(a.abs().max()))


def test_the_mean_over_tokens_is_the_mean_of_all_of_them(model: PaliGemmaModel) -> None:
    batch = source().batch(1)
    assert isinstance(batch, Batch)
    with torch.no_grad():
        found = training_loss(model, batch, mean="token")
    tokens = found.per_example * found.num_targets
    torch.testing.assert_close(found.loss, tokens.sum() / found.num_targets.sum())
    assert abs(float(found.loss) - float(found.per_example.mean())) > 1e-4


def test_products_in_bfloat16_keep_float32_gradients_and_nearly_the_loss(
    model: PaliGemmaModel,
) -> None:
    batch = source().batch(1)
    with torch.no_grad():
        exact, _ = SuffixLoss()(model, batch)
    rounded, _ = SuffixLoss(compute_dtype=torch.bfloat16)(model, batch)
    assert rounded.dtype == torch.float32
    assert 0 < abs(float(rounded.detach()) - float(exact)) < 0.02 * float(exact)
    rounded.backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    model.zero_grad()


def test_padding_to_any_length_changes_no_gradient(model: PaliGemmaModel) -> None:
    made = source()
    batch = made.batch(1)
    assert isinstance(batch, Batch)
    rows = [made.row(*made._visit(3 + k)).fit(25, made.processor.vocab.pad) for k in range(3)]
    padded = Batch.from_rows(
        rows, pad=made.processor.vocab.pad, images=batch.images, with_loss=True
    )
    assert padded.tokens.shape[1] > batch.tokens.shape[1]
    for a, b in zip(gradients(model, batch), gradients(model, padded), strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1.0, float(a.abs().max()))


def test_checkpointed_blocks_give_the_same_gradients_and_keep_their_names(
    model: PaliGemmaModel,
) -> None:
    batch = source().batch(0)
    names = [name for name, _ in model.named_parameters()]
    plain = gradients(model, batch)
    checkpoint_blocks([*model.vision.blocks, *model.text.blocks])
    assert [name for name, _ in model.named_parameters()] == names
    for block in model.text.blocks:
        block.dropout = 0.0
    for a, b in zip(plain, gradients(model, batch), strict=True):
        assert torch.equal(a, b)


def test_a_loss_in_chunks_is_that_of_the_whole(
    model: PaliGemmaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = source().batch(0)
    assert isinstance(batch, Batch)
    whole, expected = training_loss(model, batch, 0.1).loss, gradients(model, batch)
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", 2 * model.config.vocab.size)
    assert torch.allclose(training_loss(model, batch, 0.1).loss, whole, atol=1e-6)
    for a, b in zip(expected, gradients(model, batch), strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1.0, float(a.abs().max()))


_PEAKS = """
import resource, torch
from paligemma.kernels.linear import TiedEmbedding
from paligemma.train import loss

torch.set_num_threads(1)
table = TiedEmbedding(257_152, 8)
table.weight.requires_grad_(False).normal_()
hidden = torch.randn(200, 8, requires_grad=True)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def raised(rows):
    before = peak()
    losses = loss.supervised_losses(
        table.logits, hidden[:rows], torch.arange(rows), 257_152, loss.token_losses, 0.0
    )
    losses.sum().backward()
    return peak() - before

# A process' peak never falls: the lesser one comes first.
loss.CHUNK_LOGITS = 33 * 257_152
raised(2)
chunked = raised(200)
loss.CHUNK_LOGITS = 1 << 40
print(chunked, chunked + raised(200))
"""


def test_the_peak_of_the_loss_is_a_quarter_of_the_unchunked_one() -> None:
    # Every tensor of its own pages, which are given back when it is dropped.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "100000"}
    done = subprocess.run(
        [sys.executable, "-c", _PEAKS], capture_output=True, text=True, check=True, env=environment
    )
    chunked, whole = map(int, done.stdout.split())
    assert chunked <= whole / 4
