"""Experiments on a CUDA device, measured by gpu.py --experiments: no part of the library.

How far a decode step is from the memory's bandwidth, what a CUDA graph would give, where the time
goes, and what other routes of attention and logits cost.

Axes: B rows, S key tokens, N query heads, K key/value heads, H head dim, D width, V vocabulary.
"""

from __future__ import annotations

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
from paligemma.model import KVCache, PaliGemmaModel

if TYPE_CHECKING:
    from gpu import Bench

NUM_GRAPH_TOKENS = 32
_WARM_STEPS = 3
_PROFILED_STEPS = 10
_NUM_LINES = 15


class StaticCache:
    """A filled cache of which no shape and no slot is known to the host: a step can be captured.

    Attention reads the whole capacity; `valid` hides what is not written yet.

    Attributes:
        next: int64[B] on the device, the next slot of each row.
        length: number of slots that attention reads: all of them.
    """

    def __init__(self, cache: KVCache) -> None:
        self.keys, self.values = cache.keys, cache.values
        self.valid, self.positions = cache.valid, cache.positions
        self.length = cache.capacity
        self.next = cache.ends.to(cache.valid.device)
        self._rows = torch.arange(len(self.next), device=self.next.device)

    def extend(self, positions: Tensor) -> None:
        self.valid.scatter_(1, self.next[:, None], True)
        self.positions.scatter_(1, self.next[:, None], positions)

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        for stored, new in ((self.keys[layer], k), (self.values[layer], v)):
            stored.index_put_((self._rows, self.next), new[:, 0].to(stored.dtype))
        return self.keys[layer].to(k.dtype), self.values[layer].to(v.dtype)


class StaticDecoder:
    """Greedy decoding whose step reads and writes the same tensors every time."""

    def __init__(self, model: PaliGemmaModel, bench: Bench, num_rows: int, room: int) -> None:
        from gpu import question

        self.model = model
        batch = question(model, num_rows)
        assert batch.images is not None
        soft_tokens = model.encode_image(batch.images)
        capacity = soft_tokens.shape[1] + batch.tokens.shape[1] + room
        # A multiple of eight keeps every row of the mask aligned.
        cache = model.new_cache(num_rows, -(-capacity // 8) * 8, torch.bfloat16)
        logits, self.positions = model.prefill(
            soft_tokens, batch.tokens, batch.mask_ar, batch.mask_input, cache
        )
        self.first = logits.argmax(dim=-1)
        self.tokens = self.first.clone()
        self.cache = StaticCache(cache)
        self._start = self.positions.clone(), self.cache.next.clone(), cache.valid.clone()

    def step(self) -> None:
        logits = self.model.decode_step(self.tokens, self.positions, self.cache)
        self.tokens.copy_(logits.argmax(dim=-1))
        self.positions.add_(1)
        self.cache.next.add_(1)

    def rewind(self) -> None:
        """Back to the state after the prompt."""
        positions, slots, valid = self._start
        self.tokens.copy_(self.first)
        self.positions.copy_(positions)
        self.cache.next.copy_(slots)
        self.cache.valid.copy_(valid)

    def run(self, step: Callable[[], None], num_tokens: int) -> None:
        """So many steps from the prompt on."""
        self.rewind()
        for _ in range(num_tokens):
            step()

    def ids(self, step: Callable[[], None], num_tokens: int) -> list[list[int]]:
        self.rewind()
        found = []
        for _ in range(num_tokens):
            step()
            found.append(self.tokens.clone())
        return torch.stack(found, dim=1).tolist()


@torch.inference_mode()
def capture_decode_step(bench: Bench) -> dict[str, Any]:
    """The present step, the step with a static cache, and its CUDA graph, by batch size."""
    from gpu import bandwidth_gb_per_s, bytes_of_step, num_equal, question, raw_answer, spread

    model = bench.models["ours"]
    bandwidth = bandwidth_gb_per_s(bench)
    num_tokens = 4 if bench.is_tiny else NUM_GRAPH_TOKENS
    found: dict[str, Any] = {"bandwidth_gb_per_s": bandwidth}
    for num_rows in bench.batch_sizes:
        present = raw_answer(model, question(model, num_rows), 1 + num_tokens)
        decoder = StaticDecoder(model, bench, num_rows, num_tokens + 1)
        routes: dict[str, Callable[[], None]] = {"static cache": decoder.step}
        if bench.is_cuda:
            routes["CUDA graph"] = captured(decoder)
        num_bytes = bytes_of_step(model, num_rows, num_tokens)
        row: dict[str, Any] = {"floor_ms": num_bytes / bandwidth / 1e6}
        for name, step in routes.items():
            ids = decoder.ids(step, num_tokens)
            row[f"{name}, equal ids"] = min(num_equal([one[1:] for one in present], ids))
            whole = bench.seconds(partial(decoder.run, step, num_tokens))
            times = [one / num_tokens for one in whole]
            row[name] = {
                "step_ms": spread(times),
                "tokens_per_s": num_rows / statistics.median(times),
                "share_of_bandwidth": num_bytes / statistics.median(times) / 1e9 / bandwidth,
            }
        found[f"batch {num_rows}"] = row
    return found


def captured(decoder: StaticDecoder) -> Callable[[], None]:
    """The step as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_STEPS):
            decoder.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decoder.step()
    return graph.replay


@torch.inference_mode()
def profile_steps(bench: Bench) -> dict[str, Any]:
    """The most expensive operations of one prefill and of ten decode steps; host and device."""
    from gpu import question, raw_answer

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

    return {
        "prefill": profiled(bench, prefill),
        f"{_PROFILED_STEPS} decode steps": profiled(bench, decode),
    }


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


EXPERIMENTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "decode step as a CUDA graph": capture_decode_step,
    "profile": profile_steps,
    "attention": compare_attention,
    "logits": compare_logits,
}
