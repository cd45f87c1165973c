"""Whatever the logits, a grammar lets nothing malformed out, and everything well-formed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from fake_models import OBJECT_VOCAB, FakeModel, text_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paligemma.errors import ConfigError
from paligemma.generate import (
    ClosedSet,
    DecodeOptions,
    Generation,
    ObjectGrammar,
    Temperature,
    TopK,
    generate,
)

LOC0, SEG0 = OBJECT_VOCAB.loc0, OBJECT_VOCAB.seg0
# Ids 3..14 are text. Two labels share a beginning and one continues as the separator does.
SEPARATOR = (3, 4)
LABELS = ((5,), (5, 6), (7, 3), (8, 9, 10))
PROMPTS = ((2, 5), (2, 4, 5))


def objects(**options: object) -> ObjectGrammar:
    merged = {"vocab": OBJECT_VOCAB, "labels": LABELS, "separator": SEPARATOR, **options}
    return ObjectGrammar(**merged)  # type: ignore[arg-type]


def letters(ids: Sequence[int]) -> str:
    """One character an id: L location, S codeword, E end, a-l the text ids 3..14, ? the rest."""

    def letter(token: int) -> str:
        if token == 1:
            return "E"
        if OBJECT_VOCAB.is_loc(token):
            return "L"
        if OBJECT_VOCAB.is_seg(token):
            return "S"
        return chr(ord("a") + token - 3) if 3 <= token < 15 else "?"

    return "".join(letter(token) for token in ids)


def grammar_pattern(grammar: ObjectGrammar) -> re.Pattern[str]:
    """The same language as a regular expression over `letters`."""
    if grammar.labels is None:
        text = f"(?!ab(?:L|E))[a-l]{{1,{grammar.max_label_tokens}}}?"
    else:
        text = "(?:" + "|".join(letters(label) for label in grammar.labels or [()]) + ")"
    one = "LLLL" + "S{16}" * grammar.with_masks + text
    low, high = max(grammar.min_objects - 1, 0), grammar.max_objects - 1
    some = f"{one}(?:ab{one}){{{low},{high}}}E"
    return re.compile(some if grammar.min_objects else f"(?:{some}|E)")


def constrained(model: FakeModel, constraint: object, bound: int, **options: object) -> Generation:
    return generate(
        model,
        text_batch(*PROMPTS),
        DecodeOptions(max_new_tokens=bound, **options),  # type: ignore[arg-type]
        constraint=constraint,  # type: ignore[arg-type]
    )


def answers(generation: Generation) -> list[list[int]]:
    lengths = generation.lengths.tolist()
    return [ids[:n] for ids, n in zip(generation.ids.tolist(), lengths, strict=True)]


class Eager(FakeModel):
    """Flat logits, but EOS only where nothing else may follow: fills the room it is given."""

    def logits_after(self, seen: tuple[int, ...]) -> Tensor:
        logits = super().logits_after(seen)
        logits[1] -= 100.0 * (self.seed % 2)
        return logits


@st.composite
def grammars(draw: st.DrawFn) -> ObjectGrammar:
    max_objects, labels = draw(st.integers(1, 4)), draw(st.sampled_from([LABELS, None, ()]))
    return ObjectGrammar(
        vocab=OBJECT_VOCAB,
        labels=labels,
        separator=SEPARATOR,
        with_masks=draw(st.booleans()),
        max_objects=max_objects,
        min_objects=draw(st.integers(0, max_objects)),
        max_label_tokens=draw(st.integers(1, 4)),
        no_repeats=draw(st.booleans()) and labels is not None,
    )


@settings(max_examples=30, deadline=None, derandomize=True)
@given(grammar=grammars(), extra=st.integers(0, 40), seed=st.integers(0, 1000))
def test_random_logits_under_a_grammar_always_give_complete_upright_objects(
    grammar: ObjectGrammar, extra: int, seed: int
) -> None:
    bound = grammar.min_tokens + extra
    ours = constrained(
        Eager(OBJECT_VOCAB, seed=seed), grammar, bound, sampler=Temperature(2.0), seed=seed
    )
    assert ours.finished.all()
    for ids in answers(ours):
        assert grammar_pattern(grammar).fullmatch(letters(ids)), letters(ids)
        bins = [token - LOC0 for token in ids if OBJECT_VOCAB.is_loc(token)]
        for ymin, xmin, ymax, xmax in zip(*[iter(bins)] * 4, strict=True):
            assert 0 <= ymin < ymax <= 1023
            assert 0 <= xmin < xmax <= 1023


class Cornered(FakeModel):
    """Wants locations, and the last of them above all."""

    def logits_after(self, seen: tuple[int, ...]) -> Tensor:
        logits = super().logits_after(seen)
        logits[LOC0 : LOC0 + 1024] += 100.0 * torch.arange(1024)
        return logits


class Repeating(FakeModel):
    """Wants the lowest corner of the picture, and most of all its smallest box."""

    def logits_after(self, seen: tuple[int, ...]) -> Tensor:
        logits = super().logits_after(seen)
        logits[LOC0 + 1021 : LOC0 + 1024] += 30.0 * torch.arange(1, 4)
        logits[3] += 20.0
        return logits


@pytest.mark.parametrize("labels", [((5,),), LABELS, ((5,), (5, 3, 4)), ()])
@pytest.mark.parametrize("room", [0, 1, 2, 3, 200])
def test_no_box_stands_twice_with_one_label(labels: tuple[tuple[int, ...], ...], room: int) -> None:
    num_objects = 9 * max(1, len(labels)) + 2
    for seed in range(3):
        bound = 4 * num_objects + room
        grammar = objects(labels=labels, max_objects=num_objects)
        for no_repeats in (False, True):
            own = replace(grammar, no_repeats=no_repeats)
            ours = constrained(Repeating(OBJECT_VOCAB, seed=seed), own, bound)
            assert ours.finished.all()
            for ids in answers(ours):
                words = letters(ids)
                assert grammar_pattern(own).fullmatch(words)
                found = parsed(ids)
                assert (len(found) == len(set(found))) == no_repeats
                if room == 200 and no_repeats:
                    assert len(found) == num_objects
                    # In the last row three boxes have their left edge there, each with every label.
                    edges = [box[1] >= 1021 for box, _ in found if box[0] == 1022]
                    assert edges == [True] * 3 * max(1, len(labels)) + [False] * (
                        num_objects - 3 * max(1, len(labels))
                    )


def parsed(ids: Sequence[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Bins and label of each object."""
    found: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    rest = [*ids[:-1], *SEPARATOR]
    while rest:
        bins = tuple(token - LOC0 for token in rest[:4])
        end = next((k for k in range(4, len(rest)) if OBJECT_VOCAB.is_loc(rest[k])), len(rest))
        found.append((bins, tuple(rest[4 : end - 2])))
        rest = rest[end:]
    return found


def test_a_minimum_at_the_border_leaves_room_for_its_maximum() -> None:
    for ids in answers(constrained(Cornered(OBJECT_VOCAB), objects(max_objects=1), 10)):
        assert ids[:4] == box(1022, 1022, 1023, 1023)


def test_a_full_room_is_used_and_never_overrun() -> None:
    grammar = ObjectGrammar(vocab=OBJECT_VOCAB, labels=LABELS, separator=SEPARATOR)
    # An object takes at least 5 tokens, a separator 2, the end 1: 13 hold two objects, 20 three.
    for bound, most in ((6, 1), (12, 1), (13, 2), (19, 2), (20, 3)):
        for seed in (1, 3, 5):
            ours = constrained(Eager(OBJECT_VOCAB, seed=seed), grammar, bound)
            assert ours.finished.all()
            counts = [letters(ids).count("LLLL") for ids in answers(ours)]
            assert 1 <= min(counts) <= max(counts) <= most


class Longing(FakeModel):
    """Wants one answer above all."""

    def __init__(self, wish: Sequence[int]) -> None:
        super().__init__(OBJECT_VOCAB, scale=0.5)
        self.wish = wish

    def logits_after(self, seen: tuple[int, ...]) -> Tensor:
        logits = super().logits_after(seen)
        prompt = next(p for p in sorted(PROMPTS, key=len, reverse=True) if seen[: len(p)] == p)
        written = len(seen) - len(prompt)
        if written < len(self.wish):
            logits[self.wish[written]] += 20.0
        return logits


def box(*bins: int) -> list[int]:
    return [LOC0 + position for position in bins]


CODES = [SEG0 + code for code in range(0, 128, 8)]
CAT, CAT_FISH, TRAP, DOG = LABELS


@pytest.mark.parametrize(
    ("wish", "options"),
    [
        ([1], {}),
        ([*box(10, 20, 11, 21), *CAT, 1], {}),
        ([*box(0, 0, 1023, 1023), *CAT_FISH, *SEPARATOR, *box(5, 1000, 6, 1001), *DOG, 1], {}),
        # A label that ends as the separator begins, with and without a successor.
        ([*box(1, 2, 3, 4), *TRAP, *SEPARATOR, *box(1, 2, 3, 4), *TRAP, 1], {}),
        ([*box(1, 2, 3, 4), *CODES, *CAT, 1], {"with_masks": True}),
        ([*box(1, 2, 3, 4), *CODES, 1], {"with_masks": True, "labels": ()}),
        ([*box(1, 2, 3, 4), *SEPARATOR, *box(5, 6, 7, 8), 1], {"labels": ()}),
        ([*box(1, 2, 3, 4), 14, 4, 13, *SEPARATOR, *box(5, 6, 7, 8), 4, 1], {"labels": None}),
    ],
)
def test_a_well_formed_answer_passes_unchanged_with_its_log_probabilities(
    wish: list[int], options: dict[str, object]
) -> None:
    given_options = {"labels": LABELS, **options}
    grammar = ObjectGrammar(vocab=OBJECT_VOCAB, separator=SEPARATOR, **given_options)  # type: ignore[arg-type]
    free = constrained(Longing(wish), None, 60)
    ours = constrained(Longing(wish), grammar, 60)
    assert answers(ours) == [wish, wish]
    assert torch.equal(ours.ids, free.ids)
    assert torch.equal(ours.logprobs, free.logprobs)


@pytest.mark.parametrize(
    ("wish", "labels"),
    [
        # A third coordinate above the first, an empty box, a label nobody gave, EOS inside a box.
        ([*box(500, 20, 400, 30), *CAT, 1], LABELS),
        ([*box(10, 20, 10, 20), *CAT, 1], LABELS),
        ([*box(10, 1023, 20, 1023), *CAT, 1], LABELS),
        ([*box(1, 2, 3, 4), 14, 1], LABELS),
        ([*box(1, 2), 1], LABELS),
        # No label at all, and a separator that nothing follows.
        ([*box(1, 2, 3, 4), *SEPARATOR, *box(5, 6, 7, 8), 9, 1], None),
        ([*box(1, 2, 3, 4), 9, *SEPARATOR, 1], None),
        ([*box(1, 2, 3, 4), 1], None),
    ],
)
def test_a_malformed_wish_is_bent_into_the_grammar(
    wish: list[int], labels: Sequence[Sequence[int]] | None
) -> None:
    grammar = objects(labels=labels, max_objects=2, min_objects=1)
    for ids in answers(constrained(Longing(wish), grammar, 40)):
        assert ids != wish
        assert grammar_pattern(grammar).fullmatch(letters(ids)), letters(ids)
        ymin, xmin, ymax, xmax = ids[:4]
        assert ymin < ymax
        assert xmin < xmax


@pytest.mark.parametrize(
    ("wish", "bound", "written"),
    [
        # No room for the first object, for the second, and for what its label goes on with.
        ([*box(1, 2, 3, 4), *CAT, 1], 5, [1]),
        (
            [*box(1, 2, 3, 4), *DOG, *SEPARATOR, *box(5, 6, 7, 8), *CAT, 1],
            12,
            [*box(1, 2, 3, 4), *DOG, 1],
        ),
        ([*box(1, 2, 3, 4), *CAT_FISH, 1], 6, [*box(1, 2, 3, 4), *CAT, 1]),
    ],
)
@pytest.mark.parametrize("options", [{}, {"sampler": Temperature(0.5), "seed": 3}])
def test_what_a_grammar_had_no_room_for_is_told(
    wish: list[int], bound: int, written: list[int], options: dict[str, object]
) -> None:
    short = constrained(Longing(wish), objects(), bound, **options)
    assert answers(short) == [written, written]
    assert short.finished.all()
    assert short.cut.all()
    enough = constrained(Longing(wish), objects(), len(wish), **options)
    assert answers(enough) == [wish, wish]
    assert not enough.cut.any()
    # An answer that wants nothing more is not cut by a bound just as tight.
    same = constrained(Longing(written), objects(), bound, **options)
    assert answers(same) == [written, written]
    assert not same.cut.any()


def test_a_draw_is_the_same_whether_or_not_its_grammar_asks_what_was_wanted() -> None:
    uncut = 0
    for seed in range(10):
        # In the shorter room no second object may follow.
        short, ample = (
            constrained(
                FakeModel(OBJECT_VOCAB, scale=0.5), objects(), bound, sampler=TopK(40), seed=seed
            )
            for bound in (12, 60)
        )
        for row, cut in enumerate(short.cut.tolist()):
            assert (answers(short)[row] == answers(ample)[row]) == (not cut)
            uncut += not cut and letters(answers(short)[row]) != "E"
    assert 0 < uncut < 20


def test_log_probabilities_under_a_grammar_are_those_of_the_free_model() -> None:
    grammar = ObjectGrammar(vocab=OBJECT_VOCAB, labels=LABELS, separator=SEPARATOR, min_objects=1)
    model = FakeModel(OBJECT_VOCAB, seed=9)
    ours = constrained(model, grammar, 30)
    for row, ids in enumerate(answers(ours)):
        for step, token in enumerate(ids):
            free = model.logits_after((*PROMPTS[row], *ids[:step])).log_softmax(dim=0)
            assert ours.logprobs[row, step].item() == pytest.approx(free[token].item(), abs=1e-4)


YES, NO, NOT_SURE = (5,), (6,), (6, 7, 8)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), bound=st.integers(2, 6))
def test_a_closed_set_answers_nothing_else(seed: int, bound: int) -> None:
    closed = ClosedSet(vocab=OBJECT_VOCAB, answers=(YES, NO, NOT_SURE))
    ours = constrained(Eager(OBJECT_VOCAB, seed=seed), closed, bound, sampler=Temperature(1.0))
    possible = [(*answer, 1) for answer in (YES, NO, NOT_SURE) if len(answer) < bound]
    assert ours.finished.all()
    assert all(tuple(ids) in possible for ids in answers(ours))


def test_every_answer_of_a_closed_set_can_be_given() -> None:
    closed = ClosedSet(vocab=OBJECT_VOCAB, answers=(YES, NO, NOT_SURE))
    for answer in (YES, NO, NOT_SURE):
        wish = [*answer, 1]
        assert answers(constrained(Longing(wish), closed, 8)) == [wish, wish]


def test_each_row_may_have_its_own_grammar() -> None:
    closed = ClosedSet(vocab=OBJECT_VOCAB, answers=(YES, NO))
    model = FakeModel(OBJECT_VOCAB, seed=4)
    free = constrained(FakeModel(OBJECT_VOCAB, seed=4), None, 6)
    ours = constrained(model, [None, closed], 6)
    assert answers(ours)[0] == answers(free)[0]
    assert tuple(answers(ours)[1]) in {(*YES, 1), (*NO, 1)}


def test_a_row_that_only_pads_the_batch_needs_no_grammar() -> None:
    closed = ClosedSet(vocab=OBJECT_VOCAB, answers=(YES, NO))
    ours = generate(
        FakeModel(OBJECT_VOCAB),
        text_batch((2, 5), ()),
        DecodeOptions(max_new_tokens=6),
        constraint=closed,
    )
    assert ours.lengths.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: objects(max_objects=0), "got 0 and 0"),
        (lambda: objects(min_objects=3, max_objects=2), "got 3 and 2"),
        (lambda: objects(max_objects=2000), "1 <= max_objects <= 1024"),
        (lambda: objects(labels=((5,), ())), "no label may be empty"),
        (lambda: objects(labels=((5, 1),)), r"ordinary token ids below 1167, got 1 in \[5, 1\]"),
        (lambda: objects(labels=((LOC0,),)), f"got {LOC0} in"),
        (lambda: objects(labels=((5000,),)), "below 1167, got 5000"),
        (lambda: objects(separator=()), "at least one token, got none"),
        (lambda: objects(max_label_tokens=0), "at least 1, got 0"),
        (lambda: ClosedSet(vocab=OBJECT_VOCAB, answers=()), "at least one answer"),
        (lambda: ClosedSet(vocab=OBJECT_VOCAB, answers=((),)), "none may be empty"),
        (
            lambda: constrained(FakeModel(OBJECT_VOCAB), objects(min_objects=2), 12),
            "at least 13 for this grammar, got 12",
        ),
        (
            lambda: constrained(FakeModel(OBJECT_VOCAB), objects(), 30, banned_ids=(1,)),
            "ends with EOS, so id 1 must not be banned",
        ),
        (
            lambda: constrained(
                FakeModel(OBJECT_VOCAB),
                ClosedSet(vocab=OBJECT_VOCAB, answers=(YES,)),
                8,
                banned_ids=YES,
            ),
            r"banned ids \[5\] forbid every token",
        ),
        (
            lambda: constrained(FakeModel(OBJECT_VOCAB), [objects()], 30),
            "one for each of the 2 rows, got 1",
        ),
    ],
)
def test_a_grammar_that_cannot_work_says_rule_and_value(call: Callable, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()
