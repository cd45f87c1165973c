"""Answers that begin and end at different times, decoded side by side.

    submit ──▶ waiting ──prefill──▶ active ──one token a step──▶ retired
                  └──── cancel ────────┘

Every row gets the answer that it would get alone (`generate/rows.py`).

Axes: B rows, I image tokens, D decoder width.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from paligemma.batch import Batch, TokenRow
from paligemma.errors import ConfigError, PromptError
from paligemma.generate.constraints import Constraint
from paligemma.generate.generation import NOT_NUMBERS
from paligemma.generate.options import KV_CACHE_DTYPES, DecodeOptions, QueueOptions
from paligemma.generate.prefill import fill_cache, join_soft_tokens
from paligemma.generate.rows import DecodeRow, DecodeRows
from paligemma.generate.runs import logits_after
from paligemma.model import PaliGemmaModel

# Prompts are read together where none is longer than the shortest by more than this factor.
MAX_LENGTH_RATIO = 1.25
# The slots of a cache are a multiple of this, so that slightly longer rows find room in it.
SLOT_STEP = 64


@dataclass(frozen=True, kw_only=True)
class TokenEvent:
    """One token of one answer.

    Attributes:
        handle: the row, as `submit` returned it.
        logprob: its log-softmax in the unmodified logits.
        loc_probs: float32[1024], the probability of every location token, where the row records
            them and the token is one.
        finished: the answer ends with this token, EOS.
        cut: the answer ends with this token, and a larger bound would have given another one; see
            `Generation.cut`.
        fault: why the answer ends without this token, which is padding; None where it does not.
        alternatives: the most probable tokens in the unmodified logits, each with its log-softmax,
            as many as the row asked for.
    """

    handle: int
    token: int
    logprob: float
    loc_probs: Tensor | None
    finished: bool
    cut: bool
    fault: str | None = None
    alternatives: tuple[tuple[int, float], ...] = ()

    @property
    def is_last(self) -> bool:
        """Whether the answer ends with this token."""
        return self.finished or self.cut or self.fault is not None


@dataclass(kw_only=True, eq=False)
class _Answer:
    """A waiting or active row: its prompt, its state, and the last token."""

    handle: int
    prompt: TokenRow
    soft_tokens: Tensor | None  # until they are in the cache
    row: DecodeRow
    token: int = 0
    crowded: bool = False
    num_image_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_image_tokens = 0 if self.soft_tokens is None else self.soft_tokens.shape[1]

    @property
    def num_prefix_tokens(self) -> int:
        return self.num_image_tokens + len(self.prompt)

    @property
    def num_slots(self) -> int:
        # The model never reads the last token of an answer, so it needs no slot.
        return self.num_prefix_tokens + self.row.options.max_new_tokens - 1


def _faulty(handle: int, pad: int, fault: str) -> TokenEvent:
    return TokenEvent(
        handle=handle,
        token=pad,
        logprob=math.nan,
        loc_probs=None,
        finished=False,
        cut=False,
        fault=fault,
    )


def _alternatives(logits: Tensor, options: DecodeOptions) -> tuple[tuple[int, float], ...]:
    """The likeliest tokens of float32[V] with their log-probabilities, the likeliest first."""
    if not options.num_alternatives:
        return ()
    most = logits.log_softmax(dim=0).topk(min(options.num_alternatives, len(logits)))
    return tuple(zip(most.indices.tolist(), most.values.tolist(), strict=True))


class DecodeQueue:
    """Decodes a changing set of rows; for one thread."""

    def __init__(self, model: PaliGemmaModel, options: QueueOptions) -> None:
        self.model, self.options = model, options
        self._waiting: list[_Answer] = []
        # The answer at place k has row k of the cache.
        self._active: list[_Answer] = []
        self._cache = model.new_cache(0, 0, KV_CACHE_DTYPES[options.kv_cache_dtype])
        self._rows: DecodeRows | None = None
        self._num_submitted = 0

    def __len__(self) -> int:
        """The number of answers that are not complete."""
        return len(self._waiting) + len(self._active)

    def submit(
        self,
        prompt: TokenRow,
        options: DecodeOptions,
        *,
        soft_tokens: Tensor | None = None,
        constraint: Constraint | None = None,
    ) -> int:
        """Let a row wait for its turn.

        Args:
            soft_tokens: float[1, I, D] from `model.encode_image`, or None for text alone. Rows may
                share a tensor.

        Returns:
            Handle of the row, a number that no other row of this queue has.

        Raises:
            ConfigError: the options do not fit vocabulary, grammar or queue, or the pictures of
                waiting rows fill their bound.
            PromptError: the prompt is empty, or the soft tokens have another shape.
        """
        if not any(prompt.mask_input):
            raise PromptError("a prompt must have at least one valid token, got none")
        if soft_tokens is not None and (soft_tokens.ndim != 3 or soft_tokens.shape[0] != 1):
            raise PromptError(
                f"soft tokens of a row must be [1, tokens, width], got {list(soft_tokens.shape)}; "
                "pass what encode_image returned for one image"
            )
        if options.kv_cache_dtype != self.options.kv_cache_dtype:
            raise ConfigError(
                f"kv_cache_dtype must be that of the queue, {self.options.kv_cache_dtype}, "
                f"got {options.kv_cache_dtype}"
            )
        row = DecodeRow.begin(options, constraint, self.model.config.vocab, self.model.device)
        answer = _Answer(
            handle=self._num_submitted, prompt=prompt, soft_tokens=soft_tokens, row=row
        )
        if answer.num_slots > self.options.max_cache_tokens:
            raise ConfigError(
                f"image, prompt and max_new_tokens must fit the {self.options.max_cache_tokens} "
                f"cache tokens of the queue, got {answer.num_slots}; lower max_new_tokens or raise "
                "max_cache_tokens"
            )
        self._require_room(soft_tokens)
        self._num_submitted += 1
        self._waiting.append(answer)
        return answer.handle

    @torch.inference_mode()
    def cancel(self, handle: int) -> bool:
        """Drop a row and free its place at once; returns whether it was waiting or active."""
        for answers in (self._waiting, self._active):
            for place, answer in enumerate(answers):
                if answer.handle == handle:
                    if answers is self._active:
                        self._retire(place)
                    else:
                        del answers[place]
                    return True
        return False

    @torch.inference_mode()
    def step(self) -> list[TokenEvent]:
        """Admit rows for which there is room, and write one token in every active row.

        Returns:
            One event for each active row; none at all only where no row is waiting or active. A
            row that cannot go on, as its banned ids leave its grammar nothing to choose or the
            model produced NaN, ends with a fault; the others go on.
        """
        num_before = len(self._active)
        fresh = self._admit()
        if not self._active:
            return []
        logits = torch.cat([self._decode(num_before), *fresh] if num_before else fresh)
        if self._rows is None:
            rows = [answer.row for answer in self._active]
            self._rows = DecodeRows(rows, self.model.config.vocab, logits.device)
        faults: dict[int, str] = {}
        active = torch.ones_like(logits[:, 0], dtype=torch.bool)
        choice = self._rows.choose(logits, active, faults=faults)
        events = []
        for place, (answer, token, logprob, crowded) in enumerate(
            zip(
                self._active,
                choice.tokens.tolist(),
                choice.logprobs.tolist(),
                choice.crowded.tolist(),
                strict=True,
            )
        ):
            if math.isnan(logprob):
                faults.setdefault(place, NOT_NUMBERS)
            if place in faults:
                events.append(_faulty(answer.handle, self.model.config.vocab.pad, faults[place]))
                continue
            answer.token, answer.crowded = token, answer.crowded or crowded
            finished = token == self.model.config.vocab.eos
            events.append(
                TokenEvent(
                    handle=answer.handle,
                    token=token,
                    logprob=logprob,
                    loc_probs=None if choice.loc_probs is None else choice.loc_probs.get(place),
                    finished=finished,
                    cut=answer.crowded if finished else answer.row.room == 0,
                    alternatives=_alternatives(logits[place], answer.row.options),
                )
            )
        for place in reversed(range(len(events))):
            if events[place].is_last:
                self._retire(place)
        return events

    def _require_room(self, soft_tokens: Tensor | None) -> None:
        """Raise ConfigError where one more waiting picture is more than the bound allows."""
        waiting = [soft_tokens, *(answer.soft_tokens for answer in self._waiting)]
        held = {id(one): one.nbytes for one in waiting if one is not None}
        if soft_tokens is not None and sum(held.values()) > self.options.max_waiting_bytes:
            raise ConfigError(
                f"the pictures of waiting rows may hold {self.options.max_waiting_bytes} bytes, "
                f"with this one they hold {sum(held.values())}; wait for answers, or raise "
                "max_waiting_bytes"
            )

    def _decode(self, num_rows: int) -> Tensor:
        """Logits after the last tokens of the rows that were active before this step."""
        rows = [answer.row for answer in self._active[:num_rows]]
        tokens = [answer.token for answer in self._active[:num_rows]]
        cache, device = self._cache.view(0, num_rows), self.model.device
        if self.model.decodes_runs(cache):
            return logits_after(self.model, cache, rows, tokens, [True] * num_rows)
        positions = torch.tensor([row.position for row in rows], device=device)
        for row in rows:
            row.position += 1
        return self.model.decode_step(torch.tensor(tokens, device=device), positions, cache)

    def _admit(self) -> list[Tensor]:
        """Prefill the rows that come next; their logits, in the order of their places."""
        chosen = self._next()
        if not chosen:
            return []
        self._make_room(chosen)
        admitted: list[_Answer] = []
        logits = []
        for answers in self._passes(chosen):
            start = len(self._active) + len(admitted)
            rows = [answer.prompt for answer in answers]
            prompt = fill_cache(
                self.model,
                Batch.from_rows(rows, pad=self.model.config.vocab.pad),
                join_soft_tokens([answer.soft_tokens for answer in answers]),
                self._cache.view(start, start + len(answers)),
            )
            for answer, position in zip(answers, prompt.positions.tolist(), strict=True):
                answer.row.position = position
            admitted += answers
            logits.append(prompt.logits)
        for answer in admitted:
            self._waiting.remove(answer)
            answer.soft_tokens = None
        self._active += admitted
        self._rows = None
        return logits

    def _next(self) -> list[_Answer]:
        """The waiting rows that are admitted now: first come, first served, as far as the bounds
        allow. Fairness between callers belongs here."""
        options, chosen = self.options, list[_Answer]()
        num_slots = max((answer.num_slots for answer in self._active), default=0)
        for answer in self._waiting:
            num_rows = len(self._active) + len(chosen) + 1
            num_slots = max(num_slots, answer.num_slots)
            if num_rows > options.max_rows or num_rows * num_slots > options.max_cache_tokens:
                break
            chosen.append(answer)
        return chosen

    def _passes(self, answers: Sequence[_Answer]) -> Iterator[list[_Answer]]:
        """Rows whose prompts are read together: as many image tokens, and like lengths."""
        together: list[_Answer] = []
        for answer in sorted(answers, key=lambda one: (one.num_image_tokens, len(one.prompt))):
            length = answer.num_prefix_tokens
            if together and (
                answer.num_image_tokens != together[0].num_image_tokens
                or length > MAX_LENGTH_RATIO * together[0].num_prefix_tokens
                or length * (len(together) + 1) > self.options.max_prefill_tokens
            ):
                yield together
                together = []
            together.append(answer)
        if together:
            yield together

    def _make_room(self, answers: Sequence[_Answer]) -> None:
        """See that the cache has free rows for these answers behind the active ones.

        Its rows double, so that a queue that fills up seldom copies the cache, and it becomes
        narrower only where it needs more rows than its bound allows at the old width.
        """
        options, cache = self.options, self._cache
        num_rows = len(self._active) + len(answers)
        num_slots = max(answer.num_slots for answer in (*self._active, *answers))
        if num_rows > cache.num_rows or num_slots > cache.capacity:
            most_slots = options.max_cache_tokens // num_rows
            num_slots = min(-(-num_slots // SLOT_STEP) * SLOT_STEP, most_slots)
            most_rows = min(options.max_rows, options.max_cache_tokens // num_slots)
            cache.resize(min(2 * num_rows, most_rows), num_slots)

    def _retire(self, place: int) -> None:
        """Free a place; the row at the last place moves there."""
        last = self._active.pop()
        if place < len(self._active):
            self._cache.move(len(self._active), place)
            self._active[place] = last
        self._rows = None
