"""Greedy and sampled decoding with a cache: whole, or token by token as a stream.

Axes: B batch, I image tokens, D decoder width, V vocabulary.
Source: big_vision trainers/proj/paligemma/predict_fns.py, decode_with_logp.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from paligemma.batch import Batch
from paligemma.generate.constraints import Constraint, RowConstraints
from paligemma.generate.generation import Generation, Step, collect
from paligemma.generate.options import DecodeOptions
from paligemma.generate.prefill import Prefilled, prefill_prompt
from paligemma.generate.sampling import Greedy, LocationGreedy
from paligemma.model import PaliGemmaModel
from paligemma.vocab import NUM_LOC, Vocab


def generate(
    model: PaliGemmaModel,
    batch: Batch,
    options: DecodeOptions,
    *,
    soft_tokens: Tensor | None = None,
    constraint: Constraint | Sequence[Constraint | None] | None = None,
    on_token: Callable[[Step], None] | None = None,
) -> Generation:
    """Answer a batch of prompts.

    Args:
        batch: rows of unequal length, padded on the right; rows without a valid token are ignored.
        soft_tokens: float[B or 1, I, D] from `model.encode_image`, to ask an encoded image again.
        constraint: a grammar for every row, or one a row; None leaves the model free.
        on_token: called with every step as soon as it is chosen.

    Raises:
        ConfigError: an option does not fit the vocabulary, or the logits are NaN.
        PromptError: the soft tokens belong to another number of rows.
    """

    def told() -> Iterator[Step]:
        for step in stream(model, batch, options, soft_tokens=soft_tokens, constraint=constraint):
            if on_token is not None:
                on_token(step)
            yield step

    return collect(told())


@torch.inference_mode()
def stream(
    model: PaliGemmaModel,
    batch: Batch,
    options: DecodeOptions,
    *,
    soft_tokens: Tensor | None = None,
    constraint: Constraint | Sequence[Constraint | None] | None = None,
) -> Iterator[Step]:
    """The steps of `generate`, each yielded before the next is computed; arguments as there."""
    options.check_vocab(model.config.vocab)
    prompt = prefill_prompt(
        model,
        batch,
        soft_tokens=soft_tokens,
        max_new_tokens=options.max_new_tokens,
        kv_cache_dtype=options.kv_cache_dtype,
    )
    yield from answer(model, prompt, options, constraint)


@torch.inference_mode()
def answer(
    model: PaliGemmaModel,
    prompt: Prefilled,
    options: DecodeOptions,
    constraint: Constraint | Sequence[Constraint | None] | None = None,
) -> Iterator[Step]:
    """Decode from a prompt that is in the cache already; the cache is used up."""
    vocab = model.config.vocab
    logits, positions, cache = prompt.logits, prompt.positions, prompt.cache
    generator = None
    if not isinstance(options.sampler, Greedy | LocationGreedy):
        generator = torch.Generator(device=logits.device).manual_seed(options.seed)
    grammar = RowConstraints.begin(
        constraint, prompt.real, options.banned_ids, vocab, options.max_new_tokens
    )
    banned = torch.tensor(options.banned_ids, dtype=torch.long, device=logits.device)
    active = prompt.real
    finished, crowded = torch.zeros_like(active), torch.zeros_like(active)
    ends = _LateFlag(options.eos_look_behind)
    for index in range(options.max_new_tokens):
        choosable = logits.index_fill(1, banned, -torch.inf) if options.banned_ids else logits
        if grammar is not None:
            allowed, with_room = grammar.allowed()
            has_room = torch.equal(allowed, with_room)
            allowed = allowed.to(logits.device)
            if not has_room:
                free = choosable.masked_fill(~with_room.to(logits.device), -torch.inf)
                wanted = options.sampler(free, _copy_of(generator))
                crowded = crowded | (active & ~allowed.gather(1, wanted[:, None])[:, 0])
            choosable = choosable.masked_fill(~allowed, -torch.inf)
        # Rows that have ended go on with padding, which nothing of theirs is read from.
        tokens = torch.where(active, options.sampler(choosable, generator), vocab.pad)
        if grammar is not None:
            grammar.advance(tokens.tolist(), vocab.eos)
        log_total = logits.logsumexp(dim=-1)
        chosen = logits.gather(1, tokens[:, None])[:, 0] - log_total
        finished = finished | (active & (tokens == vocab.eos))
        yield Step(
            index=index,
            tokens=tokens,
            logprobs=torch.where(active, chosen, 0.0),
            active=active,
            finished=finished,
            crowded=crowded,
            loc_probs=_loc_probs(logits, log_total, tokens, active, vocab)
            if options.record_loc_probs
            else None,
        )
        active = active & ~finished
        if index + 1 == options.max_new_tokens or ends.reached(~active.any()):
            return
        logits = model.decode_step(tokens, positions, cache)
        positions = positions + 1


def _copy_of(generator: torch.Generator | None) -> torch.Generator | None:
    """One that draws next what the given one draws next."""
    if generator is None:
        return None
    copy = torch.Generator(device=generator.device)
    copy.set_state(generator.get_state())
    return copy


class _LateFlag:
    """Reads a device flag `lag` steps late; by then the copy is there and nobody waits."""

    def __init__(self, lag: int) -> None:
        self._lag = lag
        self._pending: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def reached(self, flag: Tensor) -> bool:
        copied = None
        if flag.is_cuda and self._lag:
            flag = flag.to("cpu", non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._pending.append((flag, copied))
        if len(self._pending) <= self._lag:
            return False
        flag, copied = self._pending.popleft()
        if copied is not None:
            copied.synchronize()
        return bool(flag)


def _loc_probs(
    logits: Tensor, log_total: Tensor, tokens: Tensor, active: Tensor, vocab: Vocab
) -> dict[int, Tensor]:
    """Probabilities of the location tokens, float32[1024], in the rows that wrote one."""
    is_loc = active & (tokens >= vocab.loc0) & (tokens < vocab.loc0 + NUM_LOC)
    rows = is_loc.nonzero()[:, 0]
    bins = logits[rows, vocab.loc0 : vocab.loc0 + NUM_LOC]
    probs = (bins - log_total[rows, None]).exp()
    return dict(zip(rows.tolist(), probs, strict=True))
