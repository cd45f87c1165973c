"""Attention in blocks by the compiled kernels, beside the definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paligemma.kernels import native, native_attention

pytestmark = pytest.mark.skipif(native.library() is None, reason="the kernels are not built")
# Rows, queries, keys, heads, key heads, head dim: parts of panels, tiles and blocks, and whole.
SHAPES = (
    (1, 16, 6, 1, 1, 8),
    (2, 17, 17, 4, 4, 72),
    (1, 50, 301, 8, 1, 256),
    (3, 33, 200, 8, 4, 128),
    (1, 130, 97, 3, 3, 7),
    (1, 20, 1, 2, 1, 40),
)


def drawn(shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, queries, keys, heads, kv_heads, dim = shape
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(rows, queries, heads, dim, generator=draw) * 2
    k, v = torch.randn(2, rows, keys, kv_heads, dim, generator=draw)
    return q, k, v


def oracle(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    cap: float | None,
) -> np.ndarray:
    """One query after another, as the formula reads."""
    q, k, v = (x.double().numpy() for x in (q, k, v))
    out = np.zeros(q.shape)
    group = q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(q.shape[:3]):
        scores = k[b, :, n // group] @ q[b, t, n] * q.shape[-1] ** -0.5
        scores = scores if cap is None else np.tanh(scores / cap) * cap
        allowed = np.ones(len(scores), bool) if mask is None else mask[b, t].numpy()
        if allowed.any():
            weights = np.exp(scores - scores[allowed].max()) * allowed
            out[b, t, n] = weights / weights.sum() @ v[b, :, n // group]
    return out


@torch.inference_mode()
def attended(*args: torch.Tensor | None, cap: float | None = None) -> torch.Tensor:
    q, k, v, mask = args
    assert q is not None
    assert k is not None
    assert v is not None
    assert native_attention.serves(q, k)
    return native_attention.attend(q, k, v, mask, scale=q.shape[-1] ** -0.5, softcap=cap)


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_of_keys_mix_as_the_formula_does(
    shape: tuple[int, ...], masked: bool, cap: float | None, level: int
) -> None:
    q, k, v = drawn(shape)
    mask = None
    if masked:
        mask = torch.rand(shape[:3], generator=torch.Generator().manual_seed(1)) > 0.4
        mask[:, 3] = False  # a query without any key
        mask[:, 8:, : shape[2] // 2] = False  # whole blocks that nobody attends
    found = attended(q, k, v, mask, cap=cap).double().numpy()
    # Torch's own attention is up to 3e-6 away on these shapes, float32 sums of 256 scores each.
    assert np.abs(found - oracle(q, k, v, mask, cap)).max() < 1e-5


def test_any_strides_give_the_same_bits() -> None:
    q, k, v = drawn((2, 40, 60, 4, 2, 16))
    mask = torch.rand(2, 40, 60) > 0.2
    wide = torch.cat([k, v], dim=-1)
    strided = attended(
        q.transpose(1, 2).contiguous().transpose(1, 2),
        wide[..., :16],
        wide[..., 16:],
        mask.mT.contiguous().mT,
    )
    assert torch.equal(strided, attended(q, k, v, mask))
    assert torch.equal(attended(q, k, v, mask[:1]), attended(q, k, v, mask[:1].expand(2, -1, -1)))


def test_a_row_has_the_same_bits_alone_filled_up_and_on_any_number_of_threads() -> None:
    q, k, v = drawn((3, 70, 250, 4, 1, 32))
    mask = torch.ones(3, 70, 250, dtype=torch.bool)
    mask[1, :, 190:] = False
    together = attended(q, k, v, mask)
    assert torch.equal(attended(q[1:2], k[1:2, :190], v[1:2, :190], None), together[1:2])
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            assert torch.equal(attended(q, k, v, mask), together)
    finally:
        torch.set_num_threads(threads)


def test_large_scores_and_nan_do_what_they_do_in_the_definition() -> None:
    q, k, v = drawn((1, 20, 30, 1, 1, 8))
    q[0, 0] *= 1e6  # one key takes all
    q[0, 1, 0, 0] = float("nan")
    found = attended(q, k, v, None)
    assert np.abs(found[0, 0].numpy() - oracle(q, k, v, None, None)[0, 0]).max() < 1e-6
    assert found[0, 1].isnan().all()
    assert found[0, 2:].isfinite().all()


def test_gradients_other_dtypes_and_single_queries_go_by_torch() -> None:
    q, k, _ = drawn((1, 16, 16, 1, 1, 8))
    assert not native_attention.serves(q, k)  # gradients are on
    with torch.inference_mode():
        assert native_attention.serves(q, k)
        assert not native_attention.serves(q[:, :1], k)
        assert not native_attention.serves(q.bfloat16(), k.bfloat16())


def test_tensors_that_do_not_belong_together_are_refused() -> None:
    q, k, v = drawn((2, 20, 30, 4, 2, 16))
    mask = torch.ones(2, 20, 30, dtype=torch.bool)
    for wrong in (
        (q.double(), k, v, None),
        (q, k, v.bfloat16(), None),
        (q, k, v[:, :10], None),
        (q, k[:1], v[:1], None),
        (q[:, :, :3], k, v, None),
        (q[..., :8], k, v, None),
        (q, k, v, mask.long()),
    ):
        with pytest.raises(ValueError, match="attention takes float32"):
            native_attention.attend(*wrong, scale=1.0, softcap=None)
