"""How much memory a model will need, computed from its shapes before anything is allocated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from paligemma.adapt.quant import Quant
from paligemma.bench.machine import free_memory_bytes
from paligemma.bench.subject import Subject
from paligemma.config import PaliGemmaConfig
from paligemma.errors import ConfigError
from paligemma.kernels.attention import SCORES_AT_ONCE
from paligemma.model.gemma import ROWS_AT_ONCE
from paligemma.model.kv_cache import stored_bytes
from paligemma.weights.sizes import Card, divide, parameter_bytes

# Python with torch, and the memory whose bandwidth is measured.
_PROCESS = 550_000_000
# Arrays of scores of capped attention that are in memory at once.
_SCORES = 3


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of a process that loads a model and answers.

    Attributes:
        weights: all parameters in their kind.
        loading: what loading needs at its fullest beside weights: the tensor that is packed.
        answering: cache, activations and logits of the largest prefill.
    """

    weights: int
    loading: int
    answering: int

    @property
    def total(self) -> int:
        """The most that the process will hold."""
        return self.weights + max(self.loading, self.answering) + _PROCESS


def estimate(
    config: PaliGemmaConfig,
    *,
    quant: Quant | None,
    dtype: torch.dtype,
    num_tokens: int,
    num_rows: int,
    cache_dtype: torch.dtype,
) -> Memory:
    """Count the bytes of a model and its answers.

    Args:
        dtype: of the parameters that are not quantised.
        num_tokens: of a row's prompt and answer.
        num_rows: rows answered at once.
        cache_dtype: of keys and values.
    """
    held = peak = 0
    for one in parameter_bytes(config, quant, dtype).values():
        held += one.stays
        peak = max(peak, held + one.drawn)
    text, slots = config.text, config.num_image_tokens + num_tokens
    kv_bytes = text.num_kv_heads * stored_bytes(text.head_dim, cache_dtype)
    cache = 2 * text.depth * slots * kv_bytes
    # Gate and up in float32, and their product as the inputs of the next matrix.
    widened = num_rows * slots
    if quant is not None and quant.is_packed:
        widened = min(widened, ROWS_AT_ONCE)
    activations = widened * 14 * text.mlp_dim + num_rows * slots * 16 * text.width
    if text.attn_softcap is not None:
        scores = num_rows * text.num_heads * slots**2
        activations += _SCORES * 4 * min(scores, SCORES_AT_ONCE)
    logits = 4 * config.vocab.size
    return Memory(
        weights=held,
        loading=peak - held,
        answering=num_rows * (cache + logits) + activations,
    )


def on_cards(subject: Subject, gigabytes: Sequence[int]) -> list[Card]:
    """How a model lies on GPUs with so much room, in bfloat16 where it is not quantised."""
    quant = subject.parsed_quant
    sizes = parameter_bytes(subject.config, quant, torch.bfloat16, packs=False)
    return divide(sizes, [size * 10**9 for size in gigabytes])


def require_room(memory: Memory) -> None:
    """Raise ConfigError where the free memory is known and less than is needed."""
    free = free_memory_bytes()
    if free is not None and free < memory.total:
        raise ConfigError(
            f"the model must fit into memory: {memory.total / 1e9:.1f} GB are needed, "
            f"{memory.weights / 1e9:.1f} GB of them for weights, and {free / 1e9:.1f} GB are free; "
            "ask for fewer bits with --quant, fewer rows, or another machine"
        )
