"""Masks and rotary positions against their definitions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import prefix_lm_mask as slow_mask
from reference import rotate

from paligemma.config import GEMMA2_9B, GEMMA2_27B
from paligemma.model.attention import (
    apply_rope,
    prefix_lm_mask,
    rope_tables,
    sliding_window_mask,
)


def test_the_27b_scales_queries_by_its_width_per_head() -> None:
    assert GEMMA2_27B.query_scale == pytest.approx(1 / 12)
    assert GEMMA2_27B.query_scale != pytest.approx(GEMMA2_27B.head_dim**-0.5)
    assert GEMMA2_9B.query_scale == pytest.approx(1 / 16)
    assert replace(GEMMA2_9B, head_dim=224).query_scale == pytest.approx(1 / 16)


def test_prefix_tokens_see_each_other_and_the_answer_is_causal() -> None:
    mask = prefix_lm_mask(torch.tensor([[0, 0, 0, 1, 1, 1]]))[0].int().tolist()
    assert mask == [
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1],
    ]


@pytest.mark.parametrize("seed", range(5))
def test_any_masks_give_what_the_definition_gives(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask_ar = rng.integers(0, 2, (3, 11))
    mask_input = rng.random((3, 11)) < 0.8
    fast = prefix_lm_mask(torch.from_numpy(mask_ar), torch.from_numpy(mask_input)).numpy()
    slow = [slow_mask(ar, valid) for ar, valid in zip(mask_ar, mask_input, strict=True)]
    assert np.array_equal(fast, slow)


def test_padding_that_opens_steps_of_its_own_is_seen_by_no_real_token() -> None:
    mask = prefix_lm_mask(torch.tensor([[0, 0, 1, 1, 1, 1]]))[0]
    assert not mask[:4, 4:].any()
    # It sees everything before it, so that no row is empty.
    assert mask[4:, :4].all()


def test_a_window_of_three_holds_the_token_and_two_before_it() -> None:
    positions = torch.arange(5)[None]
    window = sliding_window_mask(positions, positions, 3)[0].int().tolist()
    assert window == [
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
        [0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1],
    ]
    # Later keys are left to the causal mask, as the window is always taken together with it.


def test_rotary_positions_turn_element_i_against_element_i_plus_half() -> None:
    x = torch.randn(2, 5, 3, 8, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 1, 2, 3, 900], [4, 4, 7, 100, 5000]])
    turned = apply_rope(x, *rope_tables(positions, 8, 10_000.0))
    for row in range(2):
        for head in range(3):
            slow = rotate(x[row, :, head].double().numpy(), positions[row].numpy(), 10_000.0)
            # An angle of 5,000 in float32 is known to about 5e-4.
            tolerance = 1e-6 * max(1, int(positions[row].max()))
            assert np.abs(turned[row, :, head].numpy() - slow).max() <= tolerance
    assert torch.equal(turned[0, 0], x[0, 0])


def test_scores_depend_on_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 16, generator=generator) for _ in range(2))

    def score(query_at: int, key_at: int) -> float:
        turned = [
            apply_rope(part, *rope_tables(torch.tensor([[at]]), 16, 10_000.0))
            for part, at in ((q, query_at), (k, key_at))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)
