"""Beam search as in the original, and a variant with a length penalty.

Axes: B batch, K beams, T answer tokens, V vocabulary.
Source: big_vision trainers/proj/paligemma/predict_fns.py, beam_decode.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paligemma.batch import Batch
from paligemma.errors import ConfigError
from paligemma.generate.generation import Generation, last_of, require_numbers
from paligemma.generate.options import BeamOptions, per_row
from paligemma.generate.prefill import prefill_prompt
from paligemma.model import PaliGemmaModel


@dataclass
class _Live:
    """The hypotheses without EOS: their scores, [B, K], ids and logprobs, [B, K, T]."""

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
    """The best hypothesis with EOS of each example: the value by which it is compared, [B], its ids
    and logprobs, [B, T], and its length, [B]."""

    value: Tensor
    ids: Tensor
    logprobs: Tensor
    lengths: Tensor

    def offer(
        self, live: _Live, eos_logprobs: Tensor, index: int, divisors: Tensor, eos: int
    ) -> None:
        """End each live hypothesis now, and keep the best of them where it beats the best so far.

        Args:
            eos_logprobs: float32[B, K], -inf where the bound forbids another token.
            divisors: float32[B, 1], length penalty of hypotheses of this length.
        """
        value, beam = ((live.scores + eos_logprobs) / divisors).max(dim=1, keepdim=True)
        # NaN wins too, so that it is reported and not passed over.
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
    options: BeamOptions | Sequence[BeamOptions],
    *,
    soft_tokens: Tensor | None = None,
) -> Generation:
    """The best finished hypothesis of each prompt.

    A hypothesis that ends never occupies a beam. At each step every live beam offers to end, and
    the search remembers the best offer of all steps; the beams go on without EOS until none of them
    can catch up with it.

    Args:
        options: options of every row, or one for each row; all with the same number of beams.
        soft_tokens: float[B or 1, I, D] from `model.encode_image`, to ask an encoded image again.

    Returns:
        Answers that always contain EOS, with `cut` where a beam without EOS could still have caught
        up at the bound. `scores` are plain sums, under a length penalty too.

    Raises:
        ConfigError: the rows have different numbers of beams or caches of different dtypes, or the
            logits are NaN.
        PromptError: the soft tokens belong to another number of rows.
    """
    return last_of(beam_steps(model, batch, options, soft_tokens=soft_tokens))


def beam_steps(
    model: PaliGemmaModel,
    batch: Batch,
    options: BeamOptions | Sequence[BeamOptions],
    *,
    soft_tokens: Tensor | None = None,
) -> Generator[None, None, Generation]:
    """`beam_search`, pausing before each further step of the model."""
    finished, open_rows, real = yield from _search(model, batch, options, soft_tokens)
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
    model: PaliGemmaModel,
    batch: Batch,
    options: BeamOptions | Sequence[BeamOptions],
    soft_tokens: Tensor | None,
) -> Generator[None, None, tuple[_Finished, Tensor, Tensor]]:
    """The best hypotheses, and bool[B] twice: rows in which a beam could still catch up, and rows
    that do not only pad the batch."""
    own = per_row(options, batch.num_examples)
    num_beams, eos = own[0].num_beams, model.config.vocab.eos
    if any(one.num_beams != num_beams for one in own):
        counts = sorted({one.num_beams for one in own})
        raise ConfigError(f"the rows of a batch must have the same number of beams, got {counts}")
    num_steps = max(one.max_new_tokens for one in own)
    prompt = prefill_prompt(model, batch, own, soft_tokens=soft_tokens)
    real, device = prompt.real, prompt.logits.device
    prompt = prompt.repeat(num_beams)
    logits, positions, cache = prompt.logits, prompt.positions, prompt.cache
    live, finished = _begin(len(own), num_beams, num_steps, device)
    bounds = torch.tensor([one.max_new_tokens for one in own], device=device)
    divisors = torch.tensor(
        [[one.divisor(length) for length in range(1, num_steps + 1)] for one in own], device=device
    )
    last_divisors = divisors.gather(1, bounds[:, None] - 1)[:, 0]
    first_rows = torch.arange(len(own), device=device)[:, None] * num_beams
    open_rows = real
    for index in range(num_steps):
        has_room = bounds > index
        logprobs = logits.log_softmax(dim=-1).unflatten(0, (-1, num_beams))  # [B, K, V]
        eos_logprobs = logprobs[..., eos].masked_fill(~has_room[:, None], -torch.inf)
        finished.offer(live, eos_logprobs, index, divisors[:, index, None], eos)
        logprobs[..., eos] = -torch.inf
        parents = live.extend(logprobs, index)
        # Scores only fall and the divisor only grows, so a live beam can reach this at the most.
        hope = live.scores[:, 0] / last_divisors
        open_rows = torch.where(has_room, real & ~(hope < finished.value), open_rows)
        if not bool((open_rows & (bounds > index + 1)).any()):
            break
        yield
        cache.reorder((first_rows + parents).flatten())
        logits = model.decode_step(live.ids[:, :, index].flatten(), positions, cache)
        positions = positions + 1
    return finished, open_rows, real


def _begin(
    num_rows: int, num_beams: int, num_tokens: int, device: torch.device
) -> tuple[_Live, _Finished]:
    live_shape = (num_rows, num_beams, num_tokens)
    # All beams start as the same prompt; only the first may be continued, or they would stay the
    # same.
    scores = torch.full(live_shape[:2], -torch.inf, dtype=torch.float32, device=device)
    scores[:, 0] = 0.0
    live = _Live(
        scores=scores,
        ids=torch.zeros(live_shape, dtype=torch.long, device=device),
        logprobs=torch.zeros(live_shape, dtype=torch.float32, device=device),
    )
    finished = _Finished(
        value=torch.full((num_rows,), -torch.inf, dtype=torch.float32, device=device),
        ids=torch.zeros((num_rows, num_tokens), dtype=torch.long, device=device),
        logprobs=torch.zeros((num_rows, num_tokens), dtype=torch.float32, device=device),
        lengths=torch.zeros(num_rows, dtype=torch.long, device=device),
    )
    return live, finished


def _take(x: Tensor, beams: Tensor) -> Tensor:
    """The chosen beams, int64[B, K'], of [B, K, T]: [B, K', T]."""
    return x.gather(1, beams[..., None].expand(-1, -1, x.shape[-1]))
