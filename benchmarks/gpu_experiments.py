"""Experiments on a CUDA device, measured by gpu.py --experiments: no part of the library.

Where the time of a prefill and of a decode step goes, other tiles of the step's products, and what
other routes of attention and logits cost.

Axes: B rows, S key tokens, N query heads, K key/value heads, H head dim, D width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from paligemma.kernels.attention import attend
from paligemma.kernels.linear import logits_product
from paligemma.model import PaliGemmaModel

if TYPE_CHECKING:
    from gpu import Bench

_PROFILED_STEPS = 10
_NUM_LINES = 15


@torch.inference_mode()
def profile_steps(bench: Bench) -> dict[str, Any]:
    """The most expensive operations of one prefill and of ten decode steps; host and device."""
    from gpu import own_kernels, question, raw_answer

    model = bench.models["ours"]
    batch = question(model, 1)
    raw_answer(model, batch, 4)
    assert batch.images is not None
    cache = model.new_cache(1, 4096, torch.bfloat16)
    state: dict[str, Tensor] = {}

    def prefill() -> None:
        soft_tokens = model.encode_image(batch.images)
        logits, positions = model.prefill(
            soft_tokens, batch.tokens, batch.mask_ar, batch.mask_input, cache
        )
        state["tokens"], state["positions"] = logits.argmax(dim=-1), positions

    def decode() -> None:
        for _ in range(_PROFILED_STEPS):
            logits = model.decode_step(state["tokens"], state["positions"], cache)
            state["tokens"] = logits.argmax(dim=-1)
            state["positions"] = state["positions"] + 1

    found = {}
    for name, route in (("", contextlib.nullcontext()), (", own kernels", own_kernels())):
        with route:
            prefill()
            decode()
            found[f"prefill{name}"] = profiled(bench, prefill)
            found[f"{_PROFILED_STEPS} decode steps{name}"] = profiled(bench, decode)
    return found


def profiled(bench: Bench, run: Callable[[], None]) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity, profile

    bench.sync()
    start = time.perf_counter()
    run()
    issued_s = time.perf_counter() - start
    bench.sync()
    whole_s = time.perf_counter() - start
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * bench.is_cuda
    with profile(activities=activities) as profiler:
        run()
        bench.sync()
    averages = profiler.key_averages()
    kernels = [one for one in averages if one.device_type != torch.autograd.DeviceType.CPU]
    ops = [one for one in averages if one.device_type == torch.autograd.DeviceType.CPU]
    device_us = sum(one.self_device_time_total for one in kernels)
    return {
        # Without the profiler: until the host has issued everything, and until all is computed.
        "host_ms": 1e3 * issued_s,
        "whole_ms": 1e3 * whole_s,
        "device_ms": device_us / 1e3,
        "num_kernels": sum(one.count for one in kernels),
        "kernels": [line_of(one) for one in ranked(kernels, "self_device_time_total")],
        "ops by device time": [line_of(one) for one in ranked(ops, "self_device_time_total")],
        "ops by host time": [line_of(one) for one in ranked(ops, "self_cpu_time_total")],
    }


def ranked(events: list[Any], key: str) -> list[Any]:
    costly = [one for one in events if getattr(one, key) > 0]
    return sorted(costly, key=lambda one: -getattr(one, key))[:_NUM_LINES]


def line_of(event: Any) -> dict[str, Any]:
    return {
        "device_ms": event.self_device_time_total / 1e3,
        "host_ms": event.self_cpu_time_total / 1e3,
        "count": event.count,
        "name": event.key[:110],
    }


@torch.inference_mode()
def compare_attention(bench: Bench) -> dict[str, Any]:
    """Milliseconds of one layer's attention by several routes; None where torch refuses."""
    text = bench.models["ours"].config.text
    num_heads, num_kv, head_dim = text.num_heads, text.num_kv_heads, text.head_dim
    shapes = {f"prefill of {s * s // 196 + 16}": (1, s * s // 196 + 16) for s in bench.sizes_px}
    found: dict[str, Any] = {}
    for name, (rows, length) in shapes.items():
        found[name] = attention_routes(bench, rows, length, length, num_heads, num_kv, head_dim)
    for rows in bench.batch_sizes:
        found[f"decode, batch {rows}"] = attention_routes(
            bench, rows, 1, 304, num_heads, num_kv, head_dim
        )
    return found


def attention_routes(
    bench: Bench, rows: int, queries: int, keys: int, num_heads: int, num_kv: int, head_dim: int
) -> dict[str, Any]:
    make = {"device": bench.device, "dtype": bench.dtype}
    q = torch.randn(rows, queries, num_heads, head_dim, **make)
    k, v = (torch.randn(rows, keys, num_kv, head_dim, **make) for _ in range(2))
    mask = torch.ones(rows, queries, keys, dtype=torch.bool, device=bench.device)
    scale, heads = head_dim**-0.5, (1, 2)

    def fused(backend: SDPBackend, *, expand: bool, masked: bool) -> Tensor:
        keys_of, values_of = k.transpose(*heads), v.transpose(*heads)
        if expand:
            shape = (rows, num_heads, keys, head_dim)
            group = num_heads // num_kv
            keys_of, values_of = (
                one[:, :, None].expand(-1, -1, group, -1, -1).reshape(shape)
                for one in (keys_of, values_of)
            )
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(
                q.transpose(*heads),
                keys_of,
                values_of,
                attn_mask=mask[:, None] if masked else None,
                scale=scale,
                enable_gqa=not expand,
            )

    routes: dict[str, Callable[[], Tensor]] = {
        "present": lambda: attend(q, k, v, mask, scale=scale, softcap=None),
        "present, no mask": lambda: attend(q, k, v, None, scale=scale, softcap=None),
        "present, soft-cap": lambda: attend(q, k, v, mask, scale=scale, softcap=50.0),
    }
    if bench.is_cuda:
        efficient, flash = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION
        cudnn, math = SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH
        routes |= {
            "efficient, keys expanded, mask": lambda: fused(efficient, expand=True, masked=True),
            "efficient, shared keys, mask": lambda: fused(efficient, expand=False, masked=True),
            "cudnn, shared keys, mask": lambda: fused(cudnn, expand=False, masked=True),
            "flash, shared keys, no mask": lambda: fused(flash, expand=False, masked=False),
            "math, shared keys, mask": lambda: fused(math, expand=False, masked=True),
        }
    return times_of(bench, routes)


@torch.inference_mode()
def compare_logits(bench: Bench) -> dict[str, Any]:
    """Milliseconds of the output head by several routes, by batch size."""
    model = bench.models["ours"]
    table = model.text.embed.weight
    found: dict[str, Any] = {}
    for rows in bench.batch_sizes:
        hidden = torch.randn(rows, table.shape[1], device=bench.device, dtype=table.dtype)
        routes: dict[str, Callable[[], Tensor]] = {
            "present": lambda hidden=hidden: logits_product(hidden, table),
            "rounded": lambda hidden=hidden: F.linear(hidden, table),
        }
        if bench.is_cuda:
            routes["float32 result of bfloat16 operands"] = lambda hidden=hidden: torch.mm(
                hidden, table.T, out_dtype=torch.float32
            )
        found[f"batch {rows}"] = times_of(bench, routes)
    return found


def times_of(bench: Bench, routes: dict[str, Callable[[], Tensor]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, run in routes.items():
        try:
            number = 2 if bench.is_tiny else 10

            def several(run: Callable[[], Tensor] = run, number: int = number) -> None:
                for _ in range(number):
                    run()

            times = bench.seconds(several, repeats=5)
            found[f"{name}, ms"] = 1e3 * statistics.median(times) / number
        except RuntimeError as error:
            found[f"{name}, ms"] = f"refused: {str(error).splitlines()[0][:120]}"
    return found


# Outputs and inputs of a tile, warps, stages; a step of the whole decoder is measured with each.
_TILES = {
    "project": [(16, 64, 4, 4), (16, 256, 4, 3), (16, 256, 8, 3), (32, 128, 8, 3)],
    "narrow": [(16, 128, 4, 6), (16, 512, 4, 3), (16, 512, 8, 3), (16, 256, 2, 4), (32, 256, 8, 4)],
    "gate": [(16, 256, 4, 3), (32, 64, 4, 6), (32, 256, 4, 3), (64, 128, 8, 3), (16, 128, 4, 6)],
    "head": [(32, 128, 4, 5), (32, 256, 4, 4), (64, 256, 8, 3), (128, 64, 8, 4), (64, 64, 4, 6)],
}


@torch.inference_mode()
def compare_tiles(bench: Bench) -> dict[str, Any]:
    """Milliseconds of a step with other tiles of one product at a time."""
    from gpu import question

    from paligemma.kernels import gpu_step

    model = bench.models["ours"]
    found: dict[str, Any] = {}
    if not bench.is_cuda:
        return {"left out": "the kernels are compiled for a GPU alone"}
    for rows in bench.batch_sizes[:2]:
        batch = question(model, rows)
        soft_tokens = model.encode_image(batch.images)
        cache = model.new_cache(rows, soft_tokens.shape[1] + 32, torch.bfloat16)
        logits, positions = model.prefill(
            soft_tokens, batch.tokens, batch.mask_ar, batch.mask_input, cache
        )
        tokens, slots = logits.argmax(dim=-1), cache.ends.tolist()

        question_of = (tokens, positions, slots, cache)

        found[f"batch {rows}, as they are"] = step_ms(bench, model, question_of)
        for name, choices in _TILES.items():
            before = gpu_step.TILES[name]
            for choice in choices:
                keys = ("outs", "ins", "warps", "stages")
                gpu_step.TILES[name] = type(before)(**dict(zip(keys, choice, strict=True)))
                try:
                    found[f"batch {rows}, {name} {choice}"] = step_ms(bench, model, question_of)
                except gpu_step.StepBuildError as error:
                    found[f"batch {rows}, {name} {choice}"] = f"refused: {str(error)[:100]}"
            gpu_step.TILES[name] = before
    return found


def step_ms(bench: Bench, model: PaliGemmaModel, question_of: tuple[Any, ...]) -> float:
    """Least milliseconds of a step that is built with the tiles of now."""
    from paligemma.model.gpu_route import find_step

    step, _ = find_step(model.text)
    return 1e3 * min(bench.seconds(partial(step, *question_of), repeats=20, warm=3))


EXPERIMENTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "tiles of the step": compare_tiles,
    "profile": profile_steps,
    "attention": compare_attention,
    "logits": compare_logits,
}
