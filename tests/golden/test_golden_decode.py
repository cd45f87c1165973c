"""Decoding against the original's own ids and log-probabilities (tests/golden/data/README.md)."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_golden_model import DECODE_NOISE, Golden, golden_model
from torch import Tensor

from paligemma.batch import Batch
from paligemma.generate import BeamOptions, DecodeOptions, Generation, beam_search, generate
from paligemma.generate.best_of_n import best_rows
from paligemma.generate.sampling import nucleus_keep
from paligemma.model import PaliGemmaModel
from paligemma.vocab import Vocab

NUM_TOKENS = 12
EOS = 1
CACHE_DTYPES = {"f32": "float32", "bf16": "bfloat16"}
# Float32 noise beside a bfloat16 rounding boundary becomes a whole step of the cache: see
# test_a_bfloat16_cache_gives_the_original_s_logits, whose bounds these are.
BF16_MAX, BF16_MEAN = 0.3, 5 * 0.006

both = pytest.mark.parametrize("name", ["g1", "g2"])
variants = pytest.mark.parametrize(
    ("name", "variant"),
    [
        (name, f"{cap}_{dtype}")
        for name, cap in (("g1", "nocap"), ("g2", "nocap"), ("g2", "cap30"))
        for dtype in CACHE_DTYPES
    ],
)


@cache
def model_of(golden_dir: Path, name: str, cap: str) -> PaliGemmaModel:
    return golden_model(golden_dir, name, final_softcap=30.0 if cap == "cap30" else None)


@cache
def gold_of(golden_dir: Path, name: str) -> Golden:
    return Golden(golden_dir / f"{name}_decode.npz")


def golden_batch(gold: Golden, prefix: str = "") -> Batch:
    return Batch(
        images=gold[prefix + "image"],
        tokens=gold[prefix + "text"].long(),
        mask_ar=gold[prefix + "mask_ar"].long(),
        mask_input=gold[prefix + "mask_input"].bool(),
    )


def until_eos(ids: Tensor) -> Tensor:
    """bool[B, T]: up to and including the first EOS."""
    is_eos = (ids == EOS).long()
    return is_eos.cumsum(dim=1) - is_eos == 0


def assert_same_answers(
    ours: Generation, ids: Tensor, logprobs: Tensor, real: Tensor, variant: str, noise: float
) -> None:
    """Ids exactly and log-probabilities within the noise, both up to the first EOS."""
    kept = until_eos(ids)[real][:, : ours.ids.shape[1]]
    # What the original wrote beyond our last step lies after EOS in every row.
    assert not until_eos(ids)[real][:, ours.ids.shape[1] :].any()
    assert torch.equal(ours.ids[real], (ids[real][:, : ours.ids.shape[1]] * kept).long())
    difference = (ours.logprobs[real] - logprobs[real][:, : ours.ids.shape[1]] * kept).abs()
    if variant.endswith("f32"):
        assert difference.max().item() <= 5 * noise
    else:
        assert difference.max().item() <= BF16_MAX
        assert difference.mean().item() <= BF16_MEAN
    assert torch.equal(ours.lengths[real], kept.sum(dim=1))


@variants
def test_greedy_ids_and_log_probabilities_are_the_original_s(
    golden_dir: Path, name: str, variant: str
) -> None:
    gold = gold_of(golden_dir, name)
    cap, dtype = variant.split("_")
    options = DecodeOptions(max_new_tokens=NUM_TOKENS, kv_cache_dtype=CACHE_DTYPES[dtype])
    ours = generate(model_of(golden_dir, name, cap), golden_batch(gold), options)
    real, noise = gold["mask"], DECODE_NOISE[name]
    ids, logprobs = gold[f"{variant}:greedy_ids"], gold[f"{variant}:greedy_logp"]
    assert_same_answers(ours, ids, logprobs, real, variant, noise)
    scores = (ours.scores - gold[f"{variant}:greedy_score"])[real].abs().max().item()
    assert scores <= NUM_TOKENS * (5 * noise if dtype == "f32" else BF16_MEAN)
    assert torch.equal(ours.finished[real], (ids[real] == EOS).any(dim=1))
    # The last row only pads the batch.
    assert ours.ids[~real].abs().sum() == 0
    assert ours.lengths[~real].tolist() == [0]


@pytest.mark.parametrize("num_beams", [2, 3])
@variants
def test_beam_ids_are_the_original_s(
    golden_dir: Path, name: str, variant: str, num_beams: int
) -> None:
    gold = gold_of(golden_dir, name)
    cap, dtype = variant.split("_")
    options = BeamOptions(
        num_beams=num_beams, max_new_tokens=NUM_TOKENS, kv_cache_dtype=CACHE_DTYPES[dtype]
    )
    ours = beam_search(model_of(golden_dir, name, cap), golden_batch(gold), options)
    real = gold["mask"]
    expected = gold[f"{variant}:beam{num_beams}_ids"][real].long()
    longest = ours.ids.shape[1]
    assert torch.equal(ours.ids[real], expected[:, :longest])
    assert expected[:, longest:].abs().sum() == 0
    assert ours.finished[real].all()


def keys_of(golden_dir: Path, name: str, pattern: str) -> list[re.Match[str]]:
    with np.load(golden_dir / f"{name}_decode.npz") as file:
        found = [match for key in file if (match := re.fullmatch(pattern, key))]
    assert found, f"{name}_decode.npz has nothing like {pattern}"
    return found


@both
def test_banned_ids_are_never_chosen_and_keep_their_probability_mass(
    golden_dir: Path, name: str
) -> None:
    gold = gold_of(golden_dir, name)
    variant = keys_of(golden_dir, name, r"(.*):ban_greedy_ids")[0][1]
    model = model_of(golden_dir, name, variant.split("_")[0])
    banned = tuple(gold["ban_ids"].tolist())
    options = DecodeOptions(
        max_new_tokens=NUM_TOKENS,
        banned_ids=banned,
        kv_cache_dtype=CACHE_DTYPES[variant.split("_")[1]],
    )
    ours = generate(model, golden_batch(gold), options)
    ids, logprobs = gold[f"{variant}:ban_greedy_ids"], gold[f"{variant}:ban_greedy_logp"]
    assert_same_answers(ours, ids, logprobs, gold["mask"], variant, DECODE_NOISE[name])
    assert not set(ours.ids[gold["mask"]].flatten().tolist()) & set(banned)


@pytest.mark.parametrize(("look_behind", "key"), [(0, "stop_ids"), (2, "stop_lookbehind2_ids")])
@both
def test_decoding_stops_at_the_original_s_step(
    golden_dir: Path, name: str, look_behind: int, key: str
) -> None:
    gold = gold_of(golden_dir, name)
    expected = gold[f"nocap_f32:{key}"].long()
    ours = generate(
        model_of(golden_dir, name, "nocap"),
        golden_batch(gold, "stop_"),
        DecodeOptions(
            max_new_tokens=NUM_TOKENS, kv_cache_dtype="float32", eos_look_behind=look_behind
        ),
    )
    # The last row only pads the batch and must not keep it running; unwritten positions are 0.
    num_steps = int((expected != 0).any(dim=0).sum())
    assert ours.ids.shape[1] == num_steps < NUM_TOKENS
    real = gold["stop_mask"]
    kept = until_eos(expected)[real][:, :num_steps]
    assert torch.equal(ours.ids[real], expected[real][:, :num_steps] * kept)


@both
def test_the_nucleus_is_the_original_s_ties_included(golden_dir: Path, name: str) -> None:
    gold = gold_of(golden_dir, name)
    for match in keys_of(golden_dir, name, r"nucleus_keep_p(.*)_t(.*)"):
        p, temperature = float(match[1]), float(match[2])
        keep = nucleus_keep(gold["nucleus_logits"] / temperature, p)
        assert torch.equal(keep, gold[match[0]])
        assert 0 < keep.sum() < keep.numel()


class Scripted:
    """A model without memory that gives scripted tokens the log-probabilities of a script."""

    device = torch.device("cpu")

    def __init__(self, ids: Tensor, logprobs: Tensor) -> None:
        vocab = Vocab(size=6, pad=0, eos=EOS, bos=2, sep=2, loc0=-1, seg0=-1)
        self.config = SimpleNamespace(vocab=vocab)
        self.script = iter(zip(ids.T, logprobs.T, strict=True))
        self.tokens = ids[:, 0]

    def __call__(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.tokens

    def new_cache(self, *_: object) -> None:
        return None

    def prefill(self, *_: object) -> tuple[Tensor, Tensor]:
        return self.decode_step(), torch.ones_like(self.tokens)

    def decode_step(self, *_: object) -> Tensor:
        self.tokens, logprobs = next(self.script)
        others = ((1 - logprobs.exp()) / 5).log()
        return others[:, None].repeat(1, 6).scatter(1, self.tokens[:, None], logprobs[:, None])


@both
def test_best_of_three_selects_the_original_s_rows(golden_dir: Path, name: str) -> None:
    gold = gold_of(golden_dir, name)
    ids, logprobs = gold["bon_ids"].long(), gold["bon_logp"]
    script = Scripted(ids, logprobs)
    ones = torch.ones(ids.shape[0], 1, dtype=torch.long)
    batch = Batch(images=None, tokens=ones, mask_ar=ones, mask_input=ones.bool())
    drawn = generate(script, batch, DecodeOptions(max_new_tokens=ids.shape[1], sampler=script))
    assert (drawn.scores - gold["bon_scores"]).abs().max().item() <= 1e-5
    best = drawn.select(best_rows(drawn.scores, 3))
    expected = gold["bon_best_ids"].long()
    num_steps = best.ids.shape[1]
    assert torch.equal(best.ids, (expected * until_eos(expected))[:, :num_steps])
    kept = gold["bon_best_logp"] * until_eos(expected)
    assert (best.logprobs - kept[:, :num_steps]).abs().max().item() <= 1e-6
