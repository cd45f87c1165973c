"""The order of a mixture: by weights, in whole passes, from seed and place alone."""

from __future__ import annotations

from collections import Counter

import pytest

from paligemma.train.mixture import MixedOrder

KEY = (3, 0)


def test_sources_are_drawn_by_their_weights_whatever_their_sizes() -> None:
    order = MixedOrder([5, 1000], [3.0, 1.0], KEY)
    drawn = Counter(order.at(place)[0] for place in range(20_000))
    assert drawn[0] / 20_000 == pytest.approx(0.75, abs=0.015)


def test_no_row_repeats_before_its_source_is_through() -> None:
    order = MixedOrder([7, 11], [1.0, 2.0], KEY)
    rows: dict[int, list[int]] = {0: [], 1: []}
    for place in range(400):
        source, row = order.at(place)
        rows[source].append(row)
    for source, size in ((0, 7), (1, 11)):
        passes = [rows[source][k : k + size] for k in range(0, len(rows[source]) - size, size)]
        assert len(passes) > 5
        assert all(sorted(one) == list(range(size)) for one in passes)
        assert len({tuple(one) for one in passes}) > 1


def test_a_place_far_away_holds_what_it_holds_when_all_before_are_walked() -> None:
    places = [0, 65_535, 65_536, 140_003, 7]
    walked = MixedOrder([50, 70], [1.0, 1.0], KEY)
    every = {place: walked.at(place) for place in range(140_004)}
    for place in places:
        assert MixedOrder([50, 70], [1.0, 1.0], KEY).at(place) == every[place]


def test_another_seed_draws_another_order() -> None:
    first, second = (MixedOrder([50, 70], [1.0, 1.0], (seed, 0)) for seed in (1, 2))
    assert [first.at(k) for k in range(40)] != [second.at(k) for k in range(40)]
