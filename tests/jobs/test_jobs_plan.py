"""Sampling and batching: fixed by the examples alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.errors import ConfigError, DataError
from paligemma.example import Example
from paligemma.jobs.plan import open_batches, plan_batches, sample_examples


@dataclass(frozen=True)
class _Grey:
    level: int

    def read(self, max_pixels: int) -> np.ndarray:
        return np.full((2, 2, 3), self.level, np.uint8)


def _examples(lengths: list[int], pictures: list[tuple[int, ...]] | None = None) -> list[Example]:
    shown = pictures or [(k,) for k in range(len(lengths))]
    return [
        Example(
            id=str(k), prefix="x" * length, pictures=tuple(map(_Grey, shown[k])), references=None
        )
        for k, length in enumerate(lengths)
    ]


def test_a_sample_is_drawn_evenly_in_the_readers_order_and_again_the_same() -> None:
    examples = _examples([1] * 20)
    times: Counter[str] = Counter()
    for seed in range(400):
        ids = [one.id for one in sample_examples(iter(examples), 5, seed)]
        assert ids == [one.id for one in sample_examples(examples, 5, seed)]
        assert ids == sorted(ids, key=int)
        assert len(set(ids)) == 5
        times.update(ids)
    # 400 draws of 5 in 20: 100 expected of each, deviation 8.7.
    assert len(times) == 20
    assert 65 < min(times.values()) <= max(times.values()) < 135


def test_examples_of_one_unit_are_drawn_together() -> None:
    # Pairs (0, 10), (1, 11), ... apart from one another, as pictures of several languages are.
    pairs = [replace(one, unit=f"pair {int(one.id) % 10}") for one in _examples([1] * 20)]
    for seed in range(20):
        drawn = [int(one.id) for one in sample_examples(pairs, 6, seed)]
        assert len(drawn) == 6
        assert {number % 10 for number in drawn[:3]} == {number % 10 for number in drawn[3:]}
    assert len(sample_examples(pairs, 5, 0)) == 5


def test_without_a_limit_or_with_a_large_one_all_are_asked() -> None:
    examples = _examples([3, 1, 2])
    assert sample_examples(examples) == sample_examples(examples, 9) == examples


def test_double_ids_and_empty_splits_are_refused() -> None:
    with pytest.raises(DataError, match="'0' occurs twice"):
        sample_examples([*_examples([1, 1]), *_examples([1])], 1)
    with pytest.raises(DataError, match="at least one example"):
        sample_examples([])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.integers(1, 7))
def test_a_plan_holds_every_example_once_in_full_batches(lengths: list[int], size: int) -> None:
    plan = plan_batches(_examples(lengths), size)
    assert sorted(position for batch in plan for position in batch) == list(range(len(lengths)))
    assert [len(batch) for batch in plan[:-1]] == [size] * (len(plan) - 1)
    assert plan == plan_batches(_examples(lengths), size)
    flat = [lengths[position] for batch in plan for position in batch]
    assert flat == sorted(flat, reverse=True)


def test_prompts_about_one_picture_stay_together() -> None:
    examples = _examples([5, 9, 2, 8, 1, 7], [(1,), (2,), (1,), (3,), (2,), (1,)])
    assert plan_batches(examples, 2) == [(1, 4), (3, 0), (2, 5)]


def test_one_picture_and_two_never_share_a_batch() -> None:
    examples = _examples([1, 1, 1, 1], [(1,), (1, 2), (3,), (3, 4)])
    assert plan_batches(examples, 4) == [(0, 2), (1, 3)]


def test_a_batch_is_open_until_all_its_examples_are_answered() -> None:
    examples = _examples([1] * 6)
    plan = plan_batches(examples, 2)
    assert open_batches(plan, examples, {"0", "1", "2", "5"}) == [1, 2]


def test_a_batch_holds_at_least_one_example() -> None:
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        plan_batches(_examples([1]), 0)


def test_an_id_that_is_no_unicode_is_refused() -> None:
    odd = Example(id="q\ud800", prefix="x", pictures=(), references=0)
    with pytest.raises(DataError, match=r"ids must be Unicode .* got 'q\\ud800'; mend its file"):
        sample_examples([odd])
