"""Loss of training and perplexity of evaluation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from torch import Tensor
from toy_training import VOCAB, make_batch, small_model

from paligemma.batch import Batch
from paligemma.errors import ConfigError, DataError
from paligemma.model import PaliGemmaModel
from paligemma.train.loss import (
    per_example_loss,
    perplexity,
    token_losses,
    training_loss,
)


@pytest.fixture(scope="module")
def model() -> PaliGemmaModel:
    model = small_model(seed=1)
    with torch.no_grad():
        model.text.embed.weight.mul_(4.0)  # Logits of several units: a loss far from log V.
        model.projector.weight.normal_(generator=torch.Generator().manual_seed(2))
    return model


def plain_logits(model: PaliGemmaModel, batch: Batch) -> Tensor:
    soft = model.encode_image(batch.images)
    return model(soft, batch.tokens[:, :-1], batch.mask_ar[:, :-1])


def test_smoothing_spreads_over_the_other_classes_only() -> None:
    # Probabilities .1 .2 .3 .4; 0.7 * 0.916291 + 0.3/3 * (2.302585 + 1.609438 + 1.203973).
    logits = torch.log(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert token_losses(logits, torch.tensor([3])).item() == pytest.approx(0.916291, abs=1e-6)
    smoothed = token_losses(logits, torch.tensor([3]), 0.3).item()
    assert smoothed == pytest.approx(1.153003, abs=1e-6)
    # Spread over all four classes, as torch does it, the same eps gives another value.
    wrong = torch.nn.functional.cross_entropy(logits, torch.tensor([3]), label_smoothing=0.3)
    assert wrong.item() == pytest.approx(1.093825, abs=1e-6)


def test_the_smoothed_gradient_is_exact_over_a_whole_vocabulary() -> None:
    num_classes, eps = 257_152, 0.2
    logits = 8 * torch.randn(2, num_classes, generator=torch.Generator().manual_seed(0))
    # A probability of 1, so that the gradient has no error of the softmax in it.
    logits[:, 7] = 60.0
    logits.requires_grad_()
    token_losses(logits, torch.tensor([7, 9]), eps).sum().backward()
    expected = torch.softmax(logits.detach().double(), dim=-1)
    for row, target in enumerate((7, 9)):
        distribution = reference.smoothed_target(target, num_classes, eps)
        expected[row] -= torch.from_numpy(distribution)
    # 1 minus a target of 0.8 at the most, in a rounding or two each.
    torch.testing.assert_close(logits.grad.double(), expected, rtol=0, atol=4 * 2.0**-24)


def test_losses_are_float32_whatever_the_logits_are() -> None:
    logits = torch.zeros(2, 3, 8, dtype=torch.bfloat16)
    losses = token_losses(logits, torch.zeros(2, 3, dtype=torch.int64))
    assert losses.dtype == torch.float32
    assert losses == pytest.approx(np.full((2, 3), np.log(8)), abs=1e-6)


@pytest.mark.parametrize("eps", [-0.1, 0.76])
def test_smoothing_out_of_range_is_an_error(eps: float) -> None:
    with pytest.raises(ConfigError, match=r"\[0, 1 - 1/4\]"):
        token_losses(torch.zeros(1, 4), torch.tensor([0]), eps)


def test_an_example_is_averaged_over_its_tokens() -> None:
    losses = torch.tensor([[4.0, 2.0, 9.0], [5.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    weights = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    per_example = per_example_loss(losses, weights)
    assert per_example.tolist() == [3.0, 5.0, 0.0]


def test_weights_that_sum_below_one_are_divided_by_one() -> None:
    per_example = per_example_loss(torch.tensor([[4.0, 2.0]]), torch.tensor([[0.25, 0.25]]))
    assert per_example.tolist() == [1.5]


@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_gathered_positions_give_the_plain_definition(model: PaliGemmaModel, eps: float) -> None:
    batch = make_batch()
    batch = replace(batch, mask_loss=batch.mask_loss * torch.linspace(0.2, 1.5, 9))
    gathered = training_loss(model, batch, eps)
    logits = plain_logits(model, batch)
    plain = per_example_loss(token_losses(logits, batch.tokens[:, 1:], eps), batch.mask_loss[:, 1:])
    torch.testing.assert_close(gathered.per_example, plain)
    assert gathered.num_targets.tolist() == [4, 2, 0]
    # Over examples, not over tokens.
    torch.testing.assert_close(gathered.loss, plain.mean())
    parameters = list(model.parameters())
    fast = torch.autograd.grad(gathered.loss, parameters)
    slow = torch.autograd.grad(plain.mean(), parameters)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_the_loss_is_the_slow_definition(model: PaliGemmaModel, eps: float) -> None:
    batch = make_batch()
    result = training_loss(model, batch, eps)

    def distribution(target: int) -> np.ndarray:
        return reference.smoothed_target(target, VOCAB.size, eps)

    loss, per_example = reference.batch_loss(
        plain_logits(model, batch).detach().double().numpy(),
        batch.tokens[:, 1:].numpy(),
        batch.mask_loss[:, 1:].numpy(),
        distribution,
    )
    assert result.loss.item() == pytest.approx(loss, rel=1e-5)
    assert result.per_example.tolist() == pytest.approx(per_example, rel=1e-5)


def test_another_loss_of_tokens_takes_the_place_of_the_cross_entropy(
    model: PaliGemmaModel,
) -> None:
    def hinge(logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        chosen = logits.gather(1, targets[:, None]).squeeze(1)
        return (logits.amax(dim=1) - chosen) * (1 - label_smoothing)

    batch = make_batch()
    result = training_loss(model, batch, 0.25, token_loss=hinge)
    logits = plain_logits(model, batch)
    chosen = logits.gather(2, batch.tokens[:, 1:, None]).squeeze(2)
    weights = batch.mask_loss[:, 1:]
    expected = 0.75 * per_example_loss(logits.amax(dim=2) - chosen, weights)
    torch.testing.assert_close(result.per_example, expected)


def test_logits_are_computed_at_supervised_positions_only(
    model: PaliGemmaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, plain = [], model.text.logits

    def record(hidden: Tensor) -> Tensor:
        shapes.append(tuple(hidden.shape))
        return plain(hidden)

    monkeypatch.setattr(model.text, "logits", record)
    training_loss(model, make_batch())
    assert shapes == [(6, 12)]


def test_no_supervised_token_gives_no_loss_and_no_gradient(model: PaliGemmaModel) -> None:
    batch = make_batch()
    result = training_loss(model, replace(batch, mask_loss=torch.zeros(3, 9)), 0.1)
    assert result.loss.item() == 0.0
    gradients = torch.autograd.grad(result.loss, list(model.parameters()), allow_unused=True)
    assert all(g is None or not g.any() for g in gradients)


def test_training_ignores_mask_input(model: PaliGemmaModel) -> None:
    batch = make_batch()
    masked = replace(batch, mask_input=torch.zeros(3, 9, dtype=torch.bool))
    assert training_loss(model, masked).loss == training_loss(model, batch).loss


def test_images_may_be_encoded_before(model: PaliGemmaModel) -> None:
    batch = make_batch()
    soft = model.encode_image(batch.images)
    before = training_loss(model, replace(batch, images=None), soft_tokens=soft)
    assert before.loss == training_loss(model, batch).loss


def test_text_alone_can_be_trained_on(model: PaliGemmaModel) -> None:
    text_only = training_loss(model, replace(make_batch(), images=None))
    assert torch.isfinite(text_only.loss)
    assert text_only.loss != training_loss(model, make_batch()).loss


def test_a_batch_without_mask_loss_is_an_error(model: PaliGemmaModel) -> None:
    with pytest.raises(DataError, match="needs mask_loss"):
        training_loss(model, replace(make_batch(), mask_loss=None))


def test_perplexity_is_in_nats_a_token_and_its_sum_in_nats(model: PaliGemmaModel) -> None:
    batch = make_batch()
    mean, total = perplexity(model, batch), perplexity(model, batch, average=False)
    torch.testing.assert_close(mean, training_loss(model, batch).per_example.detach())
    torch.testing.assert_close(total, mean * torch.tensor([4.0, 2.0, 1.0]))
    assert not mean.requires_grad


def test_perplexity_without_mask_loss_counts_every_position(model: PaliGemmaModel) -> None:
    batch = make_batch()
    everything = replace(batch, mask_loss=torch.ones(3, 9))
    torch.testing.assert_close(
        perplexity(model, replace(batch, mask_loss=None)), perplexity(model, everything)
    )
