"""Times of a loaded model: first token in its parts, and tokens a second by batch.

Axes: B batch, R picture size.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from paligemma.batch import Batch
from paligemma.bench.costs import Costs, costs_of
from paligemma.bench.machine import Limits, LimitsOfMachine, peak_memory_bytes
from paligemma.generate.options import KV_CACHE_DTYPES, DecodeOptions
from paligemma.generate.prefill import Prefilled, prefill_prompt
from paligemma.model import PaliGemmaModel

# Ids of the prompts: any from the middle of the vocabulary.
_FIRST_ID = 300


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What is measured.

    Attributes:
        num_prompt: tokens of the prompt.
        num_new: tokens that are decoded after the first.
        batches: sizes of batches for decoding, all about one picture.
        repetitions: how often everything is measured; medians are reported.
        kv_cache_dtype: as in `DecodeOptions`.
    """

    num_prompt: int = 10
    num_new: int = 16
    batches: tuple[int, ...] = (1,)
    repetitions: int = 3
    kv_cache_dtype: str = "bfloat16"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One repetition.

    Attributes:
        vision_s, prefill_s: the two parts of the time to the first token.
        steps_s: batch -> time of a decoding step, the median of its tokens.
        limits: what the machine did just before.
    """

    vision_s: float
    prefill_s: float
    steps_s: dict[int, float]
    limits: Limits


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Everything about one model.

    Attributes:
        costs: what an answer needs at least.
        timings: one of each repetition.
        peak_memory_bytes: of the process, after all; None where the system does not tell.
    """

    costs: Costs
    timings: tuple[Timing, ...]
    peak_memory_bytes: int | None

    @property
    def first_token_s(self) -> float:
        """Median time from picture and prompt to the first token, in seconds."""
        return statistics.median(one.vision_s + one.prefill_s for one in self.timings)

    def step_s(self, batch: int) -> float:
        """Median time of a decoding step of a batch, in seconds."""
        return statistics.median(one.steps_s[batch] for one in self.timings)

    def tokens_per_s(self, batch: int) -> float:
        """Tokens of all rows in a second."""
        return batch / self.step_s(batch)

    def compute_share(self) -> float | None:
        """The least time to the first token over the measured one; None where it is not known."""
        operations = self.costs.vision_operations + self.costs.prefill_operations
        shares = [
            operations / one.limits.operations_per_s / (one.vision_s + one.prefill_s)
            for one in self.timings
            if one.limits.operations_per_s
        ]
        return statistics.median(shares) if shares else None

    def bandwidth_share(self, batch: int) -> float | None:
        """Bytes that a step reads a second, over the bandwidth of the same minute."""
        read = self.costs.step_bytes + batch * self.costs.row_bytes
        shares = [
            read / one.steps_s[batch] / one.limits.bytes_per_s
            for one in self.timings
            if one.limits.bytes_per_s
        ]
        return statistics.median(shares) if shares else None

    def to_json(self) -> dict[str, Any]:
        """Everything that was measured, and what follows from it."""
        batches = list(self.timings[0].steps_s)
        return {
            "first_token_s": self.first_token_s,
            "vision_s": statistics.median(one.vision_s for one in self.timings),
            "prefill_s": statistics.median(one.prefill_s for one in self.timings),
            "tokens_per_s": {batch: self.tokens_per_s(batch) for batch in batches},
            "share_of_operations": self.compute_share(),
            "share_of_bandwidth": {batch: self.bandwidth_share(batch) for batch in batches},
            "peak_memory_gb": self.peak_memory_bytes and self.peak_memory_bytes / 1e9,
            "costs": asdict(self.costs),
            "timings": [asdict(one) for one in self.timings],
        }


def measure(
    model: PaliGemmaModel,
    options: BenchOptions,
    *,
    kind: str,
    on_progress: Callable[[str], None] = lambda words: None,
) -> Figures:
    """Measure a model with random pixels and ids; its answers do not matter.

    Args:
        kind: of its weights, which decides what limits its products.
        on_progress: called with what is measured next.
    """
    limits, timings = LimitsOfMachine(kind), []
    for number in range(options.repetitions):
        on_progress(f"repetition {number + 1} of {options.repetitions}")
        timings.append(_repetition(model, options, limits))
    return Figures(
        costs=costs_of(model, options.num_prompt, KV_CACHE_DTYPES[options.kv_cache_dtype].itemsize),
        timings=tuple(timings),
        peak_memory_bytes=peak_memory_bytes(),
    )


@torch.inference_mode()
def _repetition(
    model: PaliGemmaModel,
    options: BenchOptions,
    limits: LimitsOfMachine,
) -> Timing:
    now = limits.read()
    side = model.config.vision.image_size_px
    images = torch.rand(1, side, side, 3) * 2 - 1
    soft_tokens, vision_s = _timed(lambda: model.encode_image(images.to(model.device)))
    prefill_s = 0.0
    steps: dict[int, float] = {}
    for batch in sorted({1, *options.batches}):
        prompt, taken = _timed(partial(_prefill, model, options, soft_tokens, batch))
        if batch == 1:
            prefill_s = taken
        if batch in options.batches:
            steps[batch] = statistics.median(_steps(model, prompt, options.num_new))
    return Timing(vision_s=vision_s, prefill_s=prefill_s, steps_s=steps, limits=now)


def _prefill(
    model: PaliGemmaModel, options: BenchOptions, soft_tokens: torch.Tensor, batch: int
) -> Prefilled:
    last = max(_FIRST_ID + 1, min(model.config.vocab.loc0, 20_000))
    ids = torch.randint(min(_FIRST_ID, last - 1), last, (batch, options.num_prompt))
    rows = Batch(
        images=None,
        tokens=ids,
        mask_ar=torch.zeros_like(ids),
        mask_input=torch.ones_like(ids, dtype=torch.bool),
    )
    own = DecodeOptions(max_new_tokens=options.num_new + 1, kv_cache_dtype=options.kv_cache_dtype)
    return prefill_prompt(model, rows, [own] * batch, soft_tokens=soft_tokens)


def _steps(model: PaliGemmaModel, prompt: Prefilled, num_new: int) -> Sequence[float]:
    logits, positions, taken = prompt.logits, prompt.positions, []
    for _ in range(num_new):
        tokens = logits.argmax(dim=1)
        start = time.perf_counter()
        logits = model.decode_step(tokens, positions, prompt.cache)
        _wait(model)
        taken.append(time.perf_counter() - start)
        positions = positions + 1
    return taken


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def _wait(model: PaliGemmaModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
