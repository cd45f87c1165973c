"""Every row of a batch is decoded as it would be alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from fake_models import OBJECT_VOCAB, FakeModel, small_vocab, text_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.errors import ConfigError
from paligemma.generate import (
    PROBABILITIES,
    ClosedSet,
    Constraint,
    DecodeOptions,
    Generation,
    Greedy,
    LocationGreedy,
    Nucleus,
    ObjectGrammar,
    Sampler,
    Temperature,
    TopK,
    best_of_n,
    generate,
)

PROMPTS = ((2, 5), (2, 4, 5, 3), (2,), (2, 3, 3), (2, 5))
GRAMMARS: tuple[Constraint | None, ...] = (
    None,
    ObjectGrammar(vocab=OBJECT_VOCAB, labels=((5,), (5, 6)), separator=(3, 4)),
    ObjectGrammar(vocab=OBJECT_VOCAB, labels=None, separator=(3, 4), max_label_tokens=3),
    ClosedSet(vocab=OBJECT_VOCAB, answers=((5,), (6, 7, 8), (9,))),
)
CODEBOOK = torch.randn(32, 4, generator=torch.Generator().manual_seed(5))
SAMPLERS: tuple[Sampler, ...] = (
    Greedy(),
    LocationGreedy(OBJECT_VOCAB.loc0),
    LocationGreedy(OBJECT_VOCAB.loc0, OBJECT_VOCAB.seg0, lambda: CODEBOOK),
    Temperature(1.5),
    TopK(7, 2.0),
    Nucleus(0.9),
)


def model(seed: int = 3, *, runs: bool = False) -> FakeModel:
    return FakeModel(OBJECT_VOCAB, seed=seed, runs=runs)


def assert_row_is_alone(together: Generation, row: int, alone: Generation) -> None:
    length = int(alone.lengths)
    assert int(together.lengths[row]) == length
    assert together.ids[row, :length].tolist() == alone.ids[0, :length].tolist()
    assert together.ids[row, length:].abs().sum() == 0
    assert torch.equal(together.logprobs[row, :length], alone.logprobs[0, :length])
    assert together.finished[row] == alone.finished[0]
    assert together.cut[row] == alone.cut[0]
    if alone.loc_probs is not None:
        assert together.loc_probs is not None
        assert torch.equal(together.loc_probs[row], alone.loc_probs[0])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_rows_with_options_and_grammars_of_their_own_answer_as_alone(data: st.DataObject) -> None:
    own = [
        DecodeOptions(
            max_new_tokens=data.draw(st.integers(8, 30)),
            sampler=data.draw(st.sampled_from(SAMPLERS)),
            banned_ids=data.draw(st.sampled_from([(), (11,), (12, OBJECT_VOCAB.loc0)])),
            record_loc_probs=data.draw(st.booleans()),
            seed=data.draw(st.integers(0, 3)),
            probabilities=data.draw(st.sampled_from(PROBABILITIES)),
            eos_look_behind=data.draw(st.sampled_from([0, 2])),
        )
        for _ in PROMPTS
    ]
    grammars = [data.draw(st.sampled_from(GRAMMARS)) for _ in PROMPTS]
    several = model(runs=data.draw(st.booleans()))
    together = generate(several, text_batch(*PROMPTS), own, constraint=grammars)
    for row, prompt in enumerate(PROMPTS):
        batch = text_batch(prompt)
        assert_row_is_alone(
            together, row, generate(model(), batch, own[row], constraint=grammars[row])
        )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_choices_among_allowed_tokens_are_those_by_whole_rows_of_logits(
    data: st.DataObject,
) -> None:
    """Alone, rows with grammars look at few logits; beside a row that draws, at all."""
    own = [
        DecodeOptions(
            max_new_tokens=data.draw(st.integers(8, 30)),
            sampler=data.draw(st.sampled_from(SAMPLERS[:2])),
            banned_ids=data.draw(st.sampled_from([(), (12, OBJECT_VOCAB.loc0)])),
            record_loc_probs=data.draw(st.booleans()),
            probabilities=data.draw(st.sampled_from(PROBABILITIES)),
        )
        for _ in PROMPTS[1:]
    ]
    grammars = [data.draw(st.sampled_from(GRAMMARS[1:])) for _ in own]
    seed, runs = data.draw(st.integers(0, 50)), data.draw(st.booleans())
    few = generate(model(seed, runs=runs), text_batch(*PROMPTS[1:]), own, constraint=grammars)
    drawing = DecodeOptions(max_new_tokens=30, sampler=Temperature(1.0), banned_ids=(1,))
    whole = generate(
        model(seed, runs=runs),
        text_batch(*PROMPTS[1:], PROMPTS[0]),
        [*own, drawing],
        constraint=[*grammars, None],
    )
    for row in range(len(own)):
        assert_row_is_alone(whole, row, few.select(torch.tensor([row])))


@pytest.mark.parametrize("sampler", [Temperature(1.5), TopK(3), Nucleus(0.8, 2.0)])
def test_a_row_draws_from_a_generator_of_its_own(sampler: Sampler) -> None:
    small = FakeModel(small_vocab(9), seed=1)
    options = DecodeOptions(max_new_tokens=7, sampler=sampler, banned_ids=(1,), seed=5)
    together = generate(small, text_batch(*PROMPTS), options)
    for row, prompt in enumerate(PROMPTS):
        generator = torch.Generator().manual_seed(5)
        seen = prompt
        for token in together.ids[row].tolist():
            logits = small.logits_after(seen)
            logits[1] = -torch.inf
            assert int(sampler(logits[None], generator)) == token
            seen = (*seen, token)
    # Equal prompts with equal seeds draw equal answers, with different seeds different ones.
    assert torch.equal(together.ids[0], together.ids[4])
    seeds = [replace(options, seed=seed) for seed in range(5)]
    differing = generate(small, text_batch(*[(2, 5)] * 5), seeds)
    assert len({tuple(ids) for ids in differing.ids.tolist()}) == 5


def test_a_row_ends_at_a_bound_of_its_own_while_the_others_go_on() -> None:
    bounds = (3, 9, 1, 5, 6)
    own = [DecodeOptions(max_new_tokens=bound, banned_ids=(1,)) for bound in bounds]
    small = FakeModel(small_vocab(6), seed=3)
    together = generate(small, text_batch(*PROMPTS), own)
    assert together.lengths.tolist() == list(bounds)
    assert together.cut.all()
    assert not together.finished.any()
    assert small.num_steps == 8
    for row, prompt in enumerate(PROMPTS):
        assert_row_is_alone(
            together, row, generate(FakeModel(small_vocab(6), seed=3), text_batch(prompt), own[row])
        )


def test_only_rows_that_ask_for_it_record_location_probabilities() -> None:
    options = DecodeOptions(max_new_tokens=12, record_loc_probs=True)
    grammar = ObjectGrammar(vocab=OBJECT_VOCAB, labels=(), separator=(3, 4), min_objects=1)
    mixed = [options, replace(options, record_loc_probs=False)]
    ours = generate(model(), text_batch((2, 5), (2, 5)), mixed, constraint=grammar)
    assert ours.loc_probs is not None
    assert len(ours.loc_probs[0]) >= 4
    assert len(ours.loc_probs[1]) == 0
    assert ours.ids[0].tolist() == ours.ids[1].tolist()


def test_the_best_of_n_draws_is_the_same_whatever_the_neighbours() -> None:
    small = FakeModel(small_vocab(8), seed=3)
    options = DecodeOptions(max_new_tokens=8, sampler=Temperature(2.0), seed=11)
    together = best_of_n(small, text_batch(*PROMPTS), options, n=4)
    for row, prompt in enumerate(PROMPTS):
        assert_row_is_alone(together, row, best_of_n(small, text_batch(prompt), options, n=4))
    # More draws never give a worse answer, and the first draw is that of `generate`.
    scores = [best_of_n(small, text_batch(*PROMPTS), options, n=n).scores for n in range(1, 6)]
    assert torch.equal(scores[0], generate(small, text_batch(*PROMPTS), options).scores)
    assert all((more >= fewer).all() for fewer, more in pairwise(scores))
    assert (scores[-1] > scores[0]).any()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), which=st.integers(0, 9))
def test_a_grammar_with_ample_room_allows_what_it_allows_with_any_larger_room(
    seed: int, which: int
) -> None:
    variants = [*GRAMMARS[1:]] + [
        ObjectGrammar(
            vocab=OBJECT_VOCAB,
            labels=labels,
            separator=(3, 4),
            with_masks=bool(number % 2),
            max_objects=3,
            min_objects=number % 3,
            max_label_tokens=3,
        )
        for number, labels in enumerate([(), None, ((5,), (5, 6), (7, 8, 9, 3)), ((6,),), None, ()])
    ]
    grammar = variants[which % len(variants)]
    assert grammar is not None
    generator = torch.Generator().manual_seed(seed)
    state = grammar.start()
    for _ in range(40):
        ample = grammar.ample_room(state)
        allowed = grammar.allowed(state, ample)
        for room in (ample + 1, ample + 7, 10**9):
            assert torch.equal(allowed, grammar.allowed(state, room))
        choices = allowed.nonzero()[:, 0]
        choices = choices[choices != OBJECT_VOCAB.eos]
        if not len(choices):
            break
        token = choices[torch.randint(len(choices), (1,), generator=generator)]
        state = grammar.advance(state, int(token))


@pytest.mark.parametrize("probabilities", ["vocabulary", "allowed"])
def test_a_grammar_is_asked_once_a_step_until_its_room_may_bind(probabilities: str) -> None:
    class Counting(ClosedSet):
        def allowed(self, state: int, room: int) -> torch.Tensor:
            rooms.append(room)
            return super().allowed(state, room)

    rooms: list[int] = []
    closed = Counting(vocab=OBJECT_VOCAB, answers=((5, 6, 7), (8, 9, 10)))
    # Three tokens and EOS: with room for four, nothing is ever forbidden for lack of it.
    for bound, asked in ((9, [9, 8, 7, 6]), (4, [4, 3, 4, 2, 4, 1, 4])):
        rooms.clear()
        options = DecodeOptions(max_new_tokens=bound, probabilities=probabilities)
        assert int(generate(model(), text_batch((2, 5)), options, constraint=closed).lengths) == 4
        assert rooms == asked


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ([DecodeOptions()] * 3, "one for each of the 2 rows, got 3"),
        (
            [DecodeOptions(), DecodeOptions(kv_cache_dtype="float32")],
            "share one cache, so their kv_cache_dtype must be the same, got bfloat16 and float32",
        ),
        ([DecodeOptions(), DecodeOptions(banned_ids=(5000,))], r"0..1166, got 5000"),
    ],
)
def test_options_that_no_batch_can_have_are_refused(own: list, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(model(), text_batch((2, 5), (2, 4)), own)
