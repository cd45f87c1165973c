"""The start of every decoder: encode the image or reuse it, and fill the cache with the prompt.

Axes: B batch, I image tokens, D decoder width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paligemma.batch import Batch
from paligemma.errors import PromptError
from paligemma.generate.options import KV_CACHE_DTYPES
from paligemma.model import KVCache, PaliGemmaModel


@dataclass(frozen=True, kw_only=True)
class Prefilled:
    """Prompts that the model has read and not yet answered.

    Attributes:
        logits: float32[B, V], the logits of the first answer token.
        positions: int64[B], the rotary position of that token.
        cache: keys and values of image and prompt, with room for the answer.
        real: bool[B], False for rows that only pad the batch.
    """

    logits: Tensor
    positions: Tensor
    cache: KVCache
    real: Tensor

    def repeat(self, times: int) -> Prefilled:
        """Each row `times` times, copies side by side: a a b b."""
        rows = torch.arange(self.real.shape[0], device=self.real.device).repeat_interleave(times)
        return Prefilled(
            logits=self.logits[rows],
            positions=self.positions[rows],
            cache=self.cache.select(rows),
            real=self.real[rows],
        )


def prefill_prompt(
    model: PaliGemmaModel,
    batch: Batch,
    *,
    soft_tokens: Tensor | None,
    max_new_tokens: int,
    kv_cache_dtype: str,
) -> Prefilled:
    """Encode the images unless `soft_tokens` are given, and run the prompt through the decoder.

    Args:
        soft_tokens: float[B, I, D] from `model.encode_image`, or [1, I, D] to ask many questions
            about one image. The images of the batch are then ignored.
        max_new_tokens: number of answer tokens that the cache must have room for.
        kv_cache_dtype: a key of `KV_CACHE_DTYPES`.

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
    # The model never reads the last token of an answer, so it needs no slot.
    capacity = num_image_tokens + batch.tokens.shape[1] + max_new_tokens - 1
    cache = model.new_cache(num_rows, capacity, KV_CACHE_DTYPES[kv_cache_dtype])
    valid = batch.mask_input.bool()
    logits, positions = model.prefill(soft_tokens, batch.tokens, batch.mask_ar, valid, cache)
    return Prefilled(logits=logits, positions=positions, cache=cache, real=valid.any(dim=1))
