"""Greedy and sampled decoding with a cache: whole, or token by token as a stream.

Axes: B batch, I image tokens, D decoder width, V vocabulary.
Source: big_vision trainers/proj/paligemma/predict_fns.py, decode_with_logp.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from paligemma.batch import Batch
from paligemma.generate.constraints import Constraint
from paligemma.generate.generation import Generation, Step, collect
from paligemma.generate.options import DecodeOptions, per_row
from paligemma.generate.prefill import Prefilled, prefill_prompt
from paligemma.generate.rows import DecodeRow, DecodeRows, begin_rows
from paligemma.generate.runs import logits_after
from paligemma.model import PaliGemmaModel


def generate(
    model: PaliGemmaModel,
    batch: Batch,
    options: DecodeOptions | Sequence[DecodeOptions],
    *,
    soft_tokens: Tensor | None = None,
    constraint: Constraint | Sequence[Constraint | None] | None = None,
    on_token: Callable[[Step], None] | None = None,
) -> Generation:
    """Answer a batch of prompts; each row gets the answer that it would get alone.

    Args:
        batch: rows of unequal length, padded on the right; rows without a valid token are ignored.
        options: options of every row, or one for each row. Rows with equal seeds draw from equal
            generators, so equal prompts get equal answers.
        soft_tokens: float[B or 1, I, D] from `model.encode_image`, to ask an encoded image again.
        constraint: a grammar for every row, or one for each row; None leaves the model free.
        on_token: called with every step as soon as its tokens are chosen.

    Raises:
        ConfigError: an option does not fit the vocabulary, the rows need caches of different
            dtypes, or the logits are NaN.
        PromptError: the soft tokens belong to another number of rows.
    """

    def reported() -> Iterator[Step]:
        for step in stream(model, batch, options, soft_tokens=soft_tokens, constraint=constraint):
            if on_token is not None:
                on_token(step)
            yield step

    return collect(reported())


@torch.inference_mode()
def stream(
    model: PaliGemmaModel,
    batch: Batch,
    options: DecodeOptions | Sequence[DecodeOptions],
    *,
    soft_tokens: Tensor | None = None,
    constraint: Constraint | Sequence[Constraint | None] | None = None,
) -> Iterator[Step]:
    """The steps of `generate`, each yielded before the next is computed; arguments as there."""
    own = per_row(options, batch.num_examples)
    real = batch.mask_input.bool().any(dim=1)
    rows = begin_rows(own, constraint, real, model.config.vocab, model.device)
    prompt = prefill_prompt(model, batch, own, soft_tokens=soft_tokens)
    yield from answer(model, prompt, rows)


@torch.inference_mode()
def answer(model: PaliGemmaModel, prompt: Prefilled, rows: Sequence[DecodeRow]) -> Iterator[Step]:
    """Decode prompts that are in the cache already; cache and rows cannot be used again."""
    logits, positions, active = prompt.logits, prompt.positions, prompt.real
    decoding = DecodeRows(rows, model.config.vocab, logits.device)
    bounds = torch.tensor([row.room for row in rows], device=logits.device)
    finished, crowded = torch.zeros_like(active), torch.zeros_like(active)
    lag = min(row.options.eos_look_behind for row in rows)
    # A step more at the end costs less than waiting for the device at each step.
    ends = _LateFlag(max(lag, 1) if logits.is_cuda else lag)
    num_steps = max(row.room for row in rows)
    runs = model.decodes_runs(prompt.cache)
    if runs:
        for row, position in zip(rows, positions.tolist(), strict=True):
            row.position = position
    for index in range(num_steps):
        # Rows that have ended go on with padding, which nothing of theirs is read from.
        choice = decoding.choose(logits, active)
        finished = finished | (active & (choice.tokens == model.config.vocab.eos))
        crowded = crowded | choice.crowded
        yield Step(
            index=index,
            tokens=choice.tokens,
            logprobs=choice.logprobs,
            active=active,
            finished=finished,
            crowded=crowded,
            loc_probs=choice.loc_probs,
        )
        active = active & ~finished & (bounds > index + 1)
        if index + 1 == num_steps or ends.reached(~active.any()):
            return
        if runs:
            logits = logits_after(
                model, prompt.cache, rows, choice.tokens.tolist(), active.tolist()
            )
        else:
            logits = model.decode_step(choice.tokens, positions, prompt.cache)
            positions = positions + 1


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
