"""Soft-cap, and every route through `attend` against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference import attention
from torch import Tensor

from paligemma.kernels.attention import attend, attend_reference, soft_cap
from paligemma.model.attention import prefix_lm_mask, sliding_window_mask

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


@heads
@pytest.mark.parametrize("name", ["everything", "prefix and padding"])
def test_capped_scores_are_held_a_few_queries_at_a_time(
    num_kv: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [part.requires_grad_() for part in draw(7, 7, num_kv)]

    def mixed() -> tuple[Tensor, ...]:
        out = attend(*parts, MASKS[name], scale=0.5, softcap=5.0)
        return out, *torch.autograd.grad(out.square().sum(), parts)

    whole = mixed()
    for at_once in (1, 3 * 2 * 4 * 7):
        monkeypatch.setattr("paligemma.kernels.attention.SCORES_AT_ONCE", at_once)
        for found, expected in zip(mixed(), whole, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@caps
@pytest.mark.parametrize("num_queries", [1, 7])
def test_attention_in_bfloat16_is_within_its_roundings_of_float32(
    num_queries: int, softcap: float | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, num_queries, 4, 8, generator=generator).bfloat16()
    k, v = (torch.randn(2, 7, 2, 8, generator=generator).bfloat16() for _ in range(2))
    mask = torch.ones(2, num_queries, 7, dtype=torch.bool)
    mask[:, :, 5:] = False
    exact = attend_reference(q.float(), k.float(), v.float(), mask, scale=0.5, softcap=softcap)
    actual = attend(q, k, v, mask, scale=0.5, softcap=softcap)
    assert actual.dtype == torch.bfloat16
    # Rounding to bfloat16 moves a number by at most 2^-9 of it. Fused kernels round the weights
    # too.
    assert (actual.float() - exact).abs().max().item() <= 4 * 2**-9 * v.abs().max().item()


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
