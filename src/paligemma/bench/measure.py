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
from paligemma.bench.linear import Line, Points
from paligemma.bench.machine import Limits, LimitsOfMachine, peak_memory_bytes
from paligemma.config import PaliGemmaConfig
from paligemma.generate.options import KV_CACHE_DTYPES, DecodeOptions
from paligemma.generate.prefill import Prefilled, prefill_prompt
from paligemma.model import PaliGemmaModel

# Ids of the prompts: any from the middle of the vocabulary.
_FIRST_ID = 300


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What is measured.

    Attributes:
        num_prompts: tokens of the prompt; the first number holds for everything but the prefill.
        num_new: tokens that are decoded after the first.
        batches: sizes of batches for decoding, all about one picture.
        repetitions: how often everything is measured; medians are reported.
        kv_cache_dtype: as in `DecodeOptions`.
    """

    num_prompts: tuple[int, ...] = (10,)
    num_new: int = 16
    batches: tuple[int, ...] = (1,)
    repetitions: int = 3
    kv_cache_dtype: str = "bfloat16"


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked: random, but the same each time.

    Attributes:
        images: float32[1, R, R, 3] in [-1, 1].
        tokens: int64[B, T], the longest prompt of the most rows.
    """

    images: torch.Tensor
    tokens: torch.Tensor

    @classmethod
    def draw(cls, config: PaliGemmaConfig, options: BenchOptions) -> Question:
        """A picture and prompts of ids from the middle of the vocabulary."""
        generator = torch.Generator().manual_seed(0)
        side, size = config.vision.image_size_px, (max(options.batches), max(options.num_prompts))
        last = max(_FIRST_ID + 1, min(config.vocab.loc0, 20_000))
        return cls(
            images=torch.rand(1, side, side, 3, generator=generator) * 2 - 1,
            tokens=torch.randint(min(_FIRST_ID, last - 1), last, size, generator=generator),
        )


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One repetition.

    Attributes:
        vision_s: time of the picture.
        prefills_s: tokens of the prompt -> time to the first token after the picture.
        rows_s: batch -> the same for a batch of the first of these prompts.
        steps_s: batch -> time of a decoding step, the median of its tokens.
        limits: what the machine did just before.
    """

    vision_s: float
    prefills_s: dict[int, float]
    rows_s: dict[int, float]
    steps_s: dict[int, float]
    limits: Limits

    @property
    def prefill_s(self) -> float:
        """Time of the first prompt."""
        return next(iter(self.prefills_s.values()))

    @property
    def first_token_s(self) -> float:
        """Time from picture and prompt to the first token."""
        return self.vision_s + self.prefill_s


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Everything about one model.

    Attributes:
        options: what was measured.
        costs: what an answer needs at least.
        timings: one of each repetition.
        peak_memory_bytes: of the process, after all; None where the system does not tell.
    """

    options: BenchOptions
    costs: Costs
    timings: tuple[Timing, ...]
    peak_memory_bytes: int | None

    @property
    def first_token_s(self) -> float:
        """Median time from picture and prompt to the first token, in seconds."""
        return statistics.median(one.first_token_s for one in self.timings)

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
            operations / one.limits.operations_per_s / one.first_token_s
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

    def growth(self) -> dict[str, Points]:
        """Median seconds over what they should grow linearly with."""

        def medians(sizes: Sequence[int], seconds: Callable[[Timing, int], float]) -> Points:
            return [(n, statistics.median(seconds(one, n) for one in self.timings)) for n in sizes]

        num_new = self.options.num_new
        return {
            "the first token, over tokens of the prompt": medians(
                self.options.num_prompts, lambda one, n: one.vision_s + one.prefills_s[n]
            ),
            f"all answers of {num_new + 1} tokens, over rows": medians(
                self.options.batches,
                lambda one, n: one.vision_s + one.rows_s[n] + num_new * one.steps_s[n],
            ),
        }

    def lines(self) -> dict[str, Line]:
        """The lines through what was measured at three sizes or more."""
        found = {name: Line.through(points) for name, points in self.growth().items()}
        return {name: line for name, line in found.items() if line is not None}

    def to_json(self) -> dict[str, Any]:
        """Everything that was measured, and what follows from it."""
        batches = self.options.batches
        return {
            "first_token_s": self.first_token_s,
            "vision_s": statistics.median(one.vision_s for one in self.timings),
            "prefill_s": statistics.median(one.prefill_s for one in self.timings),
            "growth_s": {name: dict(points) for name, points in self.growth().items()},
            "lines": {name: asdict(line) for name, line in self.lines().items()},
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
    question = Question.draw(model.config, options)
    for number in range(options.repetitions):
        on_progress(f"repetition {number + 1} of {options.repetitions}")
        timings.append(repetition(model, options, question, limits.read())[0])
    return Figures(
        options=options,
        costs=costs_of(model, options.num_prompts[0], KV_CACHE_DTYPES[options.kv_cache_dtype]),
        timings=tuple(timings),
        peak_memory_bytes=peak_memory_bytes(),
    )


@torch.inference_mode()
def repetition(
    model: PaliGemmaModel, options: BenchOptions, question: Question, limits: Limits
) -> tuple[Timing, torch.Tensor]:
    """Measure everything once.

    Returns:
        The times, and float32[V], the first logits of the first prompt.
    """
    images = question.images.to(model.device)
    soft_tokens, vision_s = _timed(lambda: model.encode_image(images))
    first = None
    prefills: dict[int, float] = {}
    rows: dict[int, float] = {}
    steps: dict[int, float] = {}
    for num in options.num_prompts:
        tokens = question.tokens[:1, :num]
        prompt, prefills[num] = _timed(partial(_prefill, model, options, soft_tokens, tokens))
        first = prompt if first is None else first
    assert first is not None
    for batch in options.batches:
        if batch == 1:
            prompt, rows[1] = first, prefills[options.num_prompts[0]]
        else:
            tokens = question.tokens[:batch, : options.num_prompts[0]]
            prompt, rows[batch] = _timed(partial(_prefill, model, options, soft_tokens, tokens))
        steps[batch] = statistics.median(_steps(model, prompt, options.num_new))
    timing = Timing(
        vision_s=vision_s, prefills_s=prefills, rows_s=rows, steps_s=steps, limits=limits
    )
    return timing, first.logits[0]


def _prefill(
    model: PaliGemmaModel, options: BenchOptions, soft_tokens: torch.Tensor, ids: torch.Tensor
) -> Prefilled:
    rows = Batch(
        images=None,
        tokens=ids,
        mask_ar=torch.zeros_like(ids),
        mask_input=torch.ones_like(ids, dtype=torch.bool),
    )
    own = DecodeOptions(max_new_tokens=options.num_new + 1, kv_cache_dtype=options.kv_cache_dtype)
    return prefill_prompt(model, rows, [own] * len(ids), soft_tokens=soft_tokens)


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
