"""Decoding against the original's own ids and log-probabilities (tests/golden/data/README.md)."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import torch
from golden_set import (
    Decoding,
    GoldenModel,
    assert_within_rounding,
    compare_choices,
)
from reference import log_softmax
from torch import Tensor

from paligemma.batch import Batch
from paligemma.generate import BeamOptions, DecodeOptions, Generation, beam_search, generate
from paligemma.generate.best_of_n import best_rows
from paligemma.generate.sampling import nucleus_keep
from paligemma.vocab import Vocab

EOS = 1
# A cache in bfloat16 has a noise of its own: see test_golden_model.py.
NOISE = {"float32": 2e-4, "bfloat16": 5e-2}


def until_eos(ids: np.ndarray) -> np.ndarray:
    """bool[B, T]: up to and including the first EOS."""
    is_eos = (ids == EOS).astype(int)
    return is_eos.cumsum(axis=1) - is_eos == 0


def widened(array: Tensor, num_tokens: int) -> np.ndarray:
    """[B, T] with zeros up to the bound: ours ends with its last row."""
    return np.pad(array.numpy(), ((0, 0), (0, num_tokens - array.shape[1])))


def assert_same_answers(
    ours: Generation,
    decoding: Decoding,
    ids: np.ndarray,
    logp: np.ndarray,
    banned: tuple[int, ...] = (),
) -> None:
    """Ids and log-probabilities are the original's up to the first EOS of each real row."""
    real = decoding.real()
    # The other rows only pad the batch.
    assert not ours.ids[~real].any()
    assert not ours.lengths[~real].any()
    ours = ours.select(torch.from_numpy(np.flatnonzero(real)))
    ids, logp = ids[real], logp[real]
    kept = until_eos(ids)
    logits = decoding.exact_logits(ids)
    exact = np.take_along_axis(log_softmax(logits), ids[..., None], axis=-1)[..., 0]
    allowed = logits.copy()
    allowed[..., list(banned)] = -np.inf
    ties = compare_choices(
        widened(ours.ids, decoding.num_tokens),
        ids * kept,
        choice_margins(allowed, ids),
        # Two logits, each rounded once, at the least.
        max(2 * np.abs(logp - exact)[kept].max(), 2.0**-23 * np.abs(logits).max()),
        in_order=True,
    )
    same = ~np.isin(np.arange(len(ids)), ties.rows)
    assert same.any()
    kept &= same[:, None]
    assert_within_rounding(
        widened(ours.logprobs, decoding.num_tokens)[kept],
        logp[kept],
        exact[kept],
        noise=NOISE[decoding.kv_cache_dtype],
        # (logit - greatest logit) - log(sum of exponentials), and that sum is 1 or more.
        summed=np.maximum(1.0, np.abs(exact[kept])),
    )
    assert np.array_equal(ours.lengths[same], kept.sum(axis=1)[same])
    assert np.array_equal(ours.finished[same], (ids == EOS).any(axis=1)[same])
    np.testing.assert_allclose(ours.scores, ours.logprobs.sum(axis=1), rtol=1e-6)
    ties.report()


def choice_margins(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """By how much the chosen ids [N, S] exceed the best other one in logits [N, S, V]."""
    chosen = np.take_along_axis(logits, ids[..., None], axis=-1)
    others = logits.copy()
    np.put_along_axis(others, ids[..., None], -np.inf, axis=-1)
    return chosen[..., 0] - others.max(axis=-1)


def test_greedy_ids_and_log_probabilities_are_the_original_s(decoding: Decoding) -> None:
    options = DecodeOptions(
        max_new_tokens=decoding.num_tokens, kv_cache_dtype=decoding.kv_cache_dtype
    )
    ours = generate(decoding.model(), decoding.batch(), options)
    ids, logp = decoding.array("greedy_ids"), decoding.array("greedy_logp")
    # A score sums the log-probabilities up to and including EOS, as ours does.
    sums = (logp * until_eos(ids)).sum(axis=1)
    np.testing.assert_allclose(decoding.array("greedy_score"), sums, rtol=1e-6)
    assert_same_answers(ours, decoding, ids, logp)


def test_beam_ids_are_the_original_s(decoding: Decoding) -> None:
    # The README promises beams that survive more than rounding, so these are exact.
    real, sizes = decoding.real(), decoding.numbers(r"beam(\d+)_ids")
    assert sizes
    for num_beams in sizes:
        options = BeamOptions(
            num_beams=num_beams,
            max_new_tokens=decoding.num_tokens,
            kv_cache_dtype=decoding.kv_cache_dtype,
        )
        ours = beam_search(decoding.model(), decoding.batch(), options)
        original = decoding.array(f"beam{num_beams}_ids")[real]
        assert np.array_equal(widened(ours.ids[real], decoding.num_tokens), original), num_beams
        assert ours.finished[real].all()


def test_banned_ids_are_never_chosen_and_keep_their_probability_mass(banning: Decoding) -> None:
    banned = tuple(banning.gold.arrays("decode")["ban_ids"].tolist())
    options = DecodeOptions(
        max_new_tokens=banning.num_tokens,
        banned_ids=banned,
        kv_cache_dtype=banning.kv_cache_dtype,
    )
    ours = generate(banning.model(), banning.batch(), options)
    ids, logp = banning.array("ban_greedy_ids"), banning.array("ban_greedy_logp")
    assert not np.isin(ours.ids[banning.real()], banned).any()
    assert_same_answers(ours, banning, ids, logp, banned)


def test_decoding_stops_at_the_original_s_step(stopping: Decoding) -> None:
    lags = stopping.numbers(r"stop_lookbehind(\d+)_ids")
    keys = {0: "stop_ids"} | {lag: f"stop_lookbehind{lag}_ids" for lag in lags}
    real = stopping.real("stop_")
    for lag, key in keys.items():
        original = stopping.array(key)
        options = DecodeOptions(
            max_new_tokens=stopping.num_tokens,
            kv_cache_dtype=stopping.kv_cache_dtype,
            eos_look_behind=lag,
        )
        ours = generate(stopping.model(), stopping.batch("stop_"), options)
        # The rows that only pad the batch must not keep it running; unwritten positions are 0.
        num_steps = int(np.flatnonzero(original.any(axis=0)).max()) + 1
        assert ours.ids.shape[1] == num_steps < stopping.num_tokens
        kept = until_eos(original)[real]
        assert np.array_equal(widened(ours.ids[real], stopping.num_tokens), original[real] * kept)


def test_the_nucleus_is_the_original_s_ties_included(gold: GoldenModel) -> None:
    arrays = gold.arrays("decode")
    logits = torch.from_numpy(arrays["nucleus_logits"])
    keys = [key for key in arrays if key.startswith("nucleus_keep_")]
    assert keys
    ties = []
    for key in keys:
        p, temperature = map(float, re.fullmatch(r"nucleus_keep_p(.*)_t(.*)", key).groups())
        keep = nucleus_keep(logits / temperature, p).numpy()
        assert 0 < keep.sum() < keep.size
        # A row is one choice: of the token at which the mass reaches p. The last bits of a running
        # sum of float32 add up over the vocabulary.
        gap = arrays[key.replace("keep", "gap")]
        same = (keep == arrays[key]).all(axis=1)
        ties.append(compare_choices(same, np.ones_like(same), gap, keep.shape[1] * 2.0**-24))
    for tie in ties:
        tie.report()


class Scripted:
    """A model without memory that gives scripted tokens the log-probabilities of a script."""

    device = torch.device("cpu")

    def __init__(self, ids: Tensor, logprobs: Tensor) -> None:
        vocab = Vocab(size=int(ids.max()) + 2, pad=0, eos=EOS, bos=2, sep=2, loc0=-1, seg0=-1)
        self.config = SimpleNamespace(vocab=vocab)
        self.script = iter(zip(ids.T, logprobs.T, strict=True))
        self.tokens = ids[:, 0]

    def __call__(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.tokens

    def new_cache(self, *_: object) -> None:
        return None

    def prefill(self, *_: object, **_options: object) -> tuple[Tensor, Tensor]:
        return self.decode_step(), torch.ones_like(self.tokens)

    def decodes_runs(self, *_: object) -> bool:
        return False

    def decode_step(self, *_: object) -> Tensor:
        self.tokens, logprobs = next(self.script)
        size = self.config.vocab.size
        others = ((1 - logprobs.double().exp()) / (size - 1)).log().float()
        rows = others[:, None].repeat(1, size)
        return rows.scatter(1, self.tokens[:, None], logprobs[:, None])


def test_best_of_n_selects_the_original_s_rows(gold: GoldenModel) -> None:
    arrays = gold.arrays("decode")
    ids, logprobs = torch.from_numpy(arrays["bon_ids"]).long(), arrays["bon_logp"]
    script = Scripted(ids, torch.from_numpy(logprobs))
    ones = torch.ones(ids.shape[0], 1, dtype=torch.long)
    batch = Batch(images=None, tokens=ones, mask_ar=ones, mask_input=ones.bool())
    drawn = generate(script, batch, DecodeOptions(max_new_tokens=ids.shape[1], sampler=script))
    # The script passes through a softmax: a few roundings a token, of numbers around 10.
    rounding = ids.shape[1] * 16 * 2.0**-23
    np.testing.assert_allclose(drawn.scores, arrays["bon_scores"], rtol=0, atol=rounding)
    num_samples = len(ids) // len(arrays["bon_best_ids"])
    best = drawn.select(best_rows(drawn.scores, num_samples))
    kept = until_eos(arrays["bon_best_ids"])
    assert np.array_equal(widened(best.ids, ids.shape[1]), arrays["bon_best_ids"] * kept)
    np.testing.assert_allclose(
        widened(best.logprobs, ids.shape[1]), arrays["bon_best_logp"] * kept, rtol=0, atol=rounding
    )
