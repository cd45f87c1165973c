"""The options of an answer: what they choose, and what they refuse."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_folder import DESK

from paligemma import AnswerOptions, PaliGemma
from paligemma.errors import ConfigError
from paligemma.generate import Greedy, Nucleus, Temperature, TopK
from paligemma.pipeline.options import ObjectOptions
from paligemma.pipeline.streaming import text_pieces


@pytest.mark.parametrize(
    ("options", "sampler"),
    [
        ({}, Greedy()),
        ({"temperature": 0.0}, Greedy()),
        ({"temperature": 0.0, "top_k": 5}, Greedy()),
        ({"temperature": 0.5}, Temperature(0.5)),
        ({"top_k": 5}, TopK(5, 1.0)),
        ({"top_k": 5, "temperature": 0.7}, TopK(5, 0.7)),
        ({"top_p": 0.9, "temperature": 2.0}, Nucleus(0.9, 2.0)),
    ],
)
def test_options_name_a_sampler(options: dict[str, Any], sampler: object) -> None:
    assert AnswerOptions(**options).sampler == sampler


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"top_k": 5, "top_p": 0.9}, "top_k or by top_p"),
        ({"num_beams": 2, "temperature": 1.0}, "beam search draws nothing"),
        ({"num_beams": 2, "temperature": 1.0, "best_of": 3}, "beam search draws nothing"),
        ({"best_of": 3}, "needs answers that differ"),
        ({"best_of": 3, "temperature": 0.0}, "needs answers that differ"),
        ({"length_penalty": 0.6}, "compares beams"),
        ({"temperature": -1.0}, "temperature must lie"),
        ({"top_p": 1.5}, "nucleus"),
        ({"top_k": 0}, "top-k"),
        ({"seed": -1}, "seed must lie"),
        ({"seed": 2**70}, "seed must lie"),
        ({"max_new_tokens": 5.5}, "max_new_tokens must be a whole number, got 5.5"),
        ({"num_beams": 2.0}, "num_beams must be a whole number, got 2.0"),
        ({"best_of": None}, "best_of must be a whole number, got None"),
        ({"top_k": "5"}, "top_k must be a whole number, got '5'"),
        ({"seed": True}, "seed must be a whole number, got True"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"temperature": float("nan")}, "temperature must lie"),
        ({"choices": "yes"}, "choices must be a list of answers, got 'yes'"),
        ({"choices": []}, "choices must be 1 to 100000 answers, got 0"),
        ({"choices": range(10**6)}, "choices must be 1 to 100000 answers, got 1000000"),
        ({"choices": range(10**30)}, "choices must be 1 to 100000 answers"),
        ({"choices": [1, 10**5000]}, "at most 99 digits"),
        ({"choices": ["yes", ""]}, "a text or a whole number, got ''"),
        ({"choices": [1.5]}, "a text or a whole number, got 1.5"),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        AnswerOptions(**options)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"num_beams": 0}, "num_beams must lie"),
        ({"num_beams": 2, "length_penalty": -1.0}, "alpha must lie"),
        ({"best_of": 0, "temperature": 1.0}, "best-of-n needs n"),
        ({"max_new_tokens": 10**9}, "max_new_tokens must lie"),
    ],
)
def test_options_out_of_bounds_are_refused(
    random_tiny: PaliGemma, options: dict[str, Any], rule: str
) -> None:
    with pytest.raises(ConfigError, match=rule):
        random_tiny.read(DESK, **options)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"max_objects": 3}, "without constrain; state constrain too"),
        ({"no_repeats": True}, "without constrain; state constrain too"),
        ({"max_objects": 0, "constrain": True}, "max_objects must lie in 1..1024, got 0"),
        ({"max_objects": 1.5, "constrain": True}, "max_objects must be a whole number, got 1.5"),
        ({"no_repeats": "no", "constrain": True}, "no_repeats must be True or False, got 'no'"),
    ],
)
def test_rules_of_objects_out_of_bounds_are_refused(options: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        ObjectOptions(**options)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"best_of": 2, "temperature": 1.0}])
def test_a_stream_and_a_grammar_follow_a_single_answer(
    random_tiny: PaliGemma, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="a stream follows one answer"):
        random_tiny.stream(DESK, "ocr", **options)
    with pytest.raises(ConfigError, match="a grammar follows one answer"):
        random_tiny.detect(DESK, "digit", constrain=True, max_new_tokens=16, **options)
    with pytest.raises(ConfigError, match="a grammar follows one answer"):
        random_tiny.read(DESK, choices=["yes"], **options)


def test_draws_repeat_with_their_seed_and_differ_with_another(random_tiny: PaliGemma) -> None:
    encoded = random_tiny.encode_image(DESK)
    first, again, other = (
        random_tiny.read(encoded, temperature=2.0, seed=seed, max_new_tokens=8)
        for seed in (1, 1, 2)
    )
    assert first.token_logprobs == again.token_logprobs
    assert first.token_logprobs != other.token_logprobs


def test_the_best_of_many_draws_is_more_probable_than_single_ones(random_tiny: PaliGemma) -> None:
    encoded = random_tiny.encode_image(DESK)
    best = random_tiny.read(encoded, temperature=2.0, max_new_tokens=3, best_of=16)
    single = [
        random_tiny.read(encoded, temperature=2.0, max_new_tokens=3, seed=seed).score
        for seed in range(3)
    ]
    assert best.score is not None
    assert best.score > max(score for score in single if score is not None)


def test_beams_end_an_answer_and_find_one_at_least_as_probable_as_ending_at_once(
    random_tiny: PaliGemma,
) -> None:
    encoded = random_tiny.encode_image(DESK)
    one = random_tiny.read(encoded, num_beams=3, max_new_tokens=1)
    three = random_tiny.read(encoded, num_beams=3, max_new_tokens=4)
    assert one.text == ""
    assert (three.score or 0) >= (one.score or 1)


def test_pieces_of_a_stream_never_split_a_character() -> None:
    whole = "a \N{SNOWMAN}!"
    spelt = [b"a", b" ", *(bytes([byte]) for byte in "\N{SNOWMAN}".encode()), b"!"]

    def decode(ids: Sequence[int]) -> str:
        return b"".join(spelt[i] for i in ids).decode(errors="replace")

    steps = [SimpleNamespace(tokens=torch.tensor([i])) for i in range(len(spelt))]
    assert list(text_pieces(steps, decode)) == ["a", " ", "\N{SNOWMAN}", "!"]
    assert "".join(text_pieces(steps[:-2], decode)) == whole[:2] + "\N{REPLACEMENT CHARACTER}"
    assert list(text_pieces([], decode)) == []


@pytest.mark.parametrize("options", [{}, {"best_of": 2}])
def test_a_seed_of_numpy_draws_as_the_same_number_does(
    random_tiny: PaliGemma, options: dict[str, Any]
) -> None:
    encoded = random_tiny.encode_image(DESK)
    plain, numpy = (
        random_tiny.read(encoded, temperature=2.0, seed=seed, max_new_tokens=4, **options)
        for seed in (3, np.int64(3))
    )
    assert numpy.token_logprobs == plain.token_logprobs
