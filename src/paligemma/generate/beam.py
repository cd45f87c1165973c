"""Beam search as the original does it, and a length-penalised variant by name.

Axes: B batch, K beams, T answer tokens, V vocabulary.
Source: big_vision trainers/proj/paligemma/predict_fns.py, beam_decode.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paligemma.batch import Batch
from paligemma.generate.generation import Generation, require_numbers
from paligemma.generate.options import BeamOptions
from paligemma.generate.prefill import prefill_prompt
from paligemma.model import PaliGemmaModel


@dataclass
class _Live:
    """Hypotheses without EOS: scores [B, K], ids and logprobs [B, K, T]."""

    scores: Tensor
    ids: Tensor
    logprobs: Tensor

    def extend(self, logprobs: Tensor, index: int) -> Tensor:
        """Keep the best K continuations of each example; returns the parent of each, int64[B, K].

        Args:
            logprobs: float32[B, K, V] of the next token, -inf at EOS.
        """
        vocab_size = logprobs.shape[-1]
        pool = (self.scores[..., None] + logprobs).flatten(1)
        self.scores, flat = pool.topk(self.scores.shape[1], dim=1)
        parents, tokens = flat // vocab_size, flat % vocab_size
        chosen = logprobs.flatten(1).gather(1, flat)
        self.ids = _take(self.ids, parents)
        self.logprobs = _take(self.logprobs, parents)
        self.ids[:, :, index] = tokens
        self.logprobs[:, :, index] = chosen
        return parents


@dataclass
class _Finished:
    """The best hypothesis with EOS of each example: value [B] by which it is compared, ids and
    logprobs [B, T]."""

    value: Tensor
    ids: Tensor
    logprobs: Tensor
    lengths: Tensor

    def offer(
        self, live: _Live, eos_logprobs: Tensor, index: int, divisor: float, eos: int
    ) -> None:
        """End each live hypothesis now and keep the best if it beats what is held.

        Args:
            eos_logprobs: float32[B, K].
        """
        value, beam = ((live.scores + eos_logprobs) / divisor).max(dim=1, keepdim=True)
        # NaN wins too, so that it is reported instead of passed over.
        better = ~(value <= self.value[:, None])
        ids, logprobs = _take(live.ids, beam)[:, 0], _take(live.logprobs, beam)[:, 0]
        ids[:, index] = eos
        logprobs[:, index] = eos_logprobs.gather(1, beam)[:, 0]
        self.value = torch.where(better, value, self.value[:, None])[:, 0]
        self.ids = torch.where(better, ids, self.ids)
        self.logprobs = torch.where(better, logprobs, self.logprobs)
        self.lengths = torch.where(better[:, 0], index + 1, self.lengths)


def beam_search(
    model: PaliGemmaModel,
    batch: Batch,
    options: BeamOptions,
    *,
    soft_tokens: Tensor | None = None,
) -> Generation:
    """The best finished hypothesis of each prompt.

    A hypothesis that ends never occupies a beam: at each step every live beam offers to end, the
        best offer so far is
    remembered, and the beams go on without EOS until none can catch up.

    Args:
        soft_tokens: float[B or 1, I, D] from `model.encode_image`, to ask an encoded image again.

    Returns:
        Answers that always contain EOS, `cut` where a beam without EOS could still have caught up
        at the bound; `scores` are plain sums, also under a length penalty.

    Raises:
        PromptError: the soft tokens belong to another number of rows.
    """
    finished, open_rows, real = _search(model, batch, options, soft_tokens)
    require_numbers(finished.value[real])
    # Copies made outside inference mode are ordinary tensors.
    lengths = torch.where(real, finished.lengths, 0)
    kept = (torch.arange(finished.ids.shape[1], device=real.device) < lengths[:, None]).long()
    longest = max(1, int(lengths.max()))
    logprobs = torch.where(kept.bool(), finished.logprobs, 0.0)[:, :longest]
    return Generation(
        ids=(finished.ids * kept)[:, :longest],
        logprobs=logprobs,
        scores=logprobs.sum(dim=1),
        lengths=lengths,
        finished=lengths > 0,
        cut=open_rows & real,
    )


@torch.inference_mode()
def _search(
    model: PaliGemmaModel, batch: Batch, options: BeamOptions, soft_tokens: Tensor | None
) -> tuple[_Finished, Tensor, Tensor]:
    """What was found, and bool[B] twice: rows in which a beam could still catch up, real rows."""
    num_beams, eos = options.num_beams, model.config.vocab.eos
    prompt = prefill_prompt(
        model,
        batch,
        soft_tokens=soft_tokens,
        max_new_tokens=options.max_new_tokens,
        kv_cache_dtype=options.kv_cache_dtype,
    )
    real = prompt.real
    prompt = prompt.repeat(num_beams)
    logits, positions, cache = prompt.logits, prompt.positions, prompt.cache
    live, finished = _begin(real, options, logits.device)
    first_rows = torch.arange(real.shape[0], device=logits.device)[:, None] * num_beams
    for index in range(options.max_new_tokens):
        logprobs = logits.log_softmax(dim=-1).unflatten(0, (-1, num_beams))  # [B, K, V]
        divisor = options.divisor(index + 1)
        finished.offer(live, logprobs[..., eos].clone(), index, divisor, eos)
        logprobs[..., eos] = -torch.inf
        parents = live.extend(logprobs, index)
        # Scores only fall and the divisor only grows, so this is the most a live beam can still
        # reach.
        hope = live.scores[:, 0] / options.divisor(options.max_new_tokens)
        open_rows = ~(hope < finished.value) & real
        if index + 1 == options.max_new_tokens or not bool(open_rows.any()):
            break
        cache = cache.select((first_rows + parents).flatten())
        logits = model.decode_step(live.ids[:, :, index].flatten(), positions, cache)
        positions = positions + 1
    return finished, open_rows, real


def _begin(real: Tensor, options: BeamOptions, device: torch.device) -> tuple[_Live, _Finished]:
    num_rows, num_tokens = real.shape[0], options.max_new_tokens
    live_shape = (num_rows, options.num_beams, num_tokens)
    # All beams start as the same prompt; only the first may be continued, or they would stay the
    # same.
    scores = torch.full(live_shape[:2], -torch.inf, device=device)
    scores[:, 0] = 0.0
    live = _Live(
        scores=scores,
        ids=torch.zeros(live_shape, dtype=torch.long, device=device),
        logprobs=torch.zeros(live_shape, device=device),
    )
    finished = _Finished(
        value=torch.full((num_rows,), -torch.inf, device=device),
        ids=torch.zeros((num_rows, num_tokens), dtype=torch.long, device=device),
        logprobs=torch.zeros((num_rows, num_tokens), device=device),
        lengths=torch.zeros(num_rows, dtype=torch.long, device=device),
    )
    return live, finished


def _take(x: Tensor, beams: Tensor) -> Tensor:
    """Rows of [B, K, T] by int64[B, K'] -> [B, K', T]."""
    return x.gather(1, beams[..., None].expand(-1, -1, x.shape[-1]))
