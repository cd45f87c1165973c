"""A queue gives every row the answer it gets alone, whatever comes and goes beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from fake_models import OBJECT_VOCAB, FakeModel, History, small_vocab, text_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generate_model import GEMMA_1, GEMMA_2, batch_of, images, tiny
from test_generate_rows import GRAMMARS, SAMPLERS
from torch import Tensor

from paligemma.batch import TokenRow
from paligemma.config import TextConfig
from paligemma.errors import ConfigError, PromptError
from paligemma.generate import (
    PROBABILITIES,
    ClosedSet,
    Constraint,
    DecodeOptions,
    DecodeQueue,
    Generation,
    Nucleus,
    ObjectGrammar,
    QueueOptions,
    Temperature,
    TokenEvent,
    generate,
)
from paligemma.pipeline.paligemma import PaliGemma

FREE = DecodeOptions(max_new_tokens=10)
WIDE = QueueOptions()


def text_row(*tokens: int) -> TokenRow:
    zeros, ones = (0,) * len(tokens), (1,) * len(tokens)
    return TokenRow(tokens=tokens, mask_ar=zeros, mask_input=ones, mask_loss=zeros)


def run(queue: DecodeQueue) -> dict[int, list[TokenEvent]]:
    """The events of each row until the queue is empty."""
    found: dict[int, list[TokenEvent]] = {}
    while len(queue):
        for event in queue.step():
            found.setdefault(event.handle, []).append(event)
    return found


def assert_answer(events: Sequence[TokenEvent], alone: Generation, tolerance: float = 0) -> None:
    """The events are those of a complete answer, equal to the only row of a generation."""
    length = int(alone.lengths)
    assert [event.token for event in events] == alone.ids[0, :length].tolist()
    logprobs = torch.tensor([event.logprob for event in events])
    assert (logprobs - alone.logprobs[0, :length]).abs().max().item() <= tolerance
    assert [event.is_last for event in events] == [False] * (length - 1) + [True]
    assert events[-1].finished == bool(alone.finished)
    assert events[-1].cut == bool(alone.cut)
    recorded = [event.loc_probs for event in events if event.loc_probs is not None]
    if alone.loc_probs is None:
        assert recorded == []
    else:
        assert len(recorded) == len(alone.loc_probs[0])
        for ours, theirs in zip(recorded, alone.loc_probs[0], strict=True):
            assert (ours - theirs).abs().max().item() <= tolerance


@dataclass(frozen=True)
class Visit:
    """A row that comes at one step and may be cancelled at a later one."""

    prompt: tuple[int, ...]
    options: DecodeOptions
    grammar: Constraint | None
    comes_at: int
    leaves_at: int | None


visits = st.builds(
    Visit,
    prompt=st.lists(st.integers(3, 14), min_size=1, max_size=9).map(tuple),
    options=st.builds(
        DecodeOptions,
        max_new_tokens=st.integers(8, 24),
        sampler=st.sampled_from(SAMPLERS),
        banned_ids=st.sampled_from([(), (), (11,)]),
        record_loc_probs=st.booleans(),
        seed=st.integers(0, 3),
        probabilities=st.sampled_from(PROBABILITIES),
    ),
    grammar=st.sampled_from(GRAMMARS),
    comes_at=st.integers(0, 30),
    leaves_at=st.one_of(st.none(), st.none(), st.integers(0, 50)),
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    plan=st.lists(visits, min_size=1, max_size=12),
    max_rows=st.integers(1, 5),
    max_cache_tokens=st.integers(40, 160),
    max_prefill_tokens=st.integers(1, 30),
    runs=st.booleans(),
)
def test_rows_that_come_and_go_are_answered_as_alone_and_within_bounds(
    plan: list[Visit], max_rows: int, max_cache_tokens: int, max_prefill_tokens: int, runs: bool
) -> None:
    model = FakeModel(OBJECT_VOCAB, seed=3, runs=runs)
    queue = DecodeQueue(
        model,
        QueueOptions(
            max_rows=max_rows,
            max_cache_tokens=max_cache_tokens,
            max_prefill_tokens=max_prefill_tokens,
        ),
    )
    found: dict[int, list[TokenEvent]] = {}
    visit_of: dict[int, Visit] = {}
    left: set[int] = set()
    step = 0
    while len(queue) or any(visit.comes_at >= step for visit in plan):
        for visit in plan:
            if visit.comes_at == step:
                handle = queue.submit(
                    text_row(*visit.prompt), visit.options, constraint=visit.grammar
                )
                visit_of[handle], found[handle] = visit, []
        for handle, visit in visit_of.items():
            if visit.leaves_at is not None and visit.leaves_at == step:
                is_over = bool(found[handle]) and found[handle][-1].is_last
                assert queue.cancel(handle) != is_over
                left.add(handle)
        num_waiting = len(queue)
        events = queue.step()
        assert bool(events) == bool(num_waiting)
        assert len({event.handle for event in events}) == len(events) <= max_rows
        assert model.cache.num_rows * model.cache.capacity <= max_cache_tokens
        for event in events:
            assert event.handle not in left
            found[event.handle].append(event)
        step += 1
    assert set(found) == set(range(len(plan)))
    for handle, visit in visit_of.items():
        alone = generate(
            FakeModel(OBJECT_VOCAB, seed=3),
            text_batch(visit.prompt),
            visit.options,
            constraint=visit.grammar,
        )
        events = found[handle]
        if handle not in left or (events and events[-1].is_last):
            assert_answer(events, alone)
        else:
            assert [event.token for event in events] == alone.ids[0, : len(events)].tolist()


def test_rows_begin_in_the_order_in_which_they_were_submitted() -> None:
    queue = DecodeQueue(FakeModel(small_vocab(6), seed=3), QueueOptions(max_rows=2))
    handles = [queue.submit(text_row(2, 5, *[3] * (k % 3)), FREE) for k in range(7)]
    begun: list[int] = []
    while len(queue):
        begun += [event.handle for event in queue.step() if event.handle not in begun]
    assert handles == sorted(begun) == list(range(7))
    assert all(abs(place - handle) <= 1 for place, handle in enumerate(begun))


def test_a_cancelled_row_leaves_its_place_to_the_next_at_once() -> None:
    queue = DecodeQueue(FakeModel(small_vocab(6), seed=3), QueueOptions(max_rows=1))
    endless = replace(FREE, max_new_tokens=1000, banned_ids=(1,))
    first, second, third = (queue.submit(text_row(2, 5), endless) for _ in range(3))
    assert [event.handle for event in queue.step()] == [first]
    assert queue.cancel(first)
    assert queue.cancel(second)
    assert [event.handle for event in queue.step()] == [third]
    assert len(queue) == 1
    assert not queue.cancel(first)
    assert not queue.cancel(99)
    assert queue.cancel(third)
    assert (len(queue), queue.step()) == (0, [])


def test_a_row_that_cannot_go_on_ends_with_a_fault_and_its_neighbours_answer_as_alone() -> None:
    class Overflowing(FakeModel):
        def logits_after(self, seen: tuple[int, ...]) -> Tensor:
            logits = super().logits_after(seen)
            return logits * torch.nan if seen[1] == 7 and len(seen) == 4 else logits

    # Its first token is free; after 6 the grammar wants 7, which is banned.
    closed = ClosedSet(vocab=OBJECT_VOCAB, answers=((6, 7),))
    alone = generate(FakeModel(OBJECT_VOCAB, seed=3), text_batch((2, 5)), FREE)
    queue = DecodeQueue(Overflowing(OBJECT_VOCAB, seed=3), WIDE)
    first = queue.submit(text_row(2, 5), FREE)
    banned = queue.submit(text_row(2, 6), replace(FREE, banned_ids=(7,)), constraint=closed)
    endless = replace(FREE, banned_ids=(1,))
    broken = queue.submit(text_row(2, 7), endless)
    last = queue.submit(text_row(2, 5), FREE)
    found = run(queue)
    for handle in (first, last):
        assert_answer(found[handle], alone)
    assert [event.token for event in found[banned]] == [6, 0]
    assert "banned ids [7] forbid" in str(found[banned][-1].fault)
    assert len(found[broken]) == 3
    assert "NaN" in str(found[broken][-1].fault)
    assert all(event.fault is None for events in found.values() for event in events[:-1])
    assert all(events[-1].is_last for events in found.values())


def test_waiting_pictures_have_a_bound_of_bytes_and_a_shared_one_counts_once() -> None:
    queue = DecodeQueue(FakeModel(small_vocab(6)), QueueOptions(max_rows=1, max_waiting_bytes=100))
    one, other = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)  # 64 bytes each
    handles = [queue.submit(text_row(2, 5), FREE, soft_tokens=one) for _ in range(3)]
    with pytest.raises(ConfigError, match=r"may hold 100 bytes, with this one they hold 128; wait"):
        queue.submit(text_row(2, 5), FREE, soft_tokens=other)
    queue.submit(text_row(2, 5), FREE)
    for handle in handles:
        queue.cancel(handle)
    queue.submit(text_row(2, 5), FREE, soft_tokens=other)


def test_an_answer_is_cut_by_the_room_that_an_earlier_token_lacked() -> None:
    class Wishing(FakeModel):
        def logits_after(self, seen: tuple[int, ...]) -> Tensor:
            logits = super().logits_after(seen)
            logits[6] += 50
            return logits

    # The second answer needs four tokens. Once the first has begun, only EOS may follow.
    closed = ClosedSet(vocab=OBJECT_VOCAB, answers=((5,), (6, 7, 8)))
    for bound, ids, cut in ((3, [5, 1], True), (4, [6, 7, 8, 1], False)):
        queue = DecodeQueue(Wishing(OBJECT_VOCAB), WIDE)
        queue.submit(text_row(2, 5), DecodeOptions(max_new_tokens=bound), constraint=closed)
        (events,) = run(queue).values()
        assert [event.token for event in events] == ids
        assert [event.cut for event in events] == [False] * (len(ids) - 1) + [cut]
        assert events[-1].finished


class Watched(FakeModel):
    """Notes the rows of every prefill and the sizes of the cache."""

    def __init__(self) -> None:
        super().__init__(small_vocab(6), seed=3)
        self.prefilled: list[list[int]] = []
        self.sizes: list[tuple[int, int]] = []

    def new_cache(self, batch_size: int, capacity: int, dtype: torch.dtype) -> History:
        watched = self

        class Sized(History):
            def resize(self, num_rows: int, capacity: int) -> None:
                super().resize(num_rows, capacity)
                watched.sizes.append((num_rows, capacity))

        self.cache = Sized([()] * batch_size, capacity)
        return self.cache

    def prefill(
        self,
        soft: Tensor | None,
        tokens: Tensor,
        mask_ar: Tensor,
        valid: Tensor,
        cache: History,
        **_: object,
    ) -> tuple[Tensor, Tensor]:
        self.prefilled.append(valid.sum(dim=1).tolist())
        return super().prefill(soft, tokens, mask_ar, valid, cache)


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        # Together where the longest is at most a quarter longer than the shortest.
        (1000, [[4, 4, 5, 5], [9, 10], [30]]),
        # Padded, the first three have 15 tokens; a longer prompt than the bound is read alone.
        (15, [[4, 4, 5], [5], [9], [10], [30]]),
    ],
)
def test_prompts_of_like_length_are_read_together(bound: int, expected: list[list[int]]) -> None:
    model = Watched()
    queue = DecodeQueue(model, QueueOptions(max_prefill_tokens=bound))
    for length in (4, 9, 5, 30, 4, 10, 5):
        queue.submit(text_row(*[3] * length), FREE)
    queue.step()
    assert model.prefilled == expected


def test_rows_with_pictures_of_another_size_are_read_apart() -> None:
    model = Watched()
    queue = DecodeQueue(model, WIDE)
    small, large = torch.zeros(1, 2, 8), torch.zeros(1, 3, 8)
    for soft in (small, large, None, small, torch.zeros(1, 2, 8)):
        queue.submit(text_row(2, 5), FREE, soft_tokens=soft)
    queue.step()
    assert [len(rows) for rows in model.prefilled] == [1, 3, 1]


def test_a_queue_that_fills_up_row_by_row_seldom_copies_its_cache() -> None:
    model = Watched()
    queue = DecodeQueue(model, QueueOptions(max_rows=40, max_cache_tokens=40 * 1024))
    endless = replace(FREE, max_new_tokens=1000, banned_ids=(1,))
    for _ in range(50):
        queue.submit(text_row(2, 5), endless)
        queue.step()
    assert [num_rows for num_rows, _ in model.sizes] == [2, 6, 14, 30, 40]
    # Prompt and answer have 1,001 tokens; slots are a multiple of 64.
    assert {capacity for _, capacity in model.sizes} == {1024}
    assert len(queue) == 50
    for handle in range(2, 50):
        queue.cancel(handle)
    # A row twice as long has room only once the cache has fewer rows.
    long = queue.submit(text_row(2, 5), replace(endless, max_new_tokens=8192))
    assert long in {event.handle for event in queue.step()}
    assert model.sizes[-1] == (4, 8256)
    assert 4 * 8256 <= 40 * 1024


@pytest.mark.parametrize("text", [GEMMA_1, GEMMA_2], ids=["gemma", "gemma2"])
def test_the_real_architecture_answers_as_alone_and_one_row_to_the_bit(text: TextConfig) -> None:
    model = tiny(text)
    with torch.no_grad():
        soft = [one[None] for one in model.encode_image(images(3))]
    exact = DecodeOptions(max_new_tokens=14, kv_cache_dtype="float32", banned_ids=(1,))
    rows = [
        (prompt, soft[number % 3] if number % 4 else None, own)
        for number, (prompt, own) in enumerate(
            zip(
                [(2, 17, 30, 31, 3), (2, 3), (2, 40, 3), (2, 9, 9, 9, 9, 9, 9, 9, 3)] * 3,
                [exact, replace(exact, sampler=Temperature(1.3), seed=4)] * 3
                + [replace(exact, max_new_tokens=5), replace(exact, sampler=Nucleus(0.9))] * 3,
                strict=True,
            )
        )
    ]
    queue = DecodeQueue(
        model, QueueOptions(max_rows=4, max_cache_tokens=130, kv_cache_dtype="float32")
    )
    found: dict[int, list[TokenEvent]] = {}
    for prompt, soft_tokens, own in rows:
        queue.submit(text_row(*prompt), own, soft_tokens=soft_tokens)
        for event in queue.step():
            found.setdefault(event.handle, []).append(event)
    for handle, events in run(queue).items():
        found.setdefault(handle, []).extend(events)
    single = DecodeQueue(model, QueueOptions(max_rows=1, kv_cache_dtype="float32"))
    for handle, (prompt, soft_tokens, own) in enumerate(rows):
        alone = generate(model, batch_of(None, prompt), own, soft_tokens=soft_tokens)
        assert_answer(found[handle], alone, 1e-5)
        single.submit(text_row(*prompt), own, soft_tokens=soft_tokens)
        (events,) = run(single).values()
        assert_answer(events, alone)


def test_the_embedded_model_answers_as_alone() -> None:
    pg = PaliGemma.from_pretrained("tiny", kv_cache_dtype="float32")
    model, processor = pg.model, pg.processor
    pixels = torch.rand(2, 224, 224, 3, generator=torch.Generator().manual_seed(5)) * 2 - 1
    with torch.inference_mode():
        soft = [one[None] for one in model.encode_image(pixels)]
    exact = DecodeOptions(max_new_tokens=24, kv_cache_dtype="float32", record_loc_probs=True)
    grammar = ObjectGrammar(
        vocab=model.config.vocab,
        labels=[processor.tokenizer.encode(" star"), processor.tokenizer.encode(" red circle")],
        separator=processor.tokenizer.encode(" ; "),
    )
    asked: list[tuple[str, DecodeOptions, Constraint | None]] = [
        ("detect star", exact, None),
        ("detect star ; red circle", exact, grammar),
        ("caption en", replace(exact, sampler=Temperature(0.8), seed=3), None),
        ("answer en how many objects are there?", exact, None),
        ("segment circle", replace(exact, max_new_tokens=7), None),
        ("caption en", replace(exact, sampler=Nucleus(0.9), seed=1), None),
    ]
    rows = [
        (processor.prompt_row(text), own, one, picture)
        for text, own, one in asked
        for picture in soft
    ]
    queue = DecodeQueue(
        model, QueueOptions(max_rows=5, max_cache_tokens=1300, kv_cache_dtype="float32")
    )
    for prompt, own, one, picture in rows:
        queue.submit(prompt, own, soft_tokens=picture, constraint=one)
    found = run(queue)
    for handle, (prompt, own, one, picture) in enumerate(rows):
        batch = batch_of(None, prompt.tokens)
        alone = generate(model, batch, own, soft_tokens=picture, constraint=one)
        assert_answer(found[handle], alone, 1e-5)


@pytest.mark.parametrize(
    ("submit", "error", "message"),
    [
        (lambda q: q.submit(text_row(), FREE), PromptError, "at least one valid token, got none"),
        (
            lambda q: q.submit(text_row(2), FREE, soft_tokens=torch.zeros(2, 4, 8)),
            PromptError,
            r"must be \[1, tokens, width\], got \[2, 4, 8\]",
        ),
        (
            lambda q: q.submit(text_row(2), replace(FREE, kv_cache_dtype="float32")),
            ConfigError,
            "that of the queue, bfloat16, got float32",
        ),
        (
            lambda q: q.submit(text_row(2, 5), replace(FREE, max_new_tokens=100)),
            ConfigError,
            "fit the 100 cache tokens of the queue, got 101; lower max_new_tokens",
        ),
        (lambda q: q.submit(text_row(2), replace(FREE, banned_ids=(6,))), ConfigError, "got 6"),
        (lambda q: QueueOptions(max_rows=0), ConfigError, "max_rows must be at least 1, got 0"),
        (lambda q: QueueOptions(max_cache_tokens=2.5), ConfigError, "a whole number, got 2.5"),
    ],
)
def test_a_row_that_the_queue_can_never_answer_is_refused_at_once(
    submit: object, error: type[Exception], message: str
) -> None:
    queue = DecodeQueue(FakeModel(small_vocab(6)), QueueOptions(max_cache_tokens=100))
    with pytest.raises(error, match=message):
        submit(queue)  # type: ignore[operator]
    assert len(queue) == 0
