"""Samplers draw from the distributions they are named after."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paligemma.errors import ConfigError
from paligemma.generate import Greedy, LocationGreedy, Nucleus, Sampler, Temperature, TopK
from paligemma.generate.sampling import nucleus_keep

PROBABILITIES = torch.tensor([0.5, 0.3, 0.15, 0.05])


def frequencies(sampler: Sampler, num_draws: int = 20_000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = sampler(PROBABILITIES.log().expand(num_draws, -1), generator)
    return torch.bincount(drawn, minlength=4) / num_draws


def test_greedy_takes_the_most_probable_token() -> None:
    logits = torch.tensor([[0.1, 3.0, 2.9], [5.0, -1.0, 4.9]])
    assert Greedy()(logits).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (Temperature(1.0), [0.5, 0.3, 0.15, 0.05]),
        # Squares of the probabilities, renormalised by their sum 0.365.
        (Temperature(0.5), [0.685, 0.247, 0.062, 0.007]),
        (TopK(2), [0.625, 0.375, 0.0, 0.0]),
        (TopK(9), [0.5, 0.3, 0.15, 0.05]),
        # 0.5 + 0.3 crosses 0.6, so both stay; at 0.9 the third is needed too.
        (Nucleus(0.6), [0.625, 0.375, 0.0, 0.0]),
        (Nucleus(0.9), [0.526, 0.316, 0.158, 0.0]),
        (Nucleus(1.0), [0.5, 0.3, 0.15, 0.05]),
    ],
)
def test_a_sampler_draws_with_the_frequencies_of_its_distribution(
    sampler: Sampler, expected: list[float]
) -> None:
    drawn = frequencies(sampler)
    # Four standard deviations of 20,000 draws are 0.014.
    assert (drawn - torch.tensor(expected)).abs().max().item() <= 0.015
    assert all(drawn[token] == 0 for token in range(4) if expected[token] == 0.0)


def test_tokens_at_minus_infinity_are_never_drawn() -> None:
    logits = torch.zeros(5_000, 4)
    logits[:, 2] = -torch.inf
    generator = torch.Generator().manual_seed(0)
    for sampler in (Temperature(100.0), TopK(4), Nucleus(1.0)):
        assert 2 not in sampler(logits, generator).tolist()


def test_a_temperature_near_zero_takes_the_most_probable_token_among_those_kept() -> None:
    logits = torch.tensor([[-40.0, -35.0, -30.0, -60.0]])
    for sampler in (Temperature(1e-6), TopK(2, 1e-6), Nucleus(0.9, 1e-6)):
        assert sampler(logits, torch.Generator().manual_seed(0)).tolist() == [2]


def test_the_nucleus_keeps_the_token_that_crosses_and_its_ties() -> None:
    logits = torch.tensor([0.4, 0.2, 0.2, 0.2]).log()[None]
    assert nucleus_keep(logits, 0.5).tolist() == [[True, True, True, True]]
    assert nucleus_keep(logits, 0.4).tolist() == [[True, False, False, False]]


def test_the_same_seed_draws_the_same_tokens() -> None:
    logits = torch.randn(64, 50, generator=torch.Generator().manual_seed(1))
    first = Temperature()(logits, torch.Generator().manual_seed(7))
    again = Temperature()(logits, torch.Generator().manual_seed(7))
    other = Temperature()(logits, torch.Generator().manual_seed(8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Temperature(0.0), r"temperature must lie in \[1e-06, 100\], got 0.0; greedy"),
        (lambda: Temperature(float("nan")), "got nan"),
        (lambda: Temperature(1e-39), "got 1e-39"),
        (lambda: TopK(0), "keep at least 1 token, got 0"),
        (lambda: TopK(5, -1.0), "got -1.0"),
        (lambda: Nucleus(0.0), r"\(0, 1\], got 0.0"),
        (lambda: Nucleus(1.1), r"\(0, 1\], got 1.1"),
    ],
)
def test_a_sampler_out_of_bounds_says_rule_and_value(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


def test_locations_weighed_together_beat_a_token_more_probable_than_each_of_them() -> None:
    logits = torch.full((3, 1100), -30.0)
    logits[:, 1] = 0.0  # the end
    logits[0, 50 : 50 + 1024] = -3.0  # each 0.05 of the end, together fifty times as much
    logits[0, 300] = -2.9
    logits[1, 50] = -3.0  # a single location of that probability
    logits[2, 50:60] = 0.1
    logits[2, 55] = 0.2
    assert Greedy()(logits).tolist() == [1, 1, 55]
    assert LocationGreedy(50)(logits).tolist() == [300, 1, 55]
