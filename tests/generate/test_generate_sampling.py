"""Samplers draw from the distributions they are named after."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_models import FakeModel, small_vocab, text_batch
from torch import Tensor

from paligemma.errors import ConfigError
from paligemma.generate import (
    DecodeOptions,
    Greedy,
    LocationGreedy,
    Nucleus,
    Sampler,
    Temperature,
    TopK,
    generate,
)
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


def test_of_the_locations_near_the_most_probable_one_the_median_is_taken() -> None:
    logits = torch.full((3, 1100), -30.0)
    logits[0, 60:64] = torch.tensor([0.3, 0.25, 0.25, 0.2]).log()
    logits[1, 60:64] = torch.tensor([0.3, 0.15, 0.1, 0.1]).log()
    logits[1, 900] = torch.tensor(0.29).log()  # another object's edge says nothing of this one
    logits[2, 60] = 0.0
    assert LocationGreedy(50)(logits).tolist() == [61, 61, 60]


# Codewords 0, 1 and 2 are nearly the same, 3 is far away; there are four of them.
CODEBOOK = torch.tensor([[0.0, 0.1], [0.1, 0.1], [0.1, 0.0], [5.0, 5.0]])


def test_a_codeword_like_the_other_probable_ones_beats_one_that_is_alone() -> None:
    sampler = LocationGreedy(10, 1100, lambda: CODEBOOK)
    logits = torch.full((4, 1100 + 128), -30.0)
    logits[0, 1100:1104] = torch.tensor([0.24, 0.23, 0.23, 0.3]).log()
    logits[1, 1100:1104] = torch.tensor([0.1, 0.1, 0.1, 0.7]).log()
    logits[2, 1104] = 0.0  # no codeword of this codebook
    logits[3, 5] = 0.0  # no mask token
    assert Greedy()(logits).tolist() == [1103, 1103, 1104, 5]
    assert sampler(logits).tolist() == [1101, 1103, 1104, 5]
    mean = logits[0, 1100:1104].softmax(dim=0) @ CODEBOOK
    assert (CODEBOOK - mean).norm(dim=1).argmin() == 1
    # Without a codebook a mask token is a token as any other.
    assert LocationGreedy(10, 1100)(logits).tolist() == [1103, 1103, 1104, 5]


@pytest.mark.parametrize("seed", range(8))
def test_a_choice_among_allowed_tokens_is_that_of_logits_where_all_others_are_ruled_out(
    seed: int,
) -> None:
    draws = np.random.default_rng(seed)
    sampler = LocationGreedy(10, 1100, lambda: CODEBOOK)
    for low, high in ((8, 30), (1000, 1200), (1100, 1104), (1101, 1103), (1102, 1228), (0, 1228)):
        ids = (range(3), range(low, high)) if low > 3 else (range(low, high),)
        logits = torch.from_numpy(draws.normal(size=(1, 1228))).float()
        logits[:, low:high] += 2.0
        ruled = torch.full_like(logits, -torch.inf)
        allowed = [one for part in ids for one in part]
        ruled[0, allowed] = logits[0, allowed]
        chosen = sampler.among(logits[0, allowed], ids)
        assert allowed[chosen] == int(sampler(ruled))


class Waves(FakeModel):
    """Logits by a formula, so that recorded draws hold on every version of Python."""

    def logits_after(self, seen: tuple[int, ...]) -> Tensor:
        place = sum(position * token for position, token in enumerate(seen, start=1))
        logits = 2 * torch.sin(torch.arange(self.config.vocab.size) * 0.7 + place)
        logits[1] -= 4
        return logits


@pytest.mark.parametrize(
    ("sampler", "seed", "ids"),
    [
        (Temperature(1.5), 0, [9, 18, 35, 4, 8, 7, 17, 24, 34, 16, 36, 24]),
        (Temperature(1.5), 7, [16, 10, 4, 12, 25, 0, 26, 31, 13, 4, 27, 2]),
        (TopK(6, 1.2), 0, [9, 21, 15, 2, 10, 30, 4, 0, 9, 16, 6, 3]),
        (TopK(6, 1.2), 7, [10, 33, 4, 14, 9, 14, 14, 29, 13, 32, 13, 31]),
        (Nucleus(0.8, 1.3), 0, [9, 21, 13, 2, 8, 7, 17, 24, 34, 16, 6, 3]),
        (Nucleus(0.8, 1.3), 7, [10, 33, 4, 4, 19, 0, 26, 31, 13, 32, 30, 5]),
    ],
)
def test_a_single_row_draws_the_recorded_ids(sampler: Sampler, seed: int, ids: list[int]) -> None:
    if not torch.backends.mkl.is_available():
        pytest.skip("the ids were recorded with MKL's generator of exponential variates")
    options = DecodeOptions(max_new_tokens=12, sampler=sampler, seed=seed)
    assert generate(Waves(small_vocab(40)), text_batch((2, 5, 9)), options).ids[0].tolist() == ids
