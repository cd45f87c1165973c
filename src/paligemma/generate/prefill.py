"""The start of every decoder: encode the image or reuse it, and fill the cache with the prompt.

Axes: B batch, I image tokens, D decoder width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paligemma.batch import Batch
from paligemma.errors import PromptError
from paligemma.generate.options import KV_CACHE_DTYPES, BeamOptions, DecodeOptions
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
    options: Sequence[DecodeOptions] | Sequence[BeamOptions],
    *,
    soft_tokens: Tensor | None,
) -> Prefilled:
    """Encode the images unless `soft_tokens` are given, and run the prompt through the decoder.

    Args:
        soft_tokens: float[B, I, D] from `model.encode_image`, or [1, I, D] to ask many questions
            about one image. The images of the batch are then ignored.
        options: options of each row from `per_row`; the cache has room for the longest answer.

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
    elif batch.images is not None:
        soft_tokens = model.encode_image(batch.images.to(model.device))
    num_image_tokens = 0 if soft_tokens is None else soft_tokens.shape[1]
    # The model never reads the last token of an answer, so it needs no slot.
    longest = max(one.max_new_tokens for one in options)
    capacity = num_image_tokens + batch.tokens.shape[1] + longest - 1
    cache = model.new_cache(num_rows, capacity, KV_CACHE_DTYPES[options[0].kv_cache_dtype])
    return fill_cache(model, batch, soft_tokens, cache)


def fill_cache(
    model: PaliGemmaModel, batch: Batch, soft_tokens: Tensor | None, cache: KVCache
) -> Prefilled:
    """Run encoded images and prompts through the decoder.

    Args:
        batch: prompts; their images are ignored.
        soft_tokens: float[B or 1, I, D], or None for text alone.
        cache: has a row for each prompt, with room for image, prompt and answer.
    """
    # Known before the tokens are on the device, which would have to be waited for.
    sees_all = batch.tokens.is_cpu and bool(batch.mask_input.all() and not batch.mask_ar.any())
    batch = replace(batch, images=None).to(model.device)
    if soft_tokens is not None:
        soft_tokens = soft_tokens.to(model.device).expand(batch.num_examples, -1, -1)
    valid = batch.mask_input.bool()
    logits, positions = model.prefill(
        soft_tokens, batch.tokens, batch.mask_ar, valid, cache, sees_all=sees_all
    )
    return Prefilled(logits=logits, positions=positions, cache=cache, real=valid.any(dim=1))


def join_soft_tokens(each: Sequence[Tensor | None]) -> Tensor | None:
    """The soft tokens of a batch.

    Args:
        each: float[1, I, D] of each prompt; None for all of them where they are text alone.

    Returns:
        float[B, I, D], or [1, I, D] where all prompts share one tensor, or None.
    """
    present = [one for one in each if one is not None]
    if not present:
        return None
    return present[0] if all(one is present[0] for one in present) else torch.cat(present)
