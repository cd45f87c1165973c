"""Masks, rotary positions, soft-cap, and every route through `attend` against its definition."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import attention, rotate
from reference import prefix_lm_mask as slow_mask
from torch import Tensor

from paligemma.config import GEMMA2_9B, GEMMA2_27B
from paligemma.model.attention import (
    apply_rope,
    attend,
    attend_reference,
    prefix_lm_mask,
    rope_tables,
    sliding_window_mask,
    soft_cap,
)

# Four query heads over one, two or four key heads.
heads = pytest.mark.parametrize("num_kv", [1, 2, 4])
caps = pytest.mark.parametrize("softcap", [None, 5.0], ids=["no cap", "cap 5"])


def draw(num_queries: int, num_keys: int, num_kv: int, seed: int = 0) -> tuple[Tensor, ...]:
    """q [2, T, 4, 8], k and v [2, S, num_kv, 8]; scores reach about 25."""
    generator = torch.Generator().manual_seed(seed)
    q = 3 * torch.randn(2, num_queries, 4, 8, generator=generator)
    k = torch.randn(2, num_keys, num_kv, 8, generator=generator)
    v = torch.randn(2, num_keys, num_kv, 8, generator=generator)
    return q, k, v


# Two rows: prefixes of 4 and 2 tokens, then answers; the second row ends with two of padding.
MASK_AR = torch.tensor([[0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]])
MASK_INPUT = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]]).bool()
MASKS = {
    "everything": None,
    "prefix": prefix_lm_mask(MASK_AR),
    "prefix and padding": prefix_lm_mask(MASK_AR, MASK_INPUT),
    # A cache of seven slots read by one new token a row; padding slots stay invalid for ever.
    "cache": MASK_INPUT[:, None, :],
    "window": prefix_lm_mask(MASK_AR) & sliding_window_mask(*[torch.arange(7).expand(2, 7)] * 2, 3),
}


@heads
@caps
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_attention_equals_its_definition_head_by_head(
    num_kv: int, softcap: float | None, mask: Tensor | None
) -> None:
    num_queries = 7 if mask is None else mask.shape[1]
    q, k, v = draw(num_queries, 7, num_kv)
    fast = attend(q, k, v, mask, scale=0.5, softcap=softcap)
    slow = attend_reference(q, k, v, mask, scale=0.5, softcap=softcap)
    assert fast.shape == slow.shape == (2, num_queries, 4, 8)
    allowed = np.ones((2, num_queries, 7), bool) if mask is None else mask.numpy()
    for row in range(2):
        for head in range(4):
            # Query head n reads key head n // G.
            shared = head // (4 // num_kv)
            oracle = attention(
                q[row, :, head].double().numpy(),
                k[row, :, shared].double().numpy(),
                v[row, :, shared].double().numpy(),
                allowed[row],
                scale=0.5,
                softcap=softcap,
            )
            # Rows that may attend nothing are uniform in the definition; nothing reads them.
            real = allowed[row].any(axis=1)
            assert np.abs(slow[row, :, head].numpy() - oracle).max() <= 1e-5
            assert np.abs(fast[row, :, head].numpy() - oracle)[real].max() <= 1e-5
    assert fast.isfinite().all()


@caps
def test_attention_in_bfloat16_equals_its_definition_in_bfloat16(softcap: float | None) -> None:
    q, k, v = (part.bfloat16() for part in draw(7, 7, 2))
    fast = attend(q, k, v, MASKS["prefix"], scale=0.5, softcap=softcap)
    slow = attend_reference(q, k, v, MASKS["prefix"], scale=0.5, softcap=softcap)
    assert fast.dtype == slow.dtype == torch.bfloat16
    # Values reach 2; bfloat16 keeps eight bits of them.
    assert (fast.float() - slow.float()).abs().max().item() <= 2 * 2**-7


@caps
def test_gradients_of_the_fast_route_are_those_of_the_definition(softcap: float | None) -> None:
    def gradients(route) -> tuple[Tensor, ...]:
        parts = tuple(part.requires_grad_() for part in draw(7, 7, 2))
        out = route(*parts, MASKS["prefix and padding"], scale=0.5, softcap=softcap)
        weights = torch.linspace(-1, 1, 7 * 4 * 8).view(7, 4, 8)
        # Only what valid tokens read can matter.
        loss = (out * weights)[MASK_INPUT].sum()
        return torch.autograd.grad(loss, parts)

    for fast, slow in zip(gradients(attend), gradients(attend_reference), strict=True):
        assert slow.abs().max() > 0.1
        assert (fast - slow).abs().max().item() <= 1e-5


@pytest.mark.parametrize("route", [attend, attend_reference])
def test_the_cap_comes_before_the_mask(route) -> None:
    # The one allowed key scores -1000: capped to -50. Were the forbidden key capped too, it would
    # stand at -50 as well and take half the weight.
    q = torch.full((1, 1, 1, 2), 500.0)
    k = torch.tensor([[-1.0, -1.0], [1.0, 1.0]]).view(1, 2, 1, 2)
    v = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2)
    mask = torch.tensor([[[True, False]]])
    mixed = route(q, k, v, mask, scale=1.0, softcap=50.0)
    assert mixed.flatten().tolist() == [1.0, 0.0]


def test_a_cap_of_fifty_is_nearly_straight_below_ten_and_never_passed() -> None:
    scores = torch.tensor([0.0, 1.0, 10.0, 50.0, 1e4, -1e4])
    expected = [0.0, 0.9998667, 9.8687693, 50 * math.tanh(1.0), 50.0, -50.0]
    assert soft_cap(scores, 50.0).tolist() == pytest.approx(expected, rel=1e-6)


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


def test_autocast_does_not_narrow_scores_under_a_soft_cap() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (3 * torch.randn(1, 5, 2, 16, generator=generator) for _ in range(3))
    expected = attend(q, k, v, None, scale=1.0, softcap=20.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attend(q, k, v, None, scale=1.0, softcap=20.0)
        narrowed = attend_reference(q, k, v, None, scale=1.0, softcap=20.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    # The test would notice: the definition, left to autocast, differs visibly.
    assert (narrowed - expected).abs().max() > 1e-2
