"""The means of these tests: derivatives of the tape, and bounds that notice what they should."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import tape
from golden_set import GoldenModel, assert_within_rounding, compare_choices


def test_the_tape_gives_the_derivative_of_differences(gold: GoldenModel) -> None:
    arrays, weights = gold.arrays("loss"), gold.weights()
    text, mask_ar, mask_loss = (arrays[key][0] for key in ("text", "mask_ar", "mask_loss"))

    def loss(moved: dict) -> object:
        oracle = gold.oracle(moved)
        logits = oracle.text_logits(
            oracle.soft_tokens(arrays["image"][0]), text[0, :-1], mask_ar[0, :-1]
        )
        num_classes = logits.shape[1]
        return reference.example_loss(
            logits,
            text[0, 1:],
            mask_loss[0, 1:],
            lambda target: reference.smoothed_target(target, num_classes, 0.1),
        )

    traced = {name: tape.Traced(array) for name, array in weights.items()}
    gradients = tape.gradients(loss(traced), traced)
    random = np.random.default_rng(0)
    for name, array in weights.items():
        direction = random.normal(size=array.shape)
        step = 1e-6 * direction
        ahead, behind = (loss(weights | {name: array + sign * step}) for sign in (1, -1))
        slope = (gradients[name] * direction).sum()
        scale = np.sqrt((gradients[name] ** 2).sum()) + 1e-3
        assert (ahead - behind) / 2e-6 == pytest.approx(slope, abs=1e-4 * scale), name


def test_more_than_three_times_the_spread_of_the_original_is_noticed() -> None:
    exact = np.linspace(1.0, 2.0, 101)
    noise = 1e-6 * np.sin(np.arange(101))
    assert_within_rounding(exact - noise, exact + noise, exact)
    with pytest.raises(AssertionError, match=r"2.40e-06 > 2.12e-06"):
        assert_within_rounding(exact - 2.4 * noise, exact + noise, exact)


def test_one_element_may_be_five_times_as_far_as_the_worst_of_the_original() -> None:
    exact = np.linspace(1.0, 2.0, 101)
    noise = 1e-6 * np.sin(np.arange(101))
    worst = np.zeros(101)
    worst[50] = np.abs(noise).max()
    assert_within_rounding(exact + noise + 4.9 * worst, exact + noise, exact)
    with pytest.raises(AssertionError, match=r"5.10e-06 > 5.00e-06"):
        assert_within_rounding(exact + noise + 5.1 * worst, exact + noise, exact)


def test_a_definition_that_is_not_the_original_s_is_noticed_whatever_ours_is() -> None:
    exact = np.linspace(1.0, 2.0, 101)
    with pytest.raises(AssertionError, match="not the original's"):
        assert_within_rounding(exact * 1.01, exact * 1.01, exact)


def test_a_sum_that_cancels_may_be_off_by_a_unit_of_what_was_added_and_no_more() -> None:
    exact, added = np.full(9, -1e-12), np.ones(9)
    original = np.zeros(9)
    assert_within_rounding(exact - 2.0**-24, original, exact, summed=added)
    with pytest.raises(AssertionError, match=r"1.79e-07 > 1.19e-07"):
        assert_within_rounding(exact - 1.5 * 2.0**-23, original, exact, summed=added)
    with pytest.raises(AssertionError, match="not the original's"):
        assert_within_rounding(exact, original, exact)


def test_only_a_near_tie_may_fall_either_way_and_is_reported() -> None:
    original, margins = np.array([[3, 4, 5], [6, 7, 8]]), np.array([[9, 1e-7, 9], [9, 9, 9]])
    compare_choices(original, original, margins, 1e-6).report()
    ours = np.array([[3, 9, 9], [6, 7, 8]])
    ties = compare_choices(ours, original, margins, 1e-6, in_order=True)
    assert ties.rows == [0]
    with pytest.raises(pytest.xfail.Exception, match=r"\(0, 1\): 1e-07"):
        ties.report()
    with pytest.raises(AssertionError, match=r"\(0, 2\): 9"):
        compare_choices(ours, original, margins, 1e-6)
