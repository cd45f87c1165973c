"""The key/value cache: its room, its rows, and that it changes no logit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_model_oracle import SMALL, VOCAB, loud_model
from torch import Tensor

from paligemma.model import KVCache, PaliGemmaModel
from paligemma.model.kv_cache import quantise, stored_bytes, widen
from paligemma.tiny.start import tiny_config

# Prompts of six and three tokens, padded on the right.
PROMPT = torch.tensor([[2, 40, 41, 42, 43, 4], [2, 50, 4, 0, 0, 0]])
VALID = PROMPT != 0
MASK_AR = (~VALID).long()
ANSWER = torch.tensor([[700, 701, 45, 46], [800, 46, 47, 1]])


def small_model(generation: str) -> PaliGemmaModel:
    base = tiny_config(VOCAB, 32)
    vision = replace(base.vision, width=24, depth=1, mlp_dim=32, num_heads=2)
    text = replace(base.text, width=32, depth=2, mlp_dim=48, head_dim=16, **SMALL[generation])
    return loud_model(replace(base, vision=vision, text=text))


def picture(num: int) -> Tensor:
    return torch.rand(num, 32, 32, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1


def empty_cache(
    capacity: int = 8, batch_size: int = 2, dtype: torch.dtype = torch.float32
) -> KVCache:
    return KVCache(
        num_layers=2,
        batch_size=batch_size,
        capacity=capacity,
        num_kv_heads=1,
        head_dim=4,
        dtype=dtype,
        device="cpu",
    )


def prompted(cache: KVCache, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Write random keys and values of a prompt, bool[B, T], into both layers."""
    cache.start(valid, valid.cumsum(dim=1) - 1)
    return written(cache, (*valid.shape, 1, 4))


def extended(cache: KVCache) -> tuple[Tensor, Tensor]:
    """Write random keys and values of one more token a row into both layers."""
    cache.extend(cache.valid.sum(dim=1, keepdim=True))
    return written(cache, (cache.num_rows, 1, 1, 4))


def written(cache: KVCache, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(cache.length)
    k, v = (torch.randn(shape, generator=generator) for _ in range(2))
    for layer in range(2):
        read = cache.write(layer, k + layer, v + layer)
        assert [tuple(part.shape) for part in read] == [(shape[0], cache.length, 1, 4)] * 2
    return k, v


@torch.no_grad()
def cached_logits(
    model: PaliGemmaModel, soft: Tensor | None, rows: slice, dtype: torch.dtype = torch.float32
) -> Tensor:
    """float32[B, 5, V]: after the prompt and after each answer token."""
    tokens, answer = PROMPT[rows], ANSWER[rows]
    length = 0 if soft is None else soft.shape[1]
    cache = model.new_cache(len(tokens), length + 6 + 4, dtype)
    logits, positions = model.prefill(soft, tokens, MASK_AR[rows], VALID[rows], cache)
    steps = [logits]
    for step in range(4):
        steps.append(model.decode_step(answer[:, step], positions + step, cache))
    return torch.stack(steps, dim=1)


@torch.no_grad()
def full_logits(model: PaliGemmaModel, soft: Tensor | None, row: int) -> Tensor:
    """float32[5, V] of one row from one forward over prompt and answer, without padding."""
    prompt = PROMPT[row][VALID[row]]
    tokens = torch.cat((prompt, ANSWER[row]))[None]
    mask_ar = (torch.arange(tokens.shape[1]) >= len(prompt)).long()[None]
    own = None if soft is None else soft[row : row + 1]
    return model(own, tokens, mask_ar)[0, len(prompt) - 1 :]


@pytest.mark.parametrize("generation", ["gemma", "gemma2"])
@pytest.mark.parametrize("with_image", [True, False], ids=["image", "text alone"])
def test_prefill_and_steps_equal_one_forward_in_a_batch_of_unequal_prompts(
    generation: str, with_image: bool
) -> None:
    model = small_model(generation)
    with torch.no_grad():
        soft = model.encode_image(picture(2)) if with_image else None
    together = cached_logits(model, soft, slice(None))
    for row in range(2):
        one = slice(row, row + 1)
        alone = cached_logits(model, None if soft is None else soft[one], one)[0]
        full = full_logits(model, soft, row)
        assert full.std() > 0.3
        assert (together[row] - full).abs().max().item() <= 1e-5 * full.abs().max().item()
        assert (together[row] - alone).abs().max().item() <= 1e-5 * full.abs().max().item()


def test_a_window_shorter_than_the_prompt_holds_in_steps_as_in_one_forward() -> None:
    model = small_model("gemma2")
    text = replace(model.config.text, sliding_window=4)
    near = PaliGemmaModel(replace(model.config, text=text)).eval()
    near.load_state_dict(model.state_dict())
    windowed = cached_logits(near, None, slice(None))
    for row in range(2):
        full = full_logits(near, None, row)
        assert (windowed[row] - full).abs().max().item() <= 1e-4
    # The first row has six prompt tokens before its answer: the window hides some of them.
    assert (windowed - cached_logits(model, None, slice(None)))[0].abs().max().item() > 1e-2


def test_the_window_applies_to_even_layers_and_spares_the_prefix() -> None:
    model = small_model("gemma2")
    text = replace(model.config.text, sliding_window=2)
    near = PaliGemmaModel(replace(model.config, text=text)).eval()
    near.load_state_dict(model.state_dict())
    tokens = torch.tensor([[2, 40, 41, 42, 700, 701]])
    with torch.no_grad():
        # Image and prefix see each other whatever the distance.
        all_prefix = torch.zeros_like(tokens)
        soft = model.encode_image(picture(1))
        assert torch.equal(near(soft, tokens, all_prefix), model(soft, tokens, all_prefix))
        causal = torch.ones_like(tokens)
        # Odd layers look everywhere: with nothing to add in the even one, the window is gone.
        for one in (model, near):
            one.text.blocks[0].post_attn_norm.scale.fill_(-1.0)
        assert torch.equal(near(soft, tokens, causal), model(soft, tokens, causal))
        for one in (model, near):
            one.text.blocks[0].post_attn_norm.scale.fill_(0.5)
        change = near(soft, tokens, causal) - model(soft, tokens, causal)
    assert change.abs().max().item() > 1e-2


def test_a_final_cap_bounds_later_steps_and_never_the_first() -> None:
    model = small_model("gemma2")
    text = replace(model.config.text, final_softcap=1.0)
    capped = PaliGemmaModel(replace(model.config, text=text)).eval()
    capped.load_state_dict(model.state_dict())
    free, bounded = (cached_logits(one, None, slice(None)) for one in (model, capped))
    assert torch.equal(free[:, 0], bounded[:, 0])
    assert free[:, 0].abs().max() > 1
    assert (bounded[:, 1:] - torch.tanh(free[:, 1:])).abs().max().item() <= 1e-6


ALL = torch.ones(2, 3, dtype=torch.bool)
UNEQUAL = torch.tensor([[True, True, True], [True, False, False]])


def test_a_full_cache_refuses_more_tokens_and_stays_as_it_was() -> None:
    cache = empty_cache(capacity=4)
    prompted(cache, UNEQUAL)
    extended(cache)
    with pytest.raises(ValueError, match="holds 4 tokens, 5 were asked for"):
        extended(cache)
    assert cache.length == 4
    assert cache.ends.tolist() == [4, 2]
    assert cache.valid.tolist() == [[True] * 4, [True, True, False, False]]
    with pytest.raises(ValueError, match="holds 4 tokens, 5 were asked for"):
        prompted(cache, torch.ones(2, 5, dtype=torch.bool))


def test_a_token_follows_the_prompt_of_its_own_row() -> None:
    cache = empty_cache()
    prompt, _ = prompted(cache, UNEQUAL)
    first, values = extended(cache)
    second, _ = extended(cache)
    assert cache.length == 5
    assert cache.ends.tolist() == [5, 3]
    for layer in range(2):
        keys = cache.keys[layer] - layer
        assert torch.allclose(keys[0, :5], torch.cat((prompt[0], first[0], second[0])))
        assert torch.allclose(keys[1, :3], torch.cat((prompt[1, :1], first[1], second[1])))
        assert torch.allclose(cache.values[layer][1, 1] - layer, values[1, 0])
    assert cache.valid.sum(dim=1).tolist() == [5, 3]
    assert cache.positions[0, :5].tolist() == [0, 1, 2, 3, 4]
    assert cache.positions[1, :3].tolist() == [0, 1, 2]


def test_a_row_goes_on_after_its_last_valid_token_and_leaves_gaps_alone() -> None:
    cache = empty_cache()
    prompted(cache, torch.tensor([[True, False, True, False], [False] * 4]))
    extended(cache)
    assert cache.ends.tolist() == [4, 1]
    assert cache.valid[:, :4].tolist() == [[True, False, True, True], [True, False, False, False]]


def test_a_new_prompt_forgets_what_its_row_held() -> None:
    cache = empty_cache()
    prompted(cache, ALL)
    extended(cache)
    prompted(cache, UNEQUAL)
    assert cache.length == 3
    assert cache.ends.tolist() == [3, 1]
    assert cache.valid.sum(dim=1).tolist() == [3, 1]


def test_a_bfloat16_cache_rounds_what_attention_reads_at_once() -> None:
    cache = KVCache(
        num_layers=1,
        batch_size=1,
        capacity=2,
        num_kv_heads=1,
        head_dim=1,
        dtype=torch.bfloat16,
        device="cpu",
    )
    cache.start(torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.long))
    k, v = cache.write(0, torch.full((1, 1, 1, 1), 1.001), torch.full((1, 1, 1, 1), 2.01))
    # Neighbours in bfloat16 are 2^-7 apart above 1 and 2^-6 above 2.
    assert (k.item(), v.item()) == (1.0, 2.015625)
    assert k.dtype == torch.float32


def test_an_int8_cache_stores_each_head_as_numpy_does() -> None:
    generator = torch.Generator().manual_seed(2)
    x = (
        torch.randn(3, 5, 2, 6, generator=generator)
        * torch.tensor([1e-30, 1.0, 1e30])[:, None, None, None]
    )
    x[0, 0], x[0, 1, 0] = 0, torch.tensor([127.0, -127, 0.5, 1.5, -2.5, 126.5])
    wide = x.numpy()
    largest = np.abs(wide).max(axis=-1, keepdims=True)
    scale = largest / np.float32(127)
    whole = np.rint(wide / np.where(scale > 0, scale, np.float32(1)))
    stored = quantise(x)
    assert stored.dtype == torch.int8
    assert np.array_equal(stored[..., 4:].numpy(), whole)
    assert np.array_equal(stored[..., :4].numpy().view(np.float32), scale)
    assert stored[0, 1, 0, 4:].tolist() == [127, -127, 0, 2, -2, 126]
    assert stored.nbytes == x[..., 0].numel() * stored_bytes(6, torch.int8)
    off = (widen(stored, torch.float32) - x).abs().numpy()
    assert (off <= 0.5001 * scale).all()
    assert off.max() > 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_head_of_no_number_becomes_nan_and_its_neighbours_stay(value: float) -> None:
    x = torch.ones(2, 2, 4, dtype=torch.bfloat16)
    x[1, 0, 2] = value
    read = widen(quantise(x), torch.bfloat16)
    assert read.dtype == torch.bfloat16
    assert read[1, 0].isnan().all()
    read[1, 0] = 1
    assert torch.equal(read, torch.ones_like(read))


@pytest.mark.parametrize("generation", ["gemma", "gemma2"])
def test_an_int8_cache_gives_each_row_what_it_gets_alone_and_nearly_what_float32_gives(
    generation: str,
) -> None:
    model = small_model(generation)
    with torch.no_grad():
        soft = model.encode_image(picture(2))
    exact = cached_logits(model, soft, slice(None))
    together = cached_logits(model, soft, slice(None), torch.int8)
    for row in range(2):
        one = slice(row, row + 1)
        alone = cached_logits(model, soft[one], one, torch.int8)[0]
        # A last bit of a product may tip a rounding to int8.
        assert (together[row] - alone).norm() <= 2e-3 * alone.norm()
    assert 1e-3 < (together - exact).norm() / exact.norm() < 4e-2


@pytest.mark.parametrize("generation", ["gemma", "gemma2"])
def test_what_a_token_sees_does_not_depend_on_where_the_prompt_was_cut(generation: str) -> None:
    """A causal prompt read whole, and read in part and gone on with token by token."""
    model = small_model(generation)
    tokens = torch.cat((PROMPT[:1], ANSWER[:1]), dim=1)
    found = []
    for length in (10, 6, 2):
        with torch.no_grad():
            cache, prompt = model.new_cache(1, 10, torch.int8), tokens[:, :length]
            ones = torch.ones_like(prompt)
            logits, positions = model.prefill(None, prompt, ones, ones.bool(), cache)
            for step in range(10 - length):
                logits = model.decode_step(tokens[:, length + step], positions + step, cache)
        found.append(logits)
    for other in found[1:]:
        assert (other - found[0]).norm() <= 2e-3 * found[0].norm()


def test_an_int8_cache_moves_numbers_with_their_scales() -> None:
    cache = empty_cache(batch_size=3, dtype=torch.int8)
    x = torch.randn(3, 4, 1, 4, generator=torch.Generator().manual_seed(3))
    x *= torch.tensor([0.01, 1.0, 100.0])[:, None, None, None]
    valid = torch.ones(3, 4, dtype=torch.bool)
    cache.start(valid, valid.cumsum(dim=1) - 1)
    for layer in range(2):
        read, _ = cache.write(layer, x, -x)
        assert (read - x).abs().max() <= x.abs().max() / 254
    rows = torch.tensor([2, 0, 2])
    chosen, memory = cache.select(rows), cache.keys[0].data_ptr()
    cache.reorder(rows)
    cache.resize(4, 6)
    cache.move(0, 3)
    assert cache.keys[0].data_ptr() != memory
    for layer in range(2):
        for ours, theirs, sign in (
            (cache.keys, chosen.keys, 1),
            (cache.values, chosen.values, -1),
        ):
            got = widen(ours[layer][:3, :4], torch.float32)
            assert torch.equal(got, widen(theirs[layer][:, :4], torch.float32))
            assert torch.allclose(got, sign * x[rows], rtol=0, atol=100 * 4 / 254)
            assert torch.equal(ours[layer][3, :4], ours[layer][0, :4])
            assert not ours[layer][:3, 4:].any()


def test_selected_rows_are_copies_in_the_order_asked_for() -> None:
    cache = empty_cache()
    prompted(cache, UNEQUAL)
    rows = [1, 0, 1]
    chosen = cache.select(torch.tensor(rows))
    assert (chosen.length, chosen.capacity, chosen.num_rows) == (3, 8, 3)
    assert chosen.ends.tolist() == [1, 3, 1]
    assert torch.equal(chosen.keys[1], cache.keys[1][rows])
    assert torch.equal(chosen.values[0], cache.values[0][rows])
    assert torch.equal(chosen.positions, cache.positions[rows])
    extended(chosen)
    assert cache.length == 3
    assert not cache.valid[:, 3].any()
    assert cache.ends.tolist() == [3, 1]


def test_reordered_rows_are_those_of_a_selection_in_the_same_memory() -> None:
    cache = empty_cache(batch_size=3)
    prompted(cache, torch.cat((UNEQUAL, ALL[:1])))
    extended(cache)
    rows = torch.tensor([2, 2, 1])
    chosen, memory = cache.select(rows), cache.keys[0].data_ptr()
    cache.reorder(rows)
    assert cache.keys[0].data_ptr() == memory
    assert cache.ends.tolist() == chosen.ends.tolist() == [4, 4, 2]
    for ours, theirs in zip(
        (*cache.keys, *cache.values, cache.valid, cache.positions),
        (*chosen.keys, *chosen.values, chosen.valid, chosen.positions),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_a_selected_row_that_does_not_exist_is_refused() -> None:
    with pytest.raises(IndexError):
        empty_cache().select(torch.tensor([0, 2]))


def test_a_view_writes_into_the_rows_of_its_cache() -> None:
    cache = empty_cache(batch_size=3)
    prompted(cache, torch.cat((UNEQUAL, ALL[:1])))
    view = cache.view(1, 3)
    first, _ = extended(view)
    assert cache.ends.tolist() == [3, 2, 4]
    assert torch.equal(cache.keys[0][1, 1], first[0, 0])
    assert torch.equal(cache.keys[0][2, 3], first[1, 0])
    assert cache.valid.sum(dim=1).tolist() == [3, 2, 4]
    # A new prompt in one row leaves the others as they are.
    prompted(cache.view(2, 3), torch.ones(1, 2, dtype=torch.bool))
    assert cache.ends.tolist() == [3, 2, 2]


def test_a_moved_row_goes_on_at_its_new_place() -> None:
    cache = empty_cache(batch_size=2)
    prompted(cache, UNEQUAL)
    extended(cache)
    before = cache.select(torch.tensor([1]))
    cache.move(1, 0)
    for ours, theirs in zip(
        (*cache.keys, *cache.values, cache.positions),
        (*before.keys, *before.values, before.positions),
        strict=True,
    ):
        assert torch.equal(ours[0, :2], theirs[0, :2])
    assert cache.valid[0].tolist() == before.valid[0].tolist()
    extended(cache.view(0, 1))
    assert cache.ends.tolist() == [3, 2]


def test_a_resized_cache_keeps_what_fits_and_goes_on() -> None:
    cache = empty_cache(batch_size=2)
    prompted(cache, UNEQUAL)
    before = cache.select(torch.tensor([0, 1]))
    for num_rows, capacity in ((4, 16), (2, 3), (2, 8)):
        cache.resize(num_rows, capacity)
        assert (cache.num_rows, cache.capacity, len(cache.ends)) == (num_rows, capacity, num_rows)
        for ours, theirs in zip(
            (*cache.keys, *cache.values, cache.valid, cache.positions),
            (*before.keys, *before.values, before.valid, before.positions),
            strict=True,
        ):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours[:2, :3], theirs[:, :3])
            assert ours[:, 3:].sum() == 0
            assert ours[2:].sum() == 0
        assert cache.ends[:2].tolist() == [3, 1]
    extended(cache)
    assert cache.ends.tolist() == [4, 2]
