"""Loss of training and perplexity of evaluation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from torch import Tensor

from paligemma.batch import Batch
from paligemma.config import PaliGemmaConfig, TextConfig, VisionConfig
from paligemma.errors import ConfigError, DataError
from paligemma.model.paligemma import PaliGemmaModel, init_weights
from paligemma.train.loss import (
    batch_loss,
    location_correction,
    per_example_loss,
    perplexity,
    token_losses,
    training_loss,
)
from paligemma.vocab import NUM_LOC, Vocab

LOC0 = 40
VOCAB = Vocab(size=1200, pad=0, eos=1, bos=2, sep=3, loc0=LOC0, seg0=LOC0 + NUM_LOC)
CONFIG = PaliGemmaConfig(
    vision=VisionConfig(
        image_size_px=8, patch_size_px=4, width=8, depth=1, mlp_dim=12, num_heads=2
    ),
    text=TextConfig(
        width=12,
        depth=1,
        mlp_dim=16,
        num_heads=2,
        num_kv_heads=1,
        head_dim=6,
        query_scale=6**-0.5,
        attn_softcap=None,
        final_softcap=30.0,
        post_norms=True,
        sliding_window=None,
        norm_eps=1e-6,
        rope_theta=10_000.0,
    ),
    vocab=VOCAB,
)


@pytest.fixture(scope="module")
def model() -> PaliGemmaModel:
    model = PaliGemmaModel(CONFIG)
    init_weights(model, seed=1)
    with torch.no_grad():
        model.text.embed.weight.mul_(4.0)  # Logits of several units: a loss far from log V.
        model.projector.weight.normal_(generator=torch.Generator().manual_seed(2))
    return model


def make_batch() -> Batch:
    """Three examples of 8 + 1 tokens: some supervised, two location targets, one without target."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, LOC0, (3, 9), generator=draw)
    tokens[0, 6:8] = torch.tensor([LOC0 + 3, LOC0 + 1000])
    supervised = torch.zeros(3, 9)
    supervised[0, 5:9] = 1.0
    supervised[1, 3:5] = 1.0
    return Batch(
        images=torch.rand(3, 8, 8, 3, generator=draw) * 2 - 1,
        tokens=tokens,
        mask_ar=supervised.long(),
        mask_input=torch.ones(3, 9, dtype=torch.bool),
        mask_loss=supervised,
    )


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


def test_losses_are_float32_whatever_the_logits_are() -> None:
    logits = torch.zeros(2, 3, 8, dtype=torch.bfloat16)
    losses = token_losses(logits, torch.zeros(2, 3, dtype=torch.int64))
    assert losses.dtype == torch.float32
    assert losses == pytest.approx(np.full((2, 3), np.log(8)), abs=1e-6)


@pytest.mark.parametrize("eps", [-0.1, 0.76])
def test_smoothing_out_of_range_is_an_error(eps: float) -> None:
    with pytest.raises(ConfigError, match=r"\[0, 1 - 1/4\]"):
        token_losses(torch.zeros(1, 4), torch.tensor([0]), eps)


def test_an_example_is_averaged_over_its_tokens_and_the_batch_over_its_examples() -> None:
    losses = torch.tensor([[4.0, 2.0, 9.0], [5.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    weights = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    per_example = per_example_loss(losses, weights)
    assert per_example.tolist() == [3.0, 5.0, 0.0]
    assert batch_loss(per_example).item() == pytest.approx(8 / 3)  # Over tokens it would be 11/3.


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
    parameters = list(model.parameters())
    fast = torch.autograd.grad(gathered.loss, parameters)
    slow = torch.autograd.grad(plain.mean(), parameters)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("eps", [0.0, 0.2])
@pytest.mark.parametrize("sigma", [0.0, 0.4, 3.0])
def test_the_loss_is_the_slow_definition(model: PaliGemmaModel, eps: float, sigma: float) -> None:
    batch = make_batch()
    result = training_loss(model, batch, eps, loc_sigma_bins=sigma)

    def distribution(target: int) -> np.ndarray:
        if sigma and LOC0 <= target < LOC0 + NUM_LOC:
            return reference.smoothed_location_target(
                target, VOCAB.size, eps, loc0=LOC0, num_loc=NUM_LOC, sigma_bins=sigma
            )
        return reference.smoothed_target(target, VOCAB.size, eps)

    loss, per_example = reference.batch_loss(
        plain_logits(model, batch).detach().numpy(),
        batch.tokens[:, 1:].numpy(),
        batch.mask_loss[:, 1:].numpy(),
        distribution,
    )
    assert result.loss.item() == pytest.approx(loss, rel=1e-5)
    assert result.per_example.tolist() == pytest.approx(per_example.tolist(), rel=1e-5)


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


def soft_weights(target_bin: int, sigma: float) -> np.ndarray:
    """The location part of the target distribution, read off the gradient of the correction."""
    logits = torch.zeros(1, VOCAB.size, requires_grad=True)
    correction = location_correction(logits, torch.tensor([LOC0 + target_bin]), LOC0, sigma)
    (gradient,) = torch.autograd.grad(correction.sum(), logits)
    weights = -gradient[0].numpy()
    weights[LOC0 + target_bin] += 1.0  # The certain target that the correction takes away.
    return weights


def test_a_location_target_spreads_as_a_normalised_gaussian() -> None:
    weights = soft_weights(500, 2.0)
    assert weights.sum() == pytest.approx(1.0, abs=1e-5)
    at = LOC0 + 500
    assert weights[at + 2] / weights[at] == pytest.approx(np.exp(-0.5), rel=1e-4)
    assert weights[at - 2] == pytest.approx(weights[at + 2])
    # Cut at 4 sigma = 8 bins.
    assert weights[at + 8] > 0
    assert np.flatnonzero(np.abs(weights) > 1e-9).tolist() == list(range(at - 8, at + 9))


@pytest.mark.parametrize(("target_bin", "reached"), [(1, (0, 5)), (1023, (1019, 1023))])
def test_the_gaussian_stays_within_the_location_tokens(
    target_bin: int, reached: tuple[int, int]
) -> None:
    weights = soft_weights(target_bin, 1.0)
    assert weights.sum() == pytest.approx(1.0, abs=1e-5)
    nonzero = np.flatnonzero(np.abs(weights) > 1e-9) - LOC0
    assert (nonzero.min(), nonzero.max()) == reached


def test_targets_that_are_no_locations_are_not_corrected() -> None:
    logits = torch.randn(4, VOCAB.size, generator=torch.Generator().manual_seed(3))
    targets = torch.tensor([LOC0 - 1, LOC0, LOC0 + NUM_LOC - 1, LOC0 + NUM_LOC])
    correction = location_correction(logits, targets, LOC0, 2.0)
    assert (correction != 0).tolist() == [False, True, True, False]


@pytest.mark.parametrize("change", [{"loc_sigma_bins": -1.0}, {"vocab": replace(VOCAB, loc0=-1)}])
def test_spreading_needs_location_tokens_and_a_positive_width(
    model: PaliGemmaModel, monkeypatch: pytest.MonkeyPatch, change: dict
) -> None:
    monkeypatch.setattr(model, "config", replace(CONFIG, vocab=change.get("vocab", CONFIG.vocab)))
    with pytest.raises(ConfigError, match="set it to 0"):
        training_loss(model, make_batch(), loc_sigma_bins=change.get("loc_sigma_bins", 1.0))


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
