"""Beam search against enumeration of every answer of a tiny language model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from fake_models import FakeModel, small_vocab, text_batch

from paligemma.errors import ConfigError
from paligemma.generate import BeamOptions, LengthPenalty, beam_search

EOS = 1
PROMPTS = ((2, 3), (2,), (2, 4, 4))


def search(model: FakeModel, num_beams: int, bound: int, **others: object) -> tuple:
    options = BeamOptions(num_beams=num_beams, max_new_tokens=bound, **others)  # type: ignore[arg-type]
    ours = beam_search(model, text_batch(*PROMPTS), options)
    return ours, [
        tuple(ids[:length])
        for ids, length in zip(ours.ids.tolist(), ours.lengths.tolist(), strict=True)
    ]


def log_probability(model: FakeModel, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    total = 0.0
    for step, token in enumerate(answer):
        logits = model.logits_after((*prompt, *answer[:step]))
        total += logits.log_softmax(dim=0)[token].item()
    return total


def every_answer(vocab_size: int, bound: int) -> list[tuple[int, ...]]:
    words = [token for token in range(vocab_size) if token != EOS]
    return [(*content, EOS) for length in range(bound) for content in product(words, repeat=length)]


@pytest.mark.parametrize(
    "penalty",
    [None, LengthPenalty("gnmt", 0.0), LengthPenalty("gnmt", 1.0), LengthPenalty("power", 1.0)],
)
def test_beams_that_hold_everything_find_the_best_of_all_answers(
    penalty: LengthPenalty | None,
) -> None:
    # 4 words beside EOS and at most 3 of them: 16 beams hold every unfinished answer of two.
    model = FakeModel(small_vocab(5), seed=1, scale=1.0)
    ours, found = search(model, 16, 4, length_penalty=penalty)
    best = []
    for prompt in PROMPTS:
        scored = {
            answer: log_probability(model, prompt, answer)
            / (1.0 if penalty is None else penalty.divisor(len(answer)))
            for answer in every_answer(5, 4)
        }
        best.append(max(scored, key=scored.__getitem__))
    assert found == best
    for row, prompt in enumerate(PROMPTS):
        plain_sum = log_probability(model, prompt, found[row])
        assert ours.scores[row].item() == pytest.approx(plain_sum, abs=1e-5)
        assert ours.logprobs[row].sum().item() == pytest.approx(plain_sum, abs=1e-5)


def test_a_length_penalty_prefers_longer_answers() -> None:
    model = FakeModel(small_vocab(5), seed=1, scale=1.0)
    plain = search(model, 16, 4)[0].lengths
    mean = search(model, 16, 4, length_penalty=LengthPenalty("power", 1.0))[0].lengths
    assert (mean >= plain).all()
    assert mean.sum() > plain.sum()


def test_a_strong_length_penalty_still_ends_at_the_first_eos() -> None:
    # Under plain sums a beam that held EOS could never win; under this penalty it would.
    for seed in range(5):
        model = FakeModel(small_vocab(5), seed=seed, scale=1.0)
        _, found = search(model, 2, 8, length_penalty=LengthPenalty("power", 3.0))
        assert all(answer.index(EOS) == len(answer) - 1 for answer in found)
        assert max(map(len, found)) == 8


def test_one_beam_is_greedy_without_eos_ended_at_its_best_position() -> None:
    model = FakeModel(small_vocab(6), seed=2)
    _, found = search(model, 1, 8)
    plain_greedy = 0
    for prompt, answer in zip(PROMPTS, found, strict=True):
        content: tuple[int, ...] = ()
        endings = {}
        for _ in range(8):
            logits = model.logits_after((*prompt, *content))
            ending = (*content, EOS)
            endings[ending] = log_probability(model, prompt, ending)
            plain_greedy += int(logits.argmax()) == EOS and answer == ending
            logits[EOS] = -torch.inf
            content = (*content, int(logits.argmax()))
        assert answer == max(endings, key=endings.__getitem__)
    # Not the same thing as plain greedy decoding.
    assert plain_greedy < len(PROMPTS)


def test_the_search_ends_when_no_live_beam_can_catch_up() -> None:
    class Hasty(FakeModel):
        def logits_after(self, seen: tuple[int, ...]) -> torch.Tensor:
            logits = super().logits_after(seen)
            logits[EOS] = 12.0 if len(seen) >= 6 else -12.0
            return logits

    model = Hasty(small_vocab(5), seed=1, scale=1.0)
    ours, _ = search(model, 3, 100)
    # Answers end when prompt and content hold six tokens; the shortest prompt needs five more.
    assert ours.lengths.tolist() == [5, 6, 4]
    assert model.num_steps <= 6


def test_a_row_that_only_pads_the_batch_is_empty_and_does_not_keep_the_search_running() -> None:
    alone, padded = FakeModel(small_vocab(6), seed=2), FakeModel(small_vocab(6), seed=2)
    options = BeamOptions(num_beams=3, max_new_tokens=50)
    first = beam_search(alone, text_batch((2, 3)), options)
    second = beam_search(padded, text_batch((2, 3), ()), options)
    assert second.ids.tolist() == [*first.ids.tolist(), [0] * first.ids.shape[1]]
    assert second.lengths.tolist() == [int(first.lengths), 0]
    assert second.finished.tolist() == [True, False]
    assert padded.num_steps == alone.num_steps


def test_a_bound_that_stops_unfinished_beams_is_told_and_one_that_does_not_is_not() -> None:
    class Patient(FakeModel):
        def logits_after(self, seen: tuple[int, ...]) -> torch.Tensor:
            logits = super().logits_after(seen)
            logits[EOS] = 15.0 if len(seen) >= 6 else -15.0
            return logits

    # Prompts of 2, 1 and 3 tokens: answers want 5, 6 and 4, EOS included.
    model = Patient(small_vocab(5), seed=1, scale=1.0)
    for bound, cut in ((3, [1, 1, 1]), (4, [1, 1, 0]), (5, [0, 1, 0]), (6, [0, 0, 0])):
        ours, _ = search(model, 3, bound)
        assert ours.cut.tolist() == [bool(one) for one in cut]
        assert ours.finished.all()
    padded = beam_search(model, text_batch((2, 3), ()), BeamOptions(num_beams=3, max_new_tokens=3))
    assert padded.cut.tolist() == [True, False]


def test_rows_with_bounds_and_penalties_of_their_own_are_searched_as_alone() -> None:
    model = FakeModel(small_vocab(6), seed=2)
    own = [
        BeamOptions(num_beams=3, max_new_tokens=2),
        BeamOptions(num_beams=3, max_new_tokens=9, length_penalty=LengthPenalty("power", 2.0)),
        BeamOptions(num_beams=3, max_new_tokens=4, length_penalty=LengthPenalty("gnmt", 1.0)),
    ]
    together = beam_search(model, text_batch(*PROMPTS), own)
    for row, prompt in enumerate(PROMPTS):
        alone = beam_search(model, text_batch(prompt), own[row])
        length = int(alone.lengths)
        assert int(together.lengths[row]) == length
        assert together.ids[row, :length].tolist() == alone.ids[0].tolist()
        assert torch.equal(together.logprobs[row, :length], alone.logprobs[0])
        assert together.cut[row] == alone.cut[0]
    assert together.cut.tolist() == [True, True, True]
    assert len(set(together.lengths.tolist())) == 3
    with pytest.raises(ConfigError, match=r"same number of beams, got \[2, 3\]"):
        beam_search(model, text_batch(*PROMPTS), [BeamOptions(num_beams=2), *own[1:]])


def test_more_beams_than_words_change_nothing_but_the_room() -> None:
    model = FakeModel(small_vocab(3), seed=4)
    assert search(model, 8, 4)[1] == search(model, 64, 4)[1]


def test_a_broken_model_is_reported() -> None:
    class Broken(FakeModel):
        def logits_after(self, seen: tuple[int, ...]) -> torch.Tensor:
            return super().logits_after(seen) * torch.nan

    with pytest.raises(ConfigError, match="produced NaN"):
        search(Broken(small_vocab(5)), 2, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BeamOptions(num_beams=0), "1..64, got 0"),
        (lambda: BeamOptions(num_beams=65), "1..64, got 65"),
        (lambda: BeamOptions(num_beams=2, max_new_tokens=0), "1..8192, got 0"),
        (lambda: LengthPenalty("wu", 1.0), "gnmt or power, got 'wu'"),
        (lambda: LengthPenalty("gnmt", -0.1), r"\[0, 5\], got -0.1"),
    ],
)
def test_a_search_option_out_of_bounds_says_rule_and_value(make: Callable, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
