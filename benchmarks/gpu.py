"""A full-size model on a CUDA device beside transformers: correctness, speed and memory.

    PYTHONPATH=src python benchmarks/gpu.py --output results --experiments

Weights are random, made on the device, distinct for every tensor. Every stage stands alone: one
that fails is recorded with its error, results are written after each, and what the budget does not
reach is recorded as skipped. `--tiny` runs everything with small shapes on the CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from random_checkpoint import choose_config, count_parameters, random_tensor
from torch import Tensor

from paligemma.batch import Batch
from paligemma.bench import machine
from paligemma.config import PaliGemmaConfig
from paligemma.generate import DecodeOptions, generate
from paligemma.model import PaliGemmaModel
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.scenes import SceneOptions, draw_scene
from paligemma.weights import hf
from paligemma.weights.fewer_bits import in_fewer_bits
from paligemma.weights.hf_config import hf_config
from paligemma.weights.shapes import parameter_shapes

ROOT = Path(__file__).parents[1]
PROMPTS = ("caption en", "detect star ; circle", "ocr", "answer en how many objects are there?")
NUM_PROMPT_TOKENS = 16
QUANT_KINDS = ("int8", "fp8", "int4", "nf4")
# What one stage may take before it is given up.
STAGE_LIMIT_S = 150


@dataclass(kw_only=True)
class Bench:
    """What the stages share.

    Attributes:
        device: where models live.
        is_tiny: small shapes, for a check of this script.
        release: config of the first family at its first resolution.
        release_2: config of the second family.
        sizes_px: resolutions of the first family.
        batch_sizes: rows decoded together.
        num_tokens: tokens of an answer after the first.
        repeats: measurements of each number in each turn.
        models: models built so far, by name.
    """

    device: torch.device
    is_tiny: bool
    release: PaliGemmaConfig
    release_2: PaliGemmaConfig
    sizes_px: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    num_tokens: int
    repeats: int
    dtype: torch.dtype = torch.bfloat16
    models: dict[str, Any] = field(default_factory=dict)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def sync(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object], *, repeats: int = 0, warm: int = 1) -> list[float]:
        """Seconds of several runs, each from an idle device to an idle device."""
        for _ in range(warm):
            run()
        found = []
        for _ in range(repeats or self.repeats):
            self.sync()
            start = time.perf_counter()
            run()
            self.sync()
            found.append(time.perf_counter() - start)
        return found

    def reset_peak(self) -> int:
        """Forget the peak of memory; bytes that are in use now, all models included."""
        if not self.is_cuda:
            return 0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak_gb(self, before: int = 0) -> float | None:
        """Most memory in use since the peak was forgotten, beyond what was in use then."""
        return (torch.cuda.max_memory_allocated() - before) / 1e9 if self.is_cuda else None


def make_bench(*, is_tiny: bool, device: str | None = None) -> Bench:
    """The shapes that are measured."""
    if is_tiny:
        small = choose_config("tiny", "")
        capped = replace(small.text, attn_softcap=50.0, final_softcap=30.0, post_norms=True)
        return Bench(
            device=torch.device(device or "cpu"),
            is_tiny=True,
            release=small,
            release_2=replace(small, text=capped),
            sizes_px=(56, 112),
            batch_sizes=(1, 2),
            num_tokens=4,
            repeats=1,
        )
    return Bench(
        device=torch.device(device or "cuda"),
        is_tiny=False,
        release=choose_config("release", "google/paligemma-3b-pt-224"),
        release_2=choose_config("release", "google/paligemma2-3b-pt-224"),
        sizes_px=(224, 448, 896),
        batch_sizes=(1, 8, 32),
        num_tokens=48,
        repeats=5,
    )


# Models and questions


def build(config: PaliGemmaConfig, dtype: torch.dtype, device: torch.device) -> PaliGemmaModel:
    """A model with random weights made on the device."""
    with torch.device("meta"):
        model = PaliGemmaModel(config)
    shapes = parameter_shapes(config)
    tensors = {name: random_tensor(name, shape, dtype, device) for name, shape in shapes.items()}
    model.load_state_dict(tensors, assign=True)
    model.text.set_embed_scale(dtype)
    return model.requires_grad_(False).eval()


def set_resolution(model: PaliGemmaModel, image_size_px: int) -> None:
    """Give the tower a position table of another size."""
    config = model.config.with_resolution(image_size_px)
    shape = parameter_shapes(config)["vision.pos_embedding"]
    table = random_tensor("vision.pos_embedding", shape, model.dtype, model.device)
    model.vision.pos_embedding = torch.nn.Parameter(table, requires_grad=False)
    model.config = config


def question(model: PaliGemmaModel, num_rows: int) -> Batch:
    """Random pictures and prompts of one length, all distinct."""
    config, device = model.config, model.device
    side, generator = config.vision.image_size_px, torch.Generator().manual_seed(7)
    images = torch.rand((num_rows, side, side, 3), generator=generator) * 2 - 1
    ids = torch.randint(110, config.vocab.loc0, (num_rows, NUM_PROMPT_TOKENS), generator=generator)
    ids[:, 0], ids[:, -1] = config.vocab.bos, config.vocab.sep
    batch = Batch(
        images=images,
        tokens=ids,
        mask_ar=torch.zeros_like(ids),
        mask_input=torch.ones_like(ids, dtype=torch.bool),
    )
    return batch.to(device)


def our_answer(model: PaliGemmaModel, batch: Batch, num_tokens: int) -> list[list[int]]:
    """Ids of the answers, on the host; the end token does not stop them."""
    options = DecodeOptions(max_new_tokens=num_tokens, banned_ids=(model.config.vocab.eos,))
    return generate(model, batch, options).ids.tolist()


@torch.inference_mode()
def raw_answer(model: PaliGemmaModel, batch: Batch, num_tokens: int) -> list[list[int]]:
    """Greedy ids by the model's own methods, without what an engine adds to a step."""
    soft_tokens = None if batch.images is None else model.encode_image(batch.images)
    num_images = 0 if soft_tokens is None else soft_tokens.shape[1]
    capacity = num_images + batch.tokens.shape[1] + num_tokens
    cache = model.new_cache(batch.num_examples, capacity, torch.bfloat16)
    logits, positions = model.prefill(
        soft_tokens, batch.tokens, batch.mask_ar, batch.mask_input, cache
    )
    ids = [logits.argmax(dim=-1)]
    for _ in range(num_tokens - 1):
        logits = model.decode_step(ids[-1], positions, cache)
        positions = positions + 1
        ids.append(logits.argmax(dim=-1))
    return torch.stack(ids, dim=1).tolist()


@contextlib.contextmanager
def own_kernels() -> Iterator[None]:
    """With the package's own kernels for a GPU."""
    os.environ["PALIGEMMA_GPU_STEP"] = "on"
    try:
        yield
    finally:
        del os.environ["PALIGEMMA_GPU_STEP"]


def answer_by_kernels(model: PaliGemmaModel, batch: Batch, num_tokens: int) -> list[list[int]]:
    """`our_answer` by the package's own kernels."""
    with own_kernels():
        return our_answer(model, batch, num_tokens)


def build_peer(ours: PaliGemmaModel) -> Any:
    """transformers' model with the same weights."""
    from transformers import PaliGemmaConfig as PeerConfig
    from transformers import PaliGemmaForConditionalGeneration

    config, dtype = ours.config, ours.dtype
    num_rows = (config.vocab.size // hf.ROW_MULTIPLE + 1) * hf.ROW_MULTIPLE  # as published
    body = hf_config(config, dtype=dtype, num_rows=num_rows)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(ours.device):
            peer = PaliGemmaForConditionalGeneration(PeerConfig.from_dict(body))
    finally:
        torch.set_default_dtype(before)
    theirs = {hf.unspell(key): tensor for key, tensor in peer.state_dict().items()}
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            tensor = hf.to_file(name, parameter, config)
            target = theirs[hf.bare_name(name, config.generation)]
            target[len(tensor) :] = 0  # the rows that pad the table never win
            target[: len(tensor)].copy_(tensor)
    peer.generation_config.eos_token_id = None
    peer.generation_config.pad_token_id = config.vocab.pad
    return peer.eval()


def set_peer_resolution(peer: Any, ours: PaliGemmaModel) -> None:
    """Give the peer's tower our position table."""
    (embeddings,) = (m for m in peer.modules() if hasattr(m, "position_embedding"))
    table = ours.vision.pos_embedding.detach()[0]
    embeddings.position_embedding = torch.nn.Embedding.from_pretrained(table)
    embeddings.num_positions = embeddings.num_patches = len(table)
    embeddings.image_size = ours.config.vision.image_size_px
    embeddings.position_ids = torch.arange(len(table), device=table.device)[None]


def peer_answer(
    peer: Any, ours: PaliGemmaModel, batch: Batch, num_tokens: int, **options: Any
) -> list[list[int]]:
    """The peer's ids for the same question."""
    assert batch.images is not None
    num_rows = batch.num_examples
    image_ids = batch.tokens.new_full(
        (num_rows, ours.config.num_image_tokens), peer.config.image_token_id
    )
    ids = torch.cat((image_ids, batch.tokens), dim=1)
    answered = peer.generate(
        input_ids=ids,
        pixel_values=batch.images.permute(0, 3, 1, 2).to(ours.dtype),
        attention_mask=torch.ones_like(ids),
        token_type_ids=torch.zeros_like(ids),  # the prompt is read in both directions
        do_sample=False,
        max_new_tokens=num_tokens,
        **options,
    )
    return answered[:, ids.shape[1] :].tolist()


def num_equal(ours: list[list[int]], theirs: list[list[int]]) -> list[int]:
    """Length of the common beginning of each row."""
    pairs = zip(ours, theirs, strict=True)
    return [
        next((k for k, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), len(x))
        for x, y in pairs
    ]


# Stages


def describe(bench: Bench) -> dict[str, Any]:
    """The machine and its software."""
    facts = machine.describe("triton", "transformers", "numpy", "safetensors")
    if bench.is_cuda:
        properties = torch.cuda.get_device_properties(bench.device)
        facts |= {
            "device": properties.name,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "matmul_precision": torch.get_float32_matmul_precision(),
            "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        }
    for name, config in (("release", bench.release), ("release_2", bench.release_2)):
        facts[f"{name}_parameters"] = count_parameters(config)
    return facts


def bandwidth_gb_per_s(bench: Bench) -> float:
    """Median of copies far larger than the caches, bytes read plus bytes written."""
    num_bytes = 1 << (22 if bench.is_tiny else 31)
    source = torch.empty(num_bytes // 4, device=bench.device).normal_()
    target = torch.empty_like(source)
    copies = bench.seconds(lambda: target.copy_(source), repeats=10, warm=2)
    return 2 * num_bytes / statistics.median(copies) / 1e9


def measure_ceilings(bench: Bench) -> dict[str, Any]:
    """The two rates that bound everything else."""
    side = 256 if bench.is_tiny else 8192
    a, b = (torch.randn(side, side, device=bench.device, dtype=bench.dtype) for _ in range(2))
    products = bench.seconds(lambda: a @ b, repeats=10, warm=3)
    return {
        "bandwidth_gb_per_s": bandwidth_gb_per_s(bench),
        "matmul_tflop_per_s": 2 * side**3 / statistics.median(products) / 1e12,
    }


@contextlib.contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """ "highest" is float32, "high" is TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def compare_tiny(bench: Bench) -> dict[str, Any]:
    """The embedded model through the façade, on the device and on the CPU."""
    found: dict[str, Any] = {}
    picture = draw_scene(900, SceneOptions(size_px=224)).image
    num_tokens = 2 if bench.is_tiny else 32
    for cache_dtype in ("float32", "bfloat16"):
        cpu = PaliGemma.from_pretrained("tiny", device="cpu", kv_cache_dtype=cache_dtype)
        device = PaliGemma.from_pretrained("tiny", device=bench.device, kv_cache_dtype=cache_dtype)
        expected = [cpu.generate(picture, text, max_new_tokens=num_tokens) for text in PROMPTS]
        for precision in ("highest", "high"):
            with float32_products(precision):
                ours = [
                    device.generate(picture, text, max_new_tokens=num_tokens) for text in PROMPTS
                ]
            differences = [
                np.abs(np.array(a.token_logprobs) - np.array(b.token_logprobs)).max()
                for a, b in zip(ours, expected, strict=True)
                if len(a.token_logprobs) == len(b.token_logprobs)
            ]
            found[f"cache {cache_dtype}, products {precision}"] = {
                "equal_texts": sum(a.text == b.text for a, b in zip(ours, expected, strict=True)),
                "texts": len(PROMPTS),
                "largest_logprob_difference": float(max(differences, default=float("nan"))),
            }
    return found


def compare_two_layers(bench: Bench) -> dict[str, Any]:
    """Full width, two layers: logits of prefill and of decode steps against the CPU's float32."""
    found: dict[str, Any] = {}
    for name, config in (("PaliGemma", bench.release), ("PaliGemma 2", bench.release_2)):
        config = replace(
            config, vision=replace(config.vision, depth=2), text=replace(config.text, depth=2)
        )
        narrow = build(config, torch.bfloat16, bench.device)
        wide = copy.deepcopy(narrow).float()
        on_cpu = copy.deepcopy(wide).to("cpu")
        expected = forced_logits(on_cpu, torch.float32)
        for precision in ("highest", "high"):
            with float32_products(precision):
                found[f"{name}, float32, products {precision}"] = distance(
                    forced_logits(wide, torch.float32), expected
                )
        found[f"{name}, bfloat16"] = distance(forced_logits(narrow, torch.bfloat16), expected)
        del narrow, wide, on_cpu
    return found


@torch.inference_mode()
def forced_logits(model: PaliGemmaModel, cache_dtype: torch.dtype) -> Tensor:
    """float32[rows, 5, V] on the CPU: after the prompt, and after each of four given tokens."""
    batch = question(model, 2)
    batch.mask_input[1, -4:] = False  # rows of unequal length
    assert batch.images is not None
    soft_tokens = model.encode_image(batch.images)
    capacity = soft_tokens.shape[1] + batch.tokens.shape[1] + 4
    cache = model.new_cache(2, capacity, cache_dtype)
    logits, positions = model.prefill(
        soft_tokens, batch.tokens, batch.mask_ar, batch.mask_input, cache
    )
    found = [logits]
    for token in range(120, 124):
        tokens = torch.full((2,), token, device=model.device)
        found.append(model.decode_step(tokens, positions, cache))
        positions = positions + 1
    return torch.stack(found, dim=1).float().cpu()


def distance(ours: Tensor, expected: Tensor) -> dict[str, Any]:
    difference = ours.log_softmax(dim=-1) - expected.log_softmax(dim=-1)
    best = expected.argmax(dim=-1, keepdim=True)
    return {
        "relative": float((ours - expected).norm() / expected.norm()),
        "largest_logprob_difference_of_the_best": float(difference.gather(2, best).abs().max()),
        "equal_best": int((ours.argmax(dim=-1, keepdim=True) == best).sum()),
        "of": best.numel(),
    }


def build_ours(bench: Bench) -> dict[str, Any]:
    """Time and memory of the full-size model on the device."""
    bench.reset_peak()
    bench.sync()
    start = time.perf_counter()
    bench.models["ours"] = build(bench.release, bench.dtype, bench.device)
    bench.sync()
    return {"build_s": time.perf_counter() - start, "peak_gb": bench.peak_gb()}


def make_peer(bench: Bench) -> dict[str, Any]:
    start = time.perf_counter()
    bench.models["peer"] = build_peer(bench.models["ours"])
    bench.sync()
    return {
        "build_s": time.perf_counter() - start,
        "attention": bench.models["peer"].config._attn_implementation,
    }


def engines_of(bench: Bench) -> dict[str, Callable[[Batch, int], list[list[int]]]]:
    ours, peer = bench.models["ours"], bench.models.get("peer")
    engines = {"ours": lambda batch, n: our_answer(ours, batch, n)}
    engines["ours, own kernels"] = lambda batch, n: answer_by_kernels(ours, batch, n)
    if peer is not None:
        engines["transformers"] = lambda batch, n: peer_answer(peer, ours, batch, n)
    return engines


def measure_first_token(bench: Bench) -> dict[str, Any]:
    """Picture and prompt to the first id on the host, by resolution, in turns."""
    ours, peer = bench.models["ours"], bench.models.get("peer")
    found: dict[str, Any] = {}
    for side in bench.sizes_px:
        set_resolution(ours, side)
        if peer is not None:
            set_peer_resolution(peer, ours)
        batch = question(ours, 1)
        row: dict[str, Any] = {"tokens": ours.config.num_image_tokens + NUM_PROMPT_TOKENS}
        times: dict[str, list[float]] = {}
        firsts = {}
        engines = engines_of(bench)
        for _ in range(2):
            for name, ask in engines.items():
                before = bench.reset_peak()
                firsts[name] = ask(batch, 1)
                times.setdefault(name, []).extend(bench.seconds(partial(ask, batch, 1)))
                row[f"{name}_working_gb"] = bench.peak_gb(before)
        for name, seconds in times.items():
            row[f"{name}_ms"] = spread(seconds)
        if peer is not None:
            row["equal_first_id"] = firsts["ours"] == firsts["transformers"]
        row["parts_ms"] = prefill_parts(bench, ours, batch)
        found[f"{side} px"] = row
    set_resolution(ours, bench.sizes_px[0])
    if peer is not None:
        set_peer_resolution(peer, ours)
    return found


@torch.inference_mode()
def prefill_parts(bench: Bench, model: PaliGemmaModel, batch: Batch) -> dict[str, Any]:
    """Milliseconds of the tower and of the decoder."""
    assert batch.images is not None
    images = batch.images
    soft_tokens = model.encode_image(images)
    capacity = soft_tokens.shape[1] + batch.tokens.shape[1]

    def prefill() -> None:
        cache = model.new_cache(batch.num_examples, capacity, torch.bfloat16)
        model.prefill(soft_tokens, batch.tokens, batch.mask_ar, batch.mask_input, cache)

    return {
        "tower": spread(bench.seconds(lambda: model.encode_image(images))),
        "decoder": spread(bench.seconds(prefill)),
    }


def measure_decode(bench: Bench) -> dict[str, Any]:
    """Tokens a second after the first, by batch size, in turns, and the share of the bandwidth."""
    return decode_table(bench, engines_of(bench), bench.models["ours"])


def decode_table(
    bench: Bench,
    engines: dict[str, Callable[[Batch, int], list[list[int]]]],
    model: PaliGemmaModel,
) -> dict[str, Any]:
    found: dict[str, Any] = {"bandwidth_gb_per_s": bandwidth_gb_per_s(bench)}
    engines = {**engines, "ours, model alone": lambda batch, n: raw_answer(model, batch, n)}
    repeats = max(1, bench.repeats // 2)
    for num_rows in bench.batch_sizes:
        batch = question(model, num_rows)
        num_bytes = bytes_of_step(model, num_rows, bench.num_tokens)
        row: dict[str, Any] = {"gb_of_a_step": num_bytes / 1e9}
        steps: dict[str, list[float]] = {}
        answers = {}
        for _ in range(2):
            for name, ask in engines.items():
                before = bench.reset_peak()
                answers[name] = ask(batch, 1 + bench.num_tokens)
                row[f"{name}, working_gb"] = bench.peak_gb(before)
                first = min(bench.seconds(partial(ask, batch, 1), repeats=repeats))
                long = partial(ask, batch, 1 + bench.num_tokens)
                whole = bench.seconds(long, repeats=repeats, warm=0)
                steps.setdefault(name, []).extend((s - first) / bench.num_tokens for s in whole)
        for name, seconds in steps.items():
            step_s = statistics.median(seconds)
            row[name] = {
                "step_ms": spread(seconds),
                "tokens_per_s": num_rows / step_s,
                "share_of_bandwidth": num_bytes / step_s / 1e9 / found["bandwidth_gb_per_s"],
            }
        for name in answers:
            if name != "ours":
                row[f"equal ids, ours and {name}"] = min(num_equal(answers["ours"], answers[name]))
        found[f"batch {num_rows}"] = row
    return found


def bytes_of_step(model: PaliGemmaModel, num_rows: int, num_tokens: int) -> int:
    """Fewest bytes that a decode step reads: all weights of the decoder, and the cache half-way."""
    text = model.config.text
    weights = sum(p.numel() * p.element_size() for p in model.text.parameters())
    length = model.config.num_image_tokens + NUM_PROMPT_TOKENS + num_tokens // 2
    return weights + 4 * num_rows * length * text.depth * text.num_kv_heads * text.head_dim


def measure_second_family(bench: Bench) -> dict[str, Any]:
    """PaliGemma 2 of the same size: this package alone."""
    start = time.perf_counter()
    model = build(bench.release_2, bench.dtype, bench.device)
    bench.sync()
    build_s = time.perf_counter() - start
    batch = question(model, 1)
    first = bench.seconds(lambda: our_answer(model, batch, 1))
    return {
        "build_s": build_s,
        "first_token_ms": spread(first),
        "parts_ms": prefill_parts(bench, model, batch),
        **decode_table(
            bench,
            {
                "ours": lambda rows, n: our_answer(model, rows, n),
                "ours, own kernels": lambda rows, n: answer_by_kernels(model, rows, n),
            },
            model,
        ),
    }


def measure_fewer_bits(bench: Bench) -> dict[str, Any]:
    """Every kind of --quant beside bfloat16 at batch 1, and torchao's kinds where it is there."""
    ours = bench.models["ours"]
    batch, found = question(ours, 1), {}
    expected = forced_logits(ours, torch.bfloat16)
    makers = {kind: partial(in_fewer_bits, ours, kind) for kind in QUANT_KINDS}
    makers = {"bfloat16": lambda: ours, **makers}
    try:
        from torchao import quantization as torchao
    except ImportError:
        found["torchao"] = "left out: the package torchao is not installed"
    else:
        tiles = {"group_size": 32, "int4_packing_format": "tile_packed_to_4d"}
        configs = {"int8": torchao.Int8WeightOnlyConfig(), "fp8": torchao.Float8WeightOnlyConfig()}
        if bench.is_cuda:
            configs["int4"] = torchao.Int4WeightOnlyConfig(**tiles)

        def by_torchao(config: Any) -> PaliGemmaModel:
            model = copy.deepcopy(ours)
            torchao.quantize_(model.text.blocks, config)
            return model

        makers |= {f"torchao {k}, decoder": partial(by_torchao, c) for k, c in configs.items()}
    for name, make in makers.items():
        before = bench.reset_peak()
        start = time.perf_counter()
        try:
            model = make()
            bench.sync()
            row: dict[str, Any] = {
                "quantise_s": time.perf_counter() - start,
                "quantise_peak_gb": bench.peak_gb(before),
                "against bfloat16": distance(forced_logits(model, torch.bfloat16), expected),
            }
            row |= speed_of(bench, model, batch)
            with own_kernels():
                by_kernels = distance(forced_logits(model, torch.bfloat16), expected)
                row["own kernels"] = {
                    "decoding": model.decode_route(),
                    "against bfloat16": by_kernels,
                    **speed_of(bench, model, batch),
                }
        except Exception as error:
            row = {"error": f"{type(error).__name__}: {error}"[:500]}
        found[name] = row
        model = None
    return found


def speed_of(bench: Bench, model: PaliGemmaModel, batch: Batch) -> dict[str, Any]:
    """First token and decoding of one row by the model's own methods."""
    repeats = max(1, bench.repeats // 2)
    first = bench.seconds(partial(raw_answer, model, batch, 1), repeats=repeats)
    long = partial(raw_answer, model, batch, 1 + bench.num_tokens)
    whole = bench.seconds(long, repeats=repeats, warm=0)
    steps = [(s - min(first)) / bench.num_tokens for s in whole]
    return {
        "first_token_ms": spread(first),
        "step_ms": spread(steps),
        "tokens_per_s": 1 / statistics.median(steps),
    }


def measure_compiled_peer(bench: Bench) -> dict[str, Any]:
    """transformers with a static cache, and its decoder compiled, at batch 1."""
    peer, ours = bench.models["peer"], bench.models["ours"]
    batch, found = question(ours, 1), {}
    repeats = max(1, bench.repeats // 2)
    ask = partial(peer_answer, peer, ours, batch, cache_implementation="static")
    long = partial(ask, 1 + bench.num_tokens)
    for kind in ("static cache", "static cache, compiled"):
        if kind.endswith("compiled"):
            how = {"mode": "reduce-overhead"} if bench.is_cuda else {"backend": "eager"}
            peer.model.language_model.compile(**how)
        start = time.perf_counter()
        ask(1)
        long()
        warm_s = time.perf_counter() - start
        first = min(bench.seconds(partial(ask, 1), repeats=repeats))
        whole = bench.seconds(long, repeats=repeats)
        steps = [(s - first) / bench.num_tokens for s in whole]
        found[kind] = {
            "warm_up_s": warm_s,
            "first_token_ms": first * 1e3,
            "step_ms": spread(steps),
            "tokens_per_s": 1 / statistics.median(steps),
        }
    return found


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, least and most in milliseconds."""
    values = [1e3 * one for one in seconds]
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One part of the run."""

    name: str
    run: Callable[[Bench], dict[str, Any]]
    limit_s: int = STAGE_LIMIT_S


def stages_of(options: argparse.Namespace) -> list[Stage]:
    from gpu_experiments import EXPERIMENTS

    stages = [
        Stage(name="ceilings", run=measure_ceilings, limit_s=60),
        Stage(name="tiny against the CPU", run=compare_tiny, limit_s=200),
        Stage(name="two full-width layers against the CPU", run=compare_two_layers),
        Stage(name="build ours", run=build_ours, limit_s=90),
    ]
    if not options.no_peer:
        stages.append(Stage(name="build transformers", run=make_peer, limit_s=90))
    stages += [
        Stage(name="first token", run=measure_first_token),
        Stage(name="decoding", run=measure_decode),
    ]
    stages.append(Stage(name="fewer bits", run=measure_fewer_bits))
    stages.append(Stage(name="PaliGemma 2", run=measure_second_family))
    if options.experiments:
        stages += [Stage(name=f"experiment: {name}", run=run) for name, run in EXPERIMENTS.items()]
    if not options.no_peer:
        # The last, because a compiler may take long or bring down the process.
        compiled = Stage(
            name="transformers compiled", run=measure_compiled_peer, limit_s=options.compile_s
        )
        stages.append(compiled)
    if options.only:
        stages = [one for one in stages if one.name in options.only.split(",")]
    return stages


# The run


class OverTimeError(Exception):
    """A stage used up its time."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OverTimeError in the block after so many seconds; a call into C ends first."""

    def stop(_number: int, _frame: object) -> None:
        raise OverTimeError(f"given up after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_stages(bench: Bench, stages: list[Stage], output: Path, budget_s: float) -> dict[str, Any]:
    """Everything that was measured; written to `output` after each stage."""
    output.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"machine": describe(bench), "stages": {}}
    begin = time.perf_counter()
    for stage in stages:
        left = budget_s - (time.perf_counter() - begin)
        result: dict[str, Any] = {}
        start = time.perf_counter()
        if left < 5:
            result = {"skipped": f"the budget of {budget_s:.0f} s was used up"}
        else:
            try:
                with time_limit(min(stage.limit_s, left)):
                    result = stage.run(bench)
            except Exception as error:
                last = traceback.format_exc().strip().splitlines()
                result = {"error": f"{type(error).__name__}: {error}"[:2000], "trace": last[-16:]}
        result["stage_s"] = time.perf_counter() - start
        report["stages"][stage.name] = result
        (output / "gpu.json").write_text(json.dumps(report, indent=1, default=str) + "\n")
        print(f"== {stage.name}: {result['stage_s']:.1f} s", flush=True)
        print("\n".join(lines_of(result)), flush=True)
    return report


def lines_of(result: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """One line for each number or list of numbers."""
    for key, value in result.items():
        label = f"{prefix}{key}"
        if isinstance(value, dict) and set(value) == {"median", "min", "max"}:
            yield f"  {label}: {value['median']:.3f} [{value['min']:.3f}..{value['max']:.3f}]"
        elif isinstance(value, dict):
            yield from lines_of(value, f"{label} | ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield f"  {label}: {len(value)} lines in gpu.json"
        elif isinstance(value, list):
            yield from (f"  {label}: {one}" for one in value)
        else:
            yield f"  {label}: {short(value)}"


def table_of(stages: dict[str, Any]) -> Iterator[str]:
    """First token and decoding as Markdown."""
    yield "| first token, ms | ours | transformers |"
    yield "|---|---|---|"
    for side, row in stages.get("first token", {}).items():
        if isinstance(row, dict):
            cells = [row.get(f"{name}_ms", {}).get("median") for name in ("ours", "transformers")]
            yield f"| {side} | " + " | ".join(map(short, cells)) + " |"
    yield "| decoding | ms a step | tokens/s | share of bandwidth |"
    yield "|---|---|---|---|"
    for stage in ("decoding", "PaliGemma 2"):
        for size, row in stages.get(stage, {}).items():
            for name, cell in row.items() if isinstance(row, dict) else ():
                if isinstance(cell, dict) and "tokens_per_s" in cell:
                    values = cell["step_ms"]["median"], cell["tokens_per_s"]
                    numbers = (*values, cell["share_of_bandwidth"])
                    yield f"| {stage}, {size}, {name} | " + " | ".join(map(short, numbers)) + " |"


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure a full-size model on a CUDA device.")
    parser.add_argument("--output", type=Path, required=True, help="folder of gpu.json")
    parser.add_argument("--budget-s", type=float, default=480, help="bound of the whole run")
    parser.add_argument("--compile-s", type=int, default=120, help="bound of the compiled peer")
    parser.add_argument("--experiments", action="store_true", help="also what is no part of it yet")
    parser.add_argument("--only", help="stages by name, with commas; by default all")
    parser.add_argument("--no-peer", action="store_true", help="this package alone")
    parser.add_argument("--tiny", action="store_true", help="small shapes on the CPU")
    parser.add_argument("--device", help="by default cuda, with --tiny cpu")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    bench = make_bench(is_tiny=options.tiny, device=options.device)
    report = run_stages(bench, stages_of(options), options.output, options.budget_s)
    print("\n".join(table_of(report["stages"])))
    failed = [name for name, found in report["stages"].items() if "error" in found]
    print(f"stages: {len(report['stages'])}, failed: {', '.join(failed) or 'none'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
