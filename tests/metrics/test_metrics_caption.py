"""CIDEr-D, BLEU and ROUGE-L, compared with the official scorers and with slow, obvious ones."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.errors import DataError
from paligemma.metrics.caption import caption_measures, longest_common_subsequence
from paligemma.metrics.measure import Measure

VECTORS = [
    one
    for one in json.loads((Path(__file__).parent / "data" / "metric_vectors.json").read_text())[
        "vectors"
    ]
    if one["metric"] == "captioning"
]
NAMES = ["cider", "bleu_4", "bleu_1", "bleu_2", "bleu_3", "rouge_l"]

Corpus = tuple[list[str], list[list[str]]]


def _all(predictions: list[str], references: list[list[str]], **options: Any) -> dict[str, Measure]:
    found = caption_measures(predictions, references, bleu=True, rouge=True, **options)
    assert [one.name for one in found] == NAMES
    return {one.name: one for one in found}


# The official numbers


@pytest.mark.parametrize("vector", VECTORS, ids=lambda one: one["id"])
def test_figures_are_those_of_the_official_scorers(vector: dict[str, Any]) -> None:
    measures = _all(vector["predictions"], vector["references"])
    expected = dict(vector["expected"])
    per_image = expected.pop("cider_per_image")
    assert {name: one.value for name, one in measures.items()} == pytest.approx(expected, abs=1e-9)
    assert measures["cider"].per_example == pytest.approx(per_image, abs=1e-9)


def test_there_are_seven_vectors() -> None:
    assert len(VECTORS) == 7


# Slow, obvious scorers


def _ngrams(tokens: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[k : k + n]) for k in range(len(tokens) - n + 1))


def slow_cider(predictions: list[str], references: list[list[str]]) -> list[float]:
    """CIDEr-D of each image, by the letter of its definition."""
    num = len(predictions)
    scores = []
    for said, wanted in zip(predictions, references, strict=True):
        of_references = []
        for reference in wanted:
            similarities = []
            for n in range(1, 5):
                vectors = []
                for text in (said, reference):
                    vector = {}
                    for gram, count in _ngrams(text.split(), n).items():
                        holding = sum(
                            any(gram in _ngrams(one.split(), n) for one in each)
                            for each in references
                        )
                        vector[gram] = count * (math.log(num) - math.log(max(1, holding)))
                    vectors.append(vector)
                ours, theirs = vectors
                product = sum(min(ours.get(g, 0.0), value) * value for g, value in theirs.items())
                norms = [math.sqrt(sum(v * v for v in vector.values())) for vector in vectors]
                similarities.append(product / (norms[0] * norms[1]) if all(norms) else 0.0)
            bigrams = [max(len(text.split()) - 1, 0) for text in (said, reference)]
            gauss = math.exp(-((bigrams[0] - bigrams[1]) ** 2) / (2 * 6.0**2))
            of_references.append(gauss * sum(similarities) / 4)
        scores.append(10 * sum(of_references) / len(of_references))
    return scores


def slow_bleu(predictions: list[str], references: list[list[str]], order: int) -> float:
    correct, guessed = [0] * order, [0] * order
    length = reference_length = 0
    for said, wanted in zip(predictions, references, strict=True):
        tokens = said.split()
        length += len(tokens)
        lengths = [len(one.split()) for one in wanted]
        reference_length += min(lengths, key=lambda one: (abs(one - len(tokens)), one))
        for n in range(1, order + 1):
            ours = _ngrams(tokens, n)
            guessed[n - 1] += sum(ours.values())
            for gram, count in ours.items():
                most = max(_ngrams(one.split(), n)[gram] for one in wanted)
                correct[n - 1] += min(count, most)
    value = 1.0
    for right, every in zip(correct, guessed, strict=True):
        value *= (right + 1e-15) / (every + 1e-9)
    ratio = (length + 1e-15) / (reference_length + 1e-9)
    return value ** (1 / order) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)


def slow_lcs(first: list[str], second: list[str]) -> int:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first, start=1):
        for j, b in enumerate(second, start=1):
            same = table[i - 1][j - 1] + 1
            table[i][j] = same if a == b else max(table[i - 1][j], table[i][j - 1])
    return table[-1][-1]


def slow_rouge(said: str, wanted: list[str]) -> float:
    tokens = said.split(" ")
    common = [(slow_lcs(tokens, one.split(" ")), len(one.split(" "))) for one in wanted]
    precision = max(lcs / len(tokens) for lcs, _ in common)
    recall = max(lcs / length for lcs, length in common)
    if not precision or not recall:
        return 0.0
    return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)


# Few words, so that n-grams repeat within and between images.
TEXTS = st.lists(st.sampled_from("abcdef"), max_size=9).map(" ".join)
IMAGES = st.lists(
    st.tuples(TEXTS, st.lists(TEXTS.filter(bool), min_size=1, max_size=4)), min_size=1, max_size=6
)


def _corpus(images: list[tuple[str, list[str]]]) -> Corpus:
    return [said for said, _ in images], [wanted for _, wanted in images]


@given(images=IMAGES)
@settings(max_examples=30, deadline=None)
def test_figures_agree_with_slow_scorers(images: list[tuple[str, list[str]]]) -> None:
    said, wanted = _corpus(images)
    measures = _all(said, wanted, tokenize=False)
    assert measures["cider"].per_example == pytest.approx(slow_cider(said, wanted), abs=1e-10)
    for order in range(1, 5):
        expected = slow_bleu(said, wanted, order)
        assert measures[f"bleu_{order}"].value == pytest.approx(expected, abs=1e-10)
    expected_rouge = [slow_rouge(*image) for image in images]
    assert measures["rouge_l"].per_example == pytest.approx(expected_rouge, abs=1e-12)


@given(first=st.lists(st.sampled_from("abc"), max_size=80), second=st.lists(st.sampled_from("abc")))
@settings(max_examples=30, deadline=None)
def test_the_longest_common_subsequence_is_that_of_the_table(
    first: list[str], second: list[str]
) -> None:
    assert longest_common_subsequence(first, second) == slow_lcs(first, second)


# What has to hold


@given(images=IMAGES, seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_order_of_images_and_references_does_not_matter(
    images: list[tuple[str, list[str]]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    turned = [(images[k][0], images[k][1][::-1]) for k in order]
    before, after = _all(*_corpus(images)), _all(*_corpus(turned))
    for name in NAMES:
        assert after[name].value == pytest.approx(before[name].value, abs=1e-9)
    ours, theirs = before["cider"].per_example, after["cider"].per_example
    assert ours is not None
    assert ours[order] == pytest.approx(theirs, abs=1e-9)


@given(images=IMAGES)
@settings(max_examples=30, deadline=None)
def test_figures_keep_within_their_bounds(images: list[tuple[str, list[str]]]) -> None:
    for name, one in _all(*_corpus(images)).items():
        most = 10.0 if name == "cider" else 1.0
        assert one.per_example is not None
        assert one.per_example.min() >= 0
        assert max(one.value, one.per_example.max()) <= most + 1e-9


@given(
    references=st.lists(
        st.lists(st.text("abcdefgh", min_size=2, max_size=4), min_size=4, max_size=8).map(" ".join),
        min_size=2,
        max_size=5,
        unique=True,
    ),
    other=TEXTS,
)
@settings(max_examples=30, deadline=None)
def test_nothing_scores_higher_than_the_reference(references: list[str], other: str) -> None:
    wanted = [[one] for one in references]
    best = _all(references, wanted)
    worse = _all([other, *references[1:]], wanted)
    for name in NAMES:
        assert best[name].value >= worse[name].value - 1e-12
    assert best["bleu_4"].value == pytest.approx(1.0, abs=1e-8)
    assert best["rouge_l"].value == 1.0


def test_an_empty_prediction_scores_nothing() -> None:
    measures = _all(["", "a train"], [["a cow in a field"], ["a train", "one train"]])
    for name in NAMES:
        per_example = measures[name].per_example
        assert per_example is not None
        assert per_example[0] == 0
        assert per_example[1] > 0


def test_a_prediction_of_marks_only_counts_as_empty() -> None:
    measures = _all(["...", "a train"], [["a cow in a field"], ["a train"]])
    assert measures["cider"].per_example == pytest.approx([0.0, 5.0])


def test_one_image_has_no_cider() -> None:
    assert _all(["a cat"], [["a cat"]])["cider"].value == 0.0


def test_bleu_of_one_image_takes_the_closest_reference_too() -> None:
    # Lengths 1, 3 and 8 around 3: the average of 4 would bring a penalty.
    references = [["a", "a red cat", "a cat with a hat on a mat"]]
    assert _all(["a red cat"], references)["bleu_1"].value == pytest.approx(1.0, abs=1e-8)


def test_the_shorter_of_two_references_as_near_counts() -> None:
    # Lengths 2 and 4 around 3; with 4 the brevity penalty were exp(1 - 4/3) = 0.72.
    assert _all(["a b c"], [["a b", "a b c d"]])["bleu_1"].value == pytest.approx(1.0, abs=1e-8)


def test_a_resample_keeps_the_document_frequencies_of_the_whole_corpus() -> None:
    said = ["a red bus", "a plate of rice", "three birds"]
    wanted = [["a red bus by a tree"], ["a plate of rice", "rice"], ["birds in the sky"]]
    cider = _all(said, wanted)["cider"]
    values = cider.per_example
    assert values is not None
    assert cider.statistic(np.array([3, 0, 0])) == pytest.approx(values[0])
    assert cider.statistic(np.array([1, 2, 0])) == pytest.approx((values[0] + 2 * values[1]) / 3)
    low, high = cider.interval()
    assert low <= cider.value <= high


def test_a_resample_of_bleu_is_the_bleu_of_the_resampled_corpus() -> None:
    said = ["a red bus", "a plate of rice", "three birds in the sky"]
    wanted = [["a red bus by a tree"], ["a plate of white rice"], ["three birds in the air"]]
    drawn = [0, 0, 2]
    measures = _all(said, wanted)
    weights = np.bincount(drawn, minlength=3)
    for order in range(1, 5):
        expected = slow_bleu([said[k] for k in drawn], [wanted[k] for k in drawn], order)
        assert measures[f"bleu_{order}"].statistic(weights) == pytest.approx(expected, abs=1e-12)


def test_tokens_can_be_given_ready() -> None:
    said, wanted = ["A cat, asleep."], [["a cat asleep", "x"]]
    assert _all(said, wanted)["rouge_l"].value == 1.0
    assert _all(said, wanted, tokenize=False)["rouge_l"].value == 0.0


def test_figures_that_were_not_asked_for_are_not_computed() -> None:
    assert [one.name for one in caption_measures(["a"], [["a"]])] == ["cider"]
    names = [one.name for one in caption_measures(["a"], [["a"]], rouge=True)]
    assert names == ["cider", "rouge_l"]


# What cannot be scored


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "undefined without examples"),
        (["a"], [], "got 1 predictions, 0 references"),
        (["a", "b"], [["a"], []], "image 1 has no reference"),
        (["a"], ["a cat"], "the references of image 0 are a list of strings"),
        (["a"], [[None]], "the references of image 0 are a list of strings"),
        ([None], [["a"]], "a caption is a string, got NoneType"),
    ],
)
def test_what_cannot_be_scored_is_an_error(predictions: Any, references: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        caption_measures(predictions, references)


def test_an_endless_prediction_does_not_cost_the_others_their_score() -> None:
    references = [["a dog runs on the beach"], ["two people ride bikes"]]
    (cider,) = caption_measures(["a dog runs on the beach", "word " * 10_000], references)
    assert cider.per_example is not None
    assert cider.per_example.tolist() == pytest.approx([10.0, 0.0])
