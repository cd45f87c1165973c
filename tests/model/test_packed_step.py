"""A decoding step in one call in C, beside the same packed layers computed one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_model_oracle import SMALL, VOCAB, loud_model
from tiny_folder import write_random_tiny
from torch import Tensor, nn

from paligemma.adapt.quant import Quant
from paligemma.batch import Batch, TokenRow
from paligemma.config import TextConfig
from paligemma.generate import DecodeOptions, DecodeQueue, QueueOptions, generate
from paligemma.kernels import native
from paligemma.kernels.linear import Linear, TiedEmbedding
from paligemma.kernels.packed_matrix import PackedMatrix
from paligemma.model import KVCache, PaliGemmaModel
from paligemma.model.kv_cache import quantise, widen
from paligemma.model.packed_step import step_in_c
from paligemma.tiny.start import tiny_config
from paligemma.weights.load import OpenCheckpoint

# Largest relative difference of logits between the two routes: both compute in float32, in other
# orders. Inputs of integer kinds are rounded to 14 or 8 bits, where a last bit may tip a rounding.
BOUNDS = {"f32": 1e-5, "bf16": 1e-5, "int8": 2e-3, "int4": 2e-2}
# Of the cache: a last bit of float32 may also tip a rounding to its dtype.
CACHES = {torch.float32: 0.0, torch.bfloat16: 2e-3, torch.int8: 4e-3}
GENERATIONS = {
    "gemma": SMALL["gemma"],
    "gemma2": {**SMALL["gemma2"], "final_softcap": 3.0, "sliding_window": 4},
}
# Prompts of unequal length; the second has holes.
PROMPTS = torch.randint(300, 1400, (3, 9), generator=torch.Generator().manual_seed(3))
VALID = torch.tensor(
    [[1, 1, 1, 1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0, 0]]
).bool()
ANSWERS = torch.randint(300, 1400, (3, 5), generator=torch.Generator().manual_seed(4))


class PackedLinear(nn.Module):
    """Stands in for `Linear`."""

    dtype, device, bias = torch.float32, torch.device("cpu"), None

    def __init__(self, kind: str, layer: Linear) -> None:
        super().__init__()
        self.matrix = packed(kind, layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.matrix.multiply(x)


class PackedEmbedding(nn.Module):
    """Stands in for `TiedEmbedding`."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, kind: str, layer: TiedEmbedding) -> None:
        super().__init__()
        self.head = packed(kind, layer.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head.unpack()[tokens]

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head.multiply(hidden)


def packed(kind: str, weight: Tensor) -> PackedMatrix:
    matrix = PackedMatrix.empty(kind, *weight.shape)
    matrix.pack(weight.detach())
    return matrix


def far(ours: Tensor, theirs: Tensor) -> float:
    """The norm of the difference over that of the second."""
    return float((ours - theirs).norm() / theirs.norm())


def numbers(stored: Tensor) -> Tensor:
    """The keys or values of a layer of a cache as float32."""
    return widen(stored, torch.float32) if stored.dtype == torch.int8 else stored.float()


def packed_model(
    generation: str, kind: str, depth: int = 3, text: TextConfig | None = None
) -> PaliGemmaModel:
    base = tiny_config(VOCAB, 32)
    vision = replace(base.vision, width=24, depth=1, mlp_dim=32, num_heads=2)
    sizes = {"width": 40, "depth": depth, "mlp_dim": 80, "num_heads": 8, "head_dim": 32}
    text = text or replace(base.text, **sizes, **GENERATIONS[generation])
    model = loud_model(replace(base, vision=vision, text=text))
    for block in model.text.blocks:
        for parent in (block.attn, block.mlp):
            for name, layer in list(parent.named_children()):
                setattr(parent, name, PackedLinear(kind, layer))
    model.text.embed = PackedEmbedding(kind, model.text.embed)
    return model


@pytest.fixture
def threads() -> Iterator[None]:
    """Threads that a test sets all take part, small as its models are."""
    number, library = torch.get_num_threads(), native.library()
    assert library is not None
    library.pg_set_bytes_a_thread(1)
    yield
    library.pg_set_bytes_a_thread(1 << 22)
    torch.set_num_threads(number)


def text_row(*tokens: int) -> TokenRow:
    zeros, ones = (0,) * len(tokens), (1,) * len(tokens)
    return TokenRow(tokens=tokens, mask_ar=zeros, mask_input=ones, mask_loss=zeros)


def layers_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paligemma.model.paligemma.step_in_c", lambda *_: None)


def prefilled(
    model: PaliGemmaModel, rows: list[int], dtype: torch.dtype, capacity: int = 14
) -> tuple[KVCache, Tensor]:
    cache = model.new_cache(len(rows), capacity, dtype)
    tokens, valid = PROMPTS[rows], VALID[rows]
    _, positions = model.prefill(None, tokens, torch.zeros_like(tokens), valid, cache)
    return cache, positions


@torch.inference_mode()
def answered(
    model: PaliGemmaModel, rows: list[int], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, KVCache]:
    """float32[B, 5, V]: logits after each token of the answers, and the cache behind them."""
    cache, positions = prefilled(model, rows, dtype)
    steps = [
        model.decode_step(ANSWERS[rows, index], positions + index, cache) for index in range(5)
    ]
    return torch.stack(steps, dim=1), cache


@pytest.mark.parametrize("dtype", CACHES)
@pytest.mark.parametrize("kind", BOUNDS)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_one_call_in_c_computes_what_the_layers_compute(
    generation: str,
    kind: str,
    dtype: torch.dtype,
    level: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = packed_model(generation, kind)
    logits, cache = answered(model, [0, 1, 2], dtype)
    layers_compute(monkeypatch)
    expected, theirs = answered(model, [0, 1, 2], dtype)
    bound = max(BOUNDS[kind], CACHES[dtype])
    assert far(logits, expected) <= bound
    assert torch.equal(logits.argmax(dim=-1), expected.argmax(dim=-1))
    for ours, other in zip(cache.keys + cache.values, theirs.keys + theirs.values, strict=True):
        assert far(numbers(ours), numbers(other)) <= bound
    assert cache.ends.tolist() == theirs.ends.tolist()
    assert torch.equal(cache.valid, theirs.valid)
    assert cache.length == theirs.length


@pytest.mark.parametrize("kind", BOUNDS)
def test_a_row_gets_the_same_bits_alone_and_on_any_number_of_threads(
    kind: str, level: int, threads: None
) -> None:
    model = packed_model("gemma2", kind)
    torch.set_num_threads(1)
    together, _ = answered(model, [0, 1, 2])
    for number in (2, 3, 5):
        torch.set_num_threads(number)
        assert torch.equal(answered(model, [0, 1, 2])[0], together)
    # The prompts are read alone, too, so only the rows' caches must be equal.
    with torch.inference_mode():
        cache, positions = prefilled(model, [0, 1, 2], torch.float32)
        for rows in ([1], [2, 0], [0, 1, 1, 2, 0, 2, 1]):
            some, index = cache.select(torch.tensor(rows)), torch.tensor(rows)
            for step in range(5):
                logits = model.decode_step(ANSWERS[index, step], positions[index] + step, some)
                assert torch.equal(logits, together[index, step])


@pytest.mark.parametrize("dtype", CACHES)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_long_caches_are_attended_in_spans(
    generation: str, dtype: torch.dtype, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of up to 700 slots: three spans, with one of them wholly outside the window or full of
    holes, and an odd number of slots in the last."""
    model = packed_model(generation, "f32")
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(300, 1400, (3, 690), generator=generator)
    valid = torch.rand(3, 690, generator=generator) < 0.8
    valid[0], valid[1, 256:512], valid[2, 255:] = True, False, False

    @torch.inference_mode()
    def logits() -> Tensor:
        cache = model.new_cache(3, 700, dtype)
        _, positions = model.prefill(None, tokens, torch.zeros_like(tokens), valid, cache)
        steps = [model.decode_step(ANSWERS[:, i], positions + i, cache) for i in range(5)]
        return torch.stack(steps)

    ours = logits()
    layers_compute(monkeypatch)
    assert far(ours, logits()) <= max(1e-5, CACHES[dtype])


def test_only_the_wanted_ids_get_logits(level: int) -> None:
    model = packed_model("gemma2", "int8")
    ids = [range(1), range(5, 5), range(7, 35), range(300, 1324), range(1499, 1500)]
    wanted = torch.zeros(1500, dtype=torch.bool)
    for part in ids:
        wanted[part.start : part.stop] = True
    with torch.inference_mode():
        cache, positions = prefilled(model, [0, 1], torch.float32)
        copy, rows = cache.select(torch.arange(2)), torch.arange(2)
        whole = model.decode_step(ANSWERS[:2, 0], positions, cache.select(rows))
        some = model.decode_runs(ANSWERS[:2, 0], rows, positions, copy, ids)
        assert (some[:, ~wanted] == -torch.inf).all()
        assert torch.equal(some[:, wanted], whole[:, wanted])
        none = model.decode_runs(ANSWERS[:2, 0], rows, positions, cache, [])
        assert (none == -torch.inf).all()


@pytest.mark.parametrize("dtype", CACHES)
@pytest.mark.parametrize("kind", BOUNDS)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_run_of_tokens_gets_the_bits_that_they_get_one_by_one(
    generation: str, kind: str, dtype: torch.dtype, level: int
) -> None:
    model = packed_model(generation, kind)
    expected, theirs = answered(model, [0, 1, 2], dtype)
    with torch.inference_mode():
        cache, positions = prefilled(model, [0, 1, 2], dtype)
        done = [0, 0, 0]
        # Tokens of each row in each pass; a row may rest.
        for sizes in ([1, 3, 0], [0, 1, 5], [4, 1, 0]):
            places = [(row, done[row] + k) for row, size in enumerate(sizes) for k in range(size)]
            rows, steps = (torch.tensor(column) for column in zip(*places, strict=True))
            logits = model.decode_runs(ANSWERS[rows, steps], rows, positions[rows] + steps, cache)
            assert torch.equal(logits, expected[rows, steps])
            done = [one + size for one, size in zip(done, sizes, strict=True)]
    assert done == [5, 5, 5]
    for ours, other in zip(cache.keys + cache.values, theirs.keys + theirs.values, strict=True):
        assert torch.equal(ours, other)
    assert torch.equal(cache.valid, theirs.valid)
    assert cache.ends.tolist() == theirs.ends.tolist()


def test_a_run_without_room_and_a_run_that_torch_would_read_are_refused(
    level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = packed_model("gemma", "int4")
    with torch.inference_mode():
        cache, positions = prefilled(model, [0], torch.float32, capacity=int(PROMPTS.shape[1]) + 1)
        rows = torch.zeros(9, dtype=torch.long)
        with pytest.raises(ValueError, match="the cache holds"):
            model.decode_runs(ANSWERS[rows, 0], rows, positions[rows], cache)
        layers_compute(monkeypatch)
        with pytest.raises(ValueError, match="in C only"):
            model.decode_runs(ANSWERS[:1, 0], rows[:1], positions[:1], cache)


def test_the_rows_of_a_long_prompt_are_widened_a_few_at_a_time_with_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mlp = packed_model("gemma", "int4").text.blocks[0].mlp
    x = torch.randn(3, 11, mlp.gate.matrix.k, generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        whole = mlp(x)
        monkeypatch.setattr("paligemma.model.gemma.ROWS_AT_ONCE", 4)
        assert torch.equal(mlp(x), whole)
    assert torch.equal(mlp(x), whole)  # as with gradients


def test_a_step_stores_whole_numbers_as_torch_does(level: int) -> None:
    """Bit for bit what `quantise` makes of the keys and values of a cache in float32."""
    base = replace(tiny_config(VOCAB, 32).text, **SMALL["gemma"])
    text = replace(base, width=32, depth=1, mlp_dim=32, num_heads=1, num_kv_heads=1, head_dim=32)
    model = packed_model("gemma", "f32", text=text)
    attn = model.text.blocks[0].attn
    attn.k.matrix = packed("f32", torch.eye(32))
    # Values at the end of float32, where a scale has a bit or two.
    attn.v.matrix = packed("f32", 1e-43 * torch.eye(32))
    model.text.blocks[0].pre_attn_norm.scale.data.zero_()
    generator = torch.Generator().manual_seed(9)
    exponents = torch.randint(-6, 4, (40, 1), generator=generator)
    x = torch.randn(40, 32, generator=generator) * 10.0**exponents
    x[3], x[4, :31], x[5, 7], x[6, 2] = 0, 0, torch.nan, torch.inf
    x[7] = torch.arange(32) - 16.5
    wide, narrow = (model.new_cache(40, 2, dtype) for dtype in (torch.float32, torch.int8))
    rows = torch.arange(40)
    with torch.inference_mode():
        step = step_in_c(model.text, narrow)
        for cache in (wide, narrow):
            step(x.clone(), cache, rows, cache.claim(rows, torch.zeros(40, dtype=torch.long)), [])
    for exact, stored in ((wide.keys, narrow.keys), (wide.values, narrow.values)):
        ours, theirs = stored[0][:, 0], quantise(exact[0][:, 0])
        sound = widen(theirs, torch.float32).isfinite().all(-1).flatten()
        assert sound.tolist() == [k not in (5, 6) for k in range(40)]
        assert torch.equal(ours[sound], theirs[sound])
        assert widen(ours[~sound], torch.float32).isnan().all()


def test_a_row_of_nan_leaves_the_others_as_they_are(level: int) -> None:
    model = packed_model("gemma", "bf16")
    with torch.inference_mode():
        cache, positions = prefilled(model, [0, 1, 2], torch.float32)
        sound = cache.select(torch.arange(3))
        cache.keys[1][1, 2] = torch.nan
        logits = model.decode_step(ANSWERS[:, 0], positions, cache)
        assert logits[1].isnan().all()
        expected = model.decode_step(ANSWERS[:, 0], positions, sound)
        assert torch.equal(logits[[0, 2]], expected[[0, 2]])


def test_the_step_is_left_where_a_layer_is_another_and_found_again(level: int) -> None:
    model = packed_model("gemma", "int4")
    assert model.decode_route() == "one call in C a token"
    expected, _ = answered(model, [0, 1])
    attn = model.text.blocks[1].attn
    layer, calls = attn.q, []

    class Adapted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(x)
            return layer(x) * 1.5

    attn.q = Adapted()
    assert model.decode_route() == "torch's layers (q of block 1 is not packed)"
    adapted, _ = answered(model, [0, 1])
    assert len(calls) == 6
    assert far(adapted, expected) > 0.01
    attn.q = layer
    assert model.decode_route() == "one call in C a token"
    assert torch.equal(answered(model, [0, 1])[0], expected)


def test_without_packed_layers_or_kernels_the_route_says_why(
    monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    base = tiny_config(VOCAB, 32)
    plain = loud_model(base)
    assert plain.decode_route() == "torch's layers (the output head is not packed)"
    odd = replace(base.text, head_dim=24, **SMALL["gemma"])
    model = packed_model("gemma", "bf16", text=odd)
    assert model.decode_route() == "torch's layers (head_dim 24 is not a multiple of 16)"
    monkeypatch.setattr("paligemma.model.packed_step.library", lambda: None)
    assert "compiled kernels" in packed_model("gemma", "bf16").decode_route()


def test_gradients_and_other_caches_go_through_the_layers(level: int) -> None:
    model = packed_model("gemma", "f32")
    calls: list[None] = []
    model.text.norm.register_forward_hook(lambda *_: calls.append(None))

    def step(dtype: torch.dtype, *, traced: bool) -> Tensor:
        with torch.no_grad():
            cache, positions = prefilled(model, [0], dtype)
        calls.clear()
        with torch.set_grad_enabled(traced):
            return model.decode_step(ANSWERS[:1, 0], positions, cache).detach()

    whole = step(torch.float32, traced=False)
    assert not calls
    assert far(step(torch.float32, traced=True), whole) <= 1e-5
    assert len(calls) == 1
    assert 0 < far(step(torch.float16, traced=False), whole) < 1e-2
    assert len(calls) == 1


@pytest.mark.parametrize("cache", ["float32", "int8"])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_answers_are_the_same_by_both_routes_and_from_the_queue(
    generation: str, cache: str, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = packed_model(generation, "bf16")
    options = DecodeOptions(max_new_tokens=6, kv_cache_dtype=cache)
    rows = [text_row(*row[keep].tolist()) for row, keep in zip(PROMPTS, VALID, strict=True)]
    batch = Batch.from_rows(rows, pad=0)
    soft = torch.randn(3, 4, 40, generator=torch.Generator().manual_seed(6))

    def answers() -> Tensor:
        return generate(model, batch, options, soft_tokens=soft).ids

    ours = answers()
    queue = DecodeQueue(model, QueueOptions(max_rows=2, kv_cache_dtype=cache))
    handles = [
        queue.submit(row, options, soft_tokens=soft[i : i + 1]) for i, row in enumerate(rows)
    ]
    found = {handle: [] for handle in handles}
    while events := queue.step():
        for event in events:
            found[event.handle].append(event.token)
    for handle, tokens in zip(handles, ours.tolist(), strict=True):
        assert found[handle] == tokens[: len(found[handle])]
        assert found[handle]
    layers_compute(monkeypatch)
    assert torch.equal(answers(), ours)


@pytest.mark.parametrize("quant", ["bf16", "fp8", "int4,head=bf16"])
def test_a_checkpoint_packed_while_it_is_read_is_decoded_in_c_as_its_layers_decode(
    quant: str, level: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OpenCheckpoint(write_random_tiny(tmp_path / "model")) as opened:
        model = opened.load(quant=Quant.parse(quant))
    assert model.decode_route() == "one call in C a token"
    options = DecodeOptions(max_new_tokens=8, kv_cache_dtype="float32")
    rows = [text_row(*row[keep].tolist()) for row, keep in zip(PROMPTS, VALID, strict=True)]
    batch = Batch.from_rows(rows, pad=0)
    soft = torch.randn(3, 4, model.config.text.width, generator=torch.Generator().manual_seed(6))

    def answers() -> Tensor:
        return generate(model, batch, options, soft_tokens=soft).ids

    ours = answers()
    layers_compute(monkeypatch)
    assert torch.equal(answers(), ours)
    # Without the library inputs of int4 are not rounded.
    monkeypatch.setattr("paligemma.kernels.native.library", lambda: None)
    assert quant.startswith("int4") or torch.equal(answers(), ours)
