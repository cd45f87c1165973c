"""The captured decoding step beside torch's layers, at released widths and two blocks."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from paligemma.adapt.lora import Adapter, LoraConfig, attach
from paligemma.config import release_config
from paligemma.kernels.gpu_step import SWITCH
from paligemma.model import PaliGemmaModel
from paligemma.weights.fewer_bits import in_fewer_bits
from paligemma.weights.shapes import parameter_shapes

NUM_STEPS = 5
CAPPED = {"attn_softcap": 50.0, "final_softcap": 30.0, "sliding_window": 11}


@pytest.fixture(autouse=True)
def _own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "on")


@contextmanager
def torch_layers() -> Iterator[None]:
    before = os.environ.pop(SWITCH)
    try:
        yield
    finally:
        os.environ[SWITCH] = before


def two_blocks(variant: str, dtype: torch.dtype, **changed: Any) -> PaliGemmaModel:
    config = release_config(variant, 224)  # type: ignore[arg-type]
    text = replace(config.text, depth=2, **changed)
    config = replace(config, vision=replace(config.vision, depth=1), text=text)
    with torch.device("meta"):
        model = PaliGemmaModel(config)
    generator = torch.Generator("cuda").manual_seed(0)
    tensors = {
        name: (
            torch.randn(shape, generator=generator, device="cuda")
            * (shape[-1] ** -0.5 if len(shape) > 1 else 0.3)
        ).to(dtype)
        for name, shape in parameter_shapes(config).items()
    }
    model.load_state_dict(tensors, assign=True)
    model.text.set_embed_scale(dtype)
    return model.requires_grad_(False).eval()


@torch.inference_mode()
def steps(model: PaliGemmaModel, num_rows: int, cache_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits float32[B, NUM_STEPS, V] after given tokens, and the keys of the last block."""
    generator = torch.Generator().manual_seed(num_rows)
    prompt = torch.randint(300, 1400, (num_rows, 17), generator=generator).cuda()
    valid = torch.ones_like(prompt, dtype=torch.bool)
    for row in range(num_rows):
        valid[row, 17 - row % 6 :] = False
        valid[row, 2 : 2 + row % 3] = False
    cache = model.new_cache(num_rows, 17 + NUM_STEPS, cache_dtype)
    _, positions = model.prefill(None, prompt, torch.zeros_like(prompt), valid, cache)
    found = []
    for _ in range(NUM_STEPS):
        tokens = torch.randint(300, 1400, (num_rows,), generator=generator).cuda()
        found.append(model.decode_step(tokens, positions, cache))
        positions = positions + 1
    return torch.stack(found, dim=1), cache.keys[-1].float()


def far(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.mark.parametrize("num_rows", [1, 3, 8, 33])
@pytest.mark.parametrize(
    ("variant", "changed"),
    [("gemma_2b", {}), ("gemma2_2b", {}), ("gemma2_2b", CAPPED), ("gemma2_27b", {})],
)
def test_a_step_in_float32_is_that_of_torchs_layers(
    variant: str, changed: dict[str, Any], num_rows: int
) -> None:
    if variant == "gemma2_27b" and num_rows != 3:
        pytest.skip("once is enough for so many weights")
    model = two_blocks(variant, torch.float32, **changed)
    assert model.decode_route() == "one CUDA graph a token"
    ours, keys = steps(model, num_rows, torch.float32)
    with torch_layers():
        theirs, their_keys = steps(model, num_rows, torch.float32)
    assert model.decode_route() == "one CUDA graph a token"
    assert far(ours, theirs) < 1e-5
    assert far(keys, their_keys) < 1e-5


@pytest.mark.parametrize("num_rows", [1, 8, 64])
@pytest.mark.parametrize("variant", ["gemma_2b", "gemma2_2b"])
def test_a_step_in_bfloat16_is_as_near_to_float32_as_torchs_layers(
    variant: str, num_rows: int
) -> None:
    model = two_blocks(variant, torch.bfloat16)
    ours, _ = steps(model, num_rows, torch.bfloat16)
    with torch_layers():
        theirs, _ = steps(model, num_rows, torch.bfloat16)
        exact, _ = steps(model.float(), num_rows, torch.bfloat16)
    print(f"{variant}, {num_rows}: {far(ours, exact):.2e}, torch {far(theirs, exact):.2e}")
    assert far(ours, exact) < 1.2 * far(theirs, exact) + 1e-4


@pytest.mark.parametrize("quant", ["int8", "fp8", "int4", "int4,head=fp8"])
def test_weights_in_fewer_bits_have_the_products_of_their_values(quant: str) -> None:
    model = in_fewer_bits(two_blocks("gemma_2b", torch.float32), quant)
    assert model.decode_route() == "one CUDA graph a token"
    ours, _ = steps(model, 3, torch.float32)
    with torch_layers():
        theirs, _ = steps(model, 3, torch.float32)
    assert far(ours, theirs) < 1e-5


def test_a_changed_decoder_is_noticed() -> None:
    model = two_blocks("gemma_2b", torch.bfloat16)
    before, _ = steps(model, 2, torch.bfloat16)
    weight = model.text.blocks[0].mlp.down.weight
    weight.data = weight.data * 2  # the same object with other memory
    doubled, _ = steps(model, 2, torch.bfloat16)
    with torch_layers():
        theirs, _ = steps(model, 2, torch.bfloat16)
    assert far(doubled, theirs) < 0.03 < far(doubled, before)
    attach(model, Adapter.new(model, LoraConfig(rank=4)))
    assert model.decode_route().startswith("torch's layers (q of block 0 is a")
    assert far(steps(model, 2, torch.bfloat16)[0], theirs) < 0.03


def test_a_step_is_captured_while_another_thread_uses_the_device() -> None:
    model, stop = two_blocks("gemma_2b", torch.bfloat16), threading.Event()

    def allocate() -> None:
        while not stop.is_set():
            torch.randn(1 << 20, device="cuda").sum().item()

    thread = threading.Thread(target=allocate)
    thread.start()
    try:
        ours, _ = steps(model, 4, torch.bfloat16)
    finally:
        stop.set()
        thread.join()
    with torch_layers():
        theirs, _ = steps(model, 4, torch.bfloat16)
    assert far(ours, theirs) < 0.03


@torch.inference_mode()
def test_a_prefill_without_a_mask_is_that_with_one() -> None:
    model = two_blocks("gemma_2b", torch.float32)
    prompt = torch.randint(300, 1400, (2, 40), generator=torch.Generator().manual_seed(0)).cuda()
    found = []
    for sees_all in (True, False):
        cache = model.new_cache(2, 40, torch.float32)
        valid = torch.ones_like(prompt, dtype=torch.bool)
        found.append(
            model.prefill(None, prompt, torch.zeros_like(prompt), valid, cache, sees_all=sees_all)[
                0
            ]
        )
    assert far(*found) < 1e-5
