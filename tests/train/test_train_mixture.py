"""The order of a mixture: by weights, in whole passes, from seed and place alone."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from paligemma.train import mixture
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


def test_passes_go_on_over_blocks_and_groups_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture, "_BLOCK", 4)
    monkeypatch.setattr(mixture, "_GROUP", 3)
    order = MixedOrder([7, 11], [1.0, 2.0], KEY)
    walked = [order.at(place) for place in range(600)]
    for source, size in ((0, 7), (1, 11)):
        rows = [row for found, row in walked if found == source]
        for k in range(0, len(rows) - size, size):
            assert sorted(rows[k : k + size]) == list(range(size))
    for place in (599, 0, 301, 12, 11):
        assert MixedOrder([7, 11], [1.0, 2.0], KEY).at(place) == walked[place]
    # A source is drawn independently of the one before it.
    sources = np.array([found for found, _ in walked])
    assert sources.mean() == pytest.approx(2 / 3, abs=0.06)
    assert sources[1:][sources[:-1] == 0].mean() == pytest.approx(2 / 3, abs=0.1)


def test_a_place_behind_a_thousand_million_others_is_found_at_once() -> None:
    order = MixedOrder([5000, 700, 90], [5.0, 2.0, 1.0], KEY)
    started = time.process_time()
    source, row = order.at(1_000_000_007)
    assert time.process_time() - started < 1
    assert 0 <= row < (5000, 700, 90)[source]
    following = Counter(order.at(1_000_000_007 + k)[0] for k in range(20_000))
    assert following[0] / 20_000 == pytest.approx(5 / 8, abs=0.015)


def test_another_seed_draws_another_order() -> None:
    first, second = (MixedOrder([50, 70], [1.0, 1.0], (seed, 0)) for seed in (1, 2))
    assert [first.at(k) for k in range(40)] != [second.at(k) for k in range(40)]
