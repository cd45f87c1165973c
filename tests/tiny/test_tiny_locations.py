"""Location targets that spread over neighbouring bins."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch

from paligemma.tiny.locations import spread_losses
from paligemma.train.loss import token_losses
from paligemma.vocab import NUM_LOC

LOC0, VOCAB_SIZE = 40, 1200


@pytest.mark.parametrize("eps", [0.0, 0.2])
@pytest.mark.parametrize("sigma", [0.4, 3.0])
def test_the_loss_is_the_slow_definition(eps: float, sigma: float) -> None:
    logits = 3 * torch.randn(5, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([7, LOC0, LOC0 + 3, LOC0 + 1000, LOC0 + NUM_LOC])
    losses = spread_losses(logits, targets, eps, loc0=LOC0, sigma_bins=sigma)
    expected = []
    for row, target in zip(reference.log_softmax(logits.numpy()), targets.tolist(), strict=True):
        if LOC0 <= target < LOC0 + NUM_LOC:
            distribution = reference.smoothed_location_target(
                target, VOCAB_SIZE, eps, loc0=LOC0, num_loc=NUM_LOC, sigma_bins=sigma
            )
        else:
            distribution = reference.smoothed_target(target, VOCAB_SIZE, eps)
        expected.append(-(distribution * row).sum())
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)


def soft_weights(target_bin: int, sigma: float) -> np.ndarray:
    """The target distribution, read off the gradient: probabilities minus the target."""
    logits = torch.zeros(1, VOCAB_SIZE, requires_grad=True)
    targets = torch.tensor([LOC0 + target_bin])
    losses = spread_losses(logits, targets, loc0=LOC0, sigma_bins=sigma)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    return 1 / VOCAB_SIZE - gradient[0].numpy()


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


def test_targets_that_are_no_locations_keep_their_loss() -> None:
    logits = torch.randn(4, VOCAB_SIZE, generator=torch.Generator().manual_seed(3))
    targets = torch.tensor([LOC0 - 1, LOC0, LOC0 + NUM_LOC - 1, LOC0 + NUM_LOC])
    spread = spread_losses(logits, targets, loc0=LOC0, sigma_bins=2.0)
    assert (spread != token_losses(logits, targets)).tolist() == [False, True, True, False]


def test_a_mask_target_becomes_its_row_of_similarity() -> None:
    seg0, num = LOC0 + NUM_LOC, 128
    similarity = torch.rand(num, num, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    logits = torch.zeros(3, VOCAB_SIZE, requires_grad=True)
    targets = torch.tensor([seg0, seg0 + 7, 3])
    losses = spread_losses(
        logits, targets, loc0=LOC0, sigma_bins=2.0, seg0=seg0, similarity=similarity
    )
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    weights = 1 / VOCAB_SIZE - gradient
    for row, code in ((0, 0), (1, 7)):
        assert weights[row, seg0 : seg0 + num].tolist() == pytest.approx(
            similarity[code].tolist(), abs=1e-6
        )
        assert weights[row, :seg0].abs().max() < 1e-6
    assert weights[2, 3].item() == pytest.approx(1.0, abs=1e-5)
