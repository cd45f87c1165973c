"""The common start of every decoder: encode or reuse the image, fill the cache with the prompt.

Axes: B batch, I image tokens, D decoder width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Integral, Real

import torch
from torch import Tensor

from paligemma.batch import Batch
from paligemma.errors import ConfigError, PromptError
from paligemma.model import KVCache, PaliGemmaModel

KV_CACHE_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
# The context Gemma was trained on; a longer answer is a mistake, and its cache is paid for in
# advance.
MAX_NEW_TOKENS = 8192


@dataclass(frozen=True, kw_only=True)
class ReadPrompt:
    """A prompt in the cache, about to be answered.

    Attributes:
        logits: float32[B, V] of the first answer token.
        positions: int64[B], rotary position of that token.
        cache: holds image and prompt, with room for the answer.
        real: bool[B], False for rows that only pad the batch.
    """

    logits: Tensor
    positions: Tensor
    cache: KVCache
    real: Tensor

    def repeat(self, times: int) -> ReadPrompt:
        """Every row `times` times, neighbours staying neighbours: a a b b."""
        rows = torch.arange(self.real.shape[0], device=self.real.device).repeat_interleave(times)
        return ReadPrompt(
            logits=self.logits[rows],
            positions=self.positions[rows],
            cache=self.cache.select(rows),
            real=self.real[rows],
        )


def read_prompt(
    model: PaliGemmaModel,
    batch: Batch,
    *,
    soft_tokens: Tensor | None,
    max_new_tokens: int,
    kv_cache_dtype: str,
) -> ReadPrompt:
    """Encode the images unless `soft_tokens` are given, and run the prompt through the decoder.

    Args:
        soft_tokens: float[B, I, D] from `model.encode_image`, or [1, I, D] to ask one image many
            questions. The images of the batch are then ignored.
        kv_cache_dtype: key of `KV_CACHE_DTYPES`.

    Raises:
        PromptError: the soft tokens belong to another number of rows.
    """
    num_rows = batch.num_examples
    if soft_tokens is not None:
        if soft_tokens.ndim != 3 or soft_tokens.shape[0] not in (1, num_rows):
            raise PromptError(
                f"soft tokens must be [1 or {num_rows}, tokens, width] for {num_rows} prompts, "
                f"got {list(soft_tokens.shape)}; pass what encode_image returned"
            )
        soft_tokens = soft_tokens.to(model.device).expand(num_rows, -1, -1)
        batch = replace(batch, images=None).to(model.device)
    else:
        batch = batch.to(model.device)
        soft_tokens = None if batch.images is None else model.encode_image(batch.images)
    num_image_tokens = 0 if soft_tokens is None else soft_tokens.shape[1]
    # The last token of an answer is never read back, so it needs no slot.
    capacity = num_image_tokens + batch.tokens.shape[1] + max_new_tokens - 1
    cache = model.new_cache(num_rows, capacity, KV_CACHE_DTYPES[kv_cache_dtype])
    valid = batch.mask_input.bool()
    logits, positions = model.prefill(soft_tokens, batch.tokens, batch.mask_ar, valid, cache)
    return ReadPrompt(logits=logits, positions=positions, cache=cache, real=valid.any(dim=1))


def require_whole(name: str, value: object) -> None:
    """Raise ConfigError unless a count or seed is a whole number."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{name} must be a whole number, got {value!r}")


def require_number(name: str, value: object) -> None:
    """Raise ConfigError unless a value is a number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(f"{name} must be a number, got {value!r}")


def check_bounds(max_new_tokens: int, kv_cache_dtype: str) -> None:
    """The rules that every decoder's options share.

    Raises:
        ConfigError: a length out of bounds or an unknown cache dtype.
    """
    require_whole("max_new_tokens", max_new_tokens)
    if not 1 <= max_new_tokens <= MAX_NEW_TOKENS:
        raise ConfigError(
            f"max_new_tokens must lie in 1..{MAX_NEW_TOKENS}, got {max_new_tokens}; "
            "captions need about 64, dense detection about 512"
        )
    if kv_cache_dtype not in KV_CACHE_DTYPES:
        raise ConfigError(
            f"kv_cache_dtype must be one of {', '.join(KV_CACHE_DTYPES)}, got {kv_cache_dtype!r}"
        )
