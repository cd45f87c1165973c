"""Decoding on a fake model: stopping, streaming, bans, recorded probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from fake_models import OBJECT_VOCAB, FakeModel, small_vocab, text_batch
from torch import Tensor

from paligemma.errors import ConfigError
from paligemma.generate import (
    DecodeOptions,
    Generation,
    LocationGreedy,
    Step,
    Temperature,
    best_of_n,
    generate,
    stream,
)

PROMPTS = ((2, 5), (2, 4, 5, 3), (2,), (2, 3, 3))


def options(max_new_tokens: int = 10, **others: object) -> DecodeOptions:
    return DecodeOptions(max_new_tokens=max_new_tokens, **others)  # type: ignore[arg-type]


def by_hand(model: FakeModel, prompt: tuple[int, ...], bound: int) -> tuple[list[int], list[float]]:
    ids: list[int] = []
    logprobs: list[float] = []
    while len(ids) < bound and (not ids or ids[-1] != 1):
        logits = model.logits_after((*prompt, *ids))
        ids.append(int(logits.argmax()))
        logprobs.append(logits.log_softmax(dim=0)[ids[-1]].item())
    return ids, logprobs


def assert_same(first: Generation, second: Generation) -> None:
    assert torch.equal(first.ids, second.ids)
    assert torch.equal(first.logprobs, second.logprobs)
    assert torch.equal(first.lengths, second.lengths)
    assert torch.equal(first.finished, second.finished)


def test_greedy_decoding_follows_the_most_probable_token_of_each_row() -> None:
    model = FakeModel(small_vocab(6), seed=3)
    ours = generate(model, text_batch(*PROMPTS), options())
    lengths = []
    for row, prompt in enumerate(PROMPTS):
        ids, logprobs = by_hand(model, prompt, 10)
        lengths.append(len(ids))
        assert ours.ids[row].tolist() == ids + [0] * (ours.ids.shape[1] - len(ids))
        assert ours.scores[row].item() == pytest.approx(sum(logprobs), abs=1e-5)
        assert ours.logprobs[row, : len(ids)].tolist() == pytest.approx(logprobs, abs=1e-5)
        assert ours.finished[row].item() == (ids[-1] == 1)
    assert ours.lengths.tolist() == lengths
    assert len(set(lengths)) > 1


def test_decoding_stops_when_every_row_has_ended() -> None:
    model = FakeModel(small_vocab(6), seed=3)
    ours = generate(model, text_batch(*PROMPTS), options(100))
    assert ours.ids.shape[1] == int(ours.lengths.max()) < 100
    # The last token is never read back.
    assert model.num_steps == ours.ids.shape[1] - 1


def test_a_row_that_only_pads_the_batch_does_not_keep_it_running() -> None:
    alone = generate(FakeModel(small_vocab(6), seed=3), text_batch((2, 5)), options(100))
    padded = generate(FakeModel(small_vocab(6), seed=3), text_batch((2, 5), ()), options(100))
    assert padded.ids.tolist() == [*alone.ids.tolist(), [0] * alone.ids.shape[1]]
    assert padded.lengths.tolist() == [int(alone.lengths), 0]
    assert padded.scores[1] == 0
    assert padded.finished.tolist() == [True, False]
    assert padded.cut.tolist() == [False, False]


def test_the_length_bound_cuts_and_says_so() -> None:
    ours = generate(
        FakeModel(small_vocab(6), seed=3), text_batch(*PROMPTS), options(5, banned_ids=(1,))
    )
    assert ours.ids.shape[1] == 5
    assert ours.lengths.tolist() == [5, 5, 5, 5]
    assert not ours.finished.any()
    assert ours.cut.all()
    assert 1 not in ours.ids


def test_a_late_check_for_the_end_changes_no_answer() -> None:
    batch = text_batch(*PROMPTS)
    on_time = generate(FakeModel(small_vocab(6), seed=3), batch, options(100))
    late = generate(FakeModel(small_vocab(6), seed=3), batch, options(100, eos_look_behind=3))
    num_steps = on_time.ids.shape[1]
    assert late.ids.shape[1] == num_steps + 3
    assert torch.equal(late.ids[:, :num_steps], on_time.ids)
    assert late.ids[:, num_steps:].abs().sum() == 0
    assert torch.equal(late.scores, on_time.scores)
    assert torch.equal(late.lengths, on_time.lengths)


def test_log_probabilities_ignore_temperature_and_bans() -> None:
    model = FakeModel(small_vocab(6), seed=3)
    ours = generate(
        model, text_batch((2, 5)), options(4, sampler=Temperature(3.0), banned_ids=(0, 1), seed=5)
    )
    seen = (2, 5)
    for token, logprob in zip(ours.ids[0].tolist(), ours.logprobs[0].tolist(), strict=True):
        expected = model.logits_after(seen).log_softmax(dim=0)[token].item()
        assert logprob == pytest.approx(expected, abs=1e-5)
        seen = (*seen, token)


def test_a_stream_yields_what_the_batch_returns_and_computes_no_further_than_asked() -> None:
    model = FakeModel(small_vocab(6), seed=3)
    batch = text_batch(*PROMPTS)
    whole = generate(FakeModel(small_vocab(6), seed=3), batch, options())
    told: list[Step] = []
    assert_same(generate(model, batch, options(), on_token=told.append), whole)
    assert torch.equal(torch.stack([step.tokens for step in told], dim=1), whole.ids)
    model.num_steps = 0
    steps = stream(model, batch, options())
    first = next(steps)
    assert model.num_steps == 0
    assert torch.equal(first.tokens, whole.ids[:, 0])
    assert torch.equal(next(steps).tokens, whole.ids[:, 1])
    assert model.num_steps == 1
    assert [step.index for step in steps] == list(range(2, whole.ids.shape[1]))


def test_results_are_ordinary_tensors_that_may_be_changed() -> None:
    ours = generate(FakeModel(small_vocab(6)), text_batch((2, 5)), options(3))
    for tensor in (ours.ids, ours.logprobs, ours.scores, ours.lengths, ours.finished, ours.cut):
        assert not tensor.is_inference()
    ours.ids[0, 0] = 3
    assert torch.is_grad_enabled()


class LocModel(FakeModel):
    """Writes a location token at every other step, and never ends."""

    def logits_after(self, seen: tuple[int, ...]) -> Tensor:
        logits = super().logits_after(seen)
        logits[1] = -50.0
        logits[self.config.vocab.loc0 :] -= 20.0 * (len(seen) % 2)
        logits[: self.config.vocab.loc0] -= 20.0 * (1 - len(seen) % 2)
        return logits


def test_probabilities_of_all_bins_are_kept_where_a_location_token_was_written() -> None:
    model = LocModel(OBJECT_VOCAB)
    prompts = ((2, 5), (2, 5, 4))
    ours = generate(model, text_batch(*prompts, ()), options(5, record_loc_probs=True))
    assert ours.loc_probs is not None
    assert [tuple(probs.shape) for probs in ours.loc_probs] == [(3, 1024), (2, 1024), (0, 1024)]
    for row, prompt in enumerate(prompts):
        ids = ours.ids[row].tolist()
        at = [step for step, token in enumerate(ids) if OBJECT_VOCAB.is_loc(token)]
        for step, probs in zip(at, ours.loc_probs[row], strict=True):
            logits = model.logits_after((*prompt, *ids[:step]))
            bins = logits.softmax(dim=0)[OBJECT_VOCAB.loc0 : OBJECT_VOCAB.loc0 + 1024]
            assert torch.allclose(probs, bins, atol=1e-6)
            written = probs[ids[step] - OBJECT_VOCAB.loc0].log().item()
            assert written == pytest.approx(ours.logprobs[row, step].item(), abs=1e-4)
    assert generate(model, text_batch(prompts[0]), options(5)).loc_probs is None


def test_answers_without_location_tokens_have_empty_records() -> None:
    ours = generate(FakeModel(OBJECT_VOCAB), text_batch((2, 5)), options(1, record_loc_probs=True))
    expected = int(OBJECT_VOCAB.is_loc(int(ours.ids[0, 0])))
    assert ours.loc_probs is not None
    assert ours.loc_probs[0].shape == (expected, 1024)


def test_best_of_n_returns_the_most_probable_of_n_draws_and_reads_the_prompt_once() -> None:
    model = FakeModel(small_vocab(6), seed=3)
    drawing = options(8, sampler=Temperature(2.0), seed=11)
    ours = best_of_n(model, text_batch(*PROMPTS), drawing, n=5)
    assert model.num_prefills == 1
    for row, prompt in enumerate(PROMPTS):
        # Multiples of 2^64 / golden ratio, below 2^63.
        seeds = [(11 + 0x9E3779B97F4A7C15 * sample) % 2**63 for sample in range(5)]
        draws = [generate(model, text_batch(prompt), replace(drawing, seed=seed)) for seed in seeds]
        best = max(draws, key=lambda draw: draw.scores.item())
        length = int(best.lengths)
        assert ours.ids[row, :length].tolist() == best.ids[0].tolist()
        assert ours.scores[row] == best.scores[0] > min(draw.scores[0] for draw in draws)


class BrokenModel(FakeModel):
    def logits_after(self, seen: tuple[int, ...]) -> Tensor:
        return super().logits_after(seen) * torch.nan


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, b: options(0), r"max_new_tokens must lie in 1..8192, got 0"),
        (lambda m, b: options(10**9), "got 1000000000"),
        (lambda m, b: options(kv_cache_dtype="int3"), "bfloat16, float32, int8, got 'int3'"),
        (lambda m, b: options(eos_look_behind=-1), "0 or more steps, got -1"),
        (lambda m, b: options(seed=-1), r"seed must lie in 0..9223372036854775807, got -1"),
        (lambda m, b: generate(m, b, options(banned_ids=(6,))), r"0..5, got 6"),
        (lambda m, b: generate(m, b, options(record_loc_probs=True)), "vocabulary has none"),
        (lambda m, b: best_of_n(m, b, options(), n=3), r"got Greedy\(\); use Temperature"),
        (
            lambda m, b: best_of_n(m, b, options(sampler=LocationGreedy(3)), n=2),
            r"got LocationGreedy\(loc0=3, seg0=-1\); use Temperature",
        ),
        (lambda m, b: best_of_n(m, b, options(), n=0), "n in 1..256, got 0"),
        (lambda m, b: generate(BrokenModel(small_vocab(6)), b, options()), "produced NaN"),
    ],
)
def test_an_option_that_does_not_fit_says_rule_and_value(call: Callable, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call(FakeModel(small_vocab(6)), text_batch((2, 5)))
