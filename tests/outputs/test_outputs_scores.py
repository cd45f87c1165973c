"""Confidences from token probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from paligemma.errors import DataError
from paligemma.outputs.assemble import to_detections
from paligemma.outputs.parse import parse_tokens, text_answer
from paligemma.outputs.types import ObjectScores, TokenRecord
from paligemma.vocab import Vocab

PIECES = {3: " cat", 4: "s", 5: " ;", 6: " dog", 7: "t;", 8: "yes"}
VOCAB = Vocab(size=10 + 1024 + 128, pad=0, eos=1, bos=2, sep=9, loc0=10, seg0=10 + 1024)
BOX = [10 + 100, 10 + 200, 10 + 300, 10 + 400]
MASK = [VOCAB.seg0 + c for c in range(16)]


def decode(ids: Sequence[int]) -> str:
    return "".join(PIECES.get(i, "?") for i in ids)


def scores_of(
    ids: list[int], probs: list[float], loc_probs: np.ndarray | None = None
) -> list[ObjectScores]:
    record = TokenRecord(ids=np.array(ids), logprobs=np.log(np.float32(probs)), loc_probs=loc_probs)
    parsed = parse_tokens(record, VOCAB, decode)
    return [o.scores for o in parsed.objects if o.scores is not None]


def test_without_a_distribution_the_parts_are_token_probabilities() -> None:
    ids = [*BOX, *MASK, 3, 4, 1]
    probs = [0.9, 0.8, 0.7, 0.6, *[0.5] * 8, *[0.25] * 8, 0.9, 0.5, 0.3]
    (scores,) = scores_of(ids, probs)
    assert scores.box_score == pytest.approx((0.9 * 0.8 * 0.7 * 0.6) ** 0.25)
    assert scores.mask_score == pytest.approx((0.5 * 0.25) ** 0.5)
    assert scores.label_score == pytest.approx(0.45)
    expected = (0.9 * 0.8 * 0.7 * 0.6) ** 0.25 * (0.5 * 0.25) ** 0.5 * 0.45
    assert scores.score == pytest.approx(expected)
    assert scores.expected_yxyx is None


def test_parts_that_do_not_exist_do_not_count() -> None:
    (scores,) = scores_of([*BOX, 1], [0.5] * 5)
    assert (scores.label_score, scores.mask_score) == (None, None)
    assert scores.score == scores.box_score == pytest.approx(0.5)


def test_the_separator_and_the_next_object_do_not_count_towards_the_label() -> None:
    ids = [*BOX, 3, 5, *BOX, 6, 4]
    probs = [1, 1, 1, 1, 0.8, 0.1, 1, 1, 1, 1, 0.5, 0.5]
    first, second = scores_of(ids, probs)
    assert first.label_score == pytest.approx(0.8)
    assert second.label_score == pytest.approx(0.25)


def test_a_token_that_ends_the_label_and_holds_the_separator_counts() -> None:
    (scores,) = scores_of([*BOX, 3, 7, 6], [1, 1, 1, 1, 0.8, 0.5, 0.1])
    assert scores.label_score == pytest.approx(0.4)


def test_a_neighbouring_bin_within_one_percent_of_the_axis_is_no_disagreement() -> None:
    loc_probs = np.zeros((5, 1024), np.float32)
    for row, emitted in enumerate([100, 200, 300, 400]):
        loc_probs[row, emitted] = 0.3
        loc_probs[row, emitted + 10] = 0.4  # inside the tolerance of ten bins
        loc_probs[row, emitted + 11] = 0.2  # outside
    (scores,) = scores_of([*BOX, 3], [0.3, 0.3, 0.3, 0.3, 1], loc_probs)
    assert scores.box_score == pytest.approx(0.7)


def test_the_expected_coordinate_and_its_spread_are_those_of_the_bins_alone() -> None:
    loc_probs = np.zeros((4, 1024), np.float32)
    loc_probs[:, 100] = 0.2
    loc_probs[:, 104] = 0.6  # the missing 0.2 lies on tokens that are no location
    (scores,) = scores_of(BOX, [0.5] * 4, loc_probs)
    assert scores.expected_yxyx == pytest.approx((103,) * 4)
    assert scores.std_yxyx == pytest.approx((np.sqrt(3),) * 4)


def test_an_empty_distribution_leaves_the_emitted_bin_with_no_confidence() -> None:
    (scores,) = scores_of(BOX, [0.5] * 4, np.zeros((4, 1024), np.float32))
    assert scores.box_score == 0
    assert scores.expected_yxyx == (100, 200, 300, 400)


def test_probabilities_that_are_no_numbers_count_as_zero() -> None:
    record = TokenRecord(
        ids=np.array([*BOX, 3]), logprobs=np.float32([np.nan, -np.inf, 0, np.inf, 5])
    )
    (item,) = parse_tokens(record, VOCAB, decode).objects
    assert item.scores is not None
    assert item.scores.score == 0
    assert item.scores.label_score == 1


def test_an_answer_is_scored_with_its_end_token() -> None:
    record = TokenRecord(
        ids=np.array([8, 1, 6, 0]), logprobs=np.log(np.float32([0.5, 0.8, 0.1, 0.1]))
    )
    answer = text_answer(record, VOCAB, decode)
    assert answer.text == "yes"
    assert answer.score == pytest.approx(0.4)
    assert len(answer.token_logprobs) == 2
    assert answer.to_json() == {"text": "yes", "score": answer.score}


def test_an_empty_record_has_no_score() -> None:
    answer = text_answer(TokenRecord(ids=np.zeros(0, int), logprobs=np.zeros(0)), VOCAB, decode)
    assert (answer.text, answer.score) == ("", None)


def test_records_of_unequal_length_are_refused() -> None:
    with pytest.raises(DataError, match="one sequence"):
        TokenRecord(ids=np.zeros(3, int), logprobs=np.zeros(2))
    with pytest.raises(DataError, match="one sequence"):
        TokenRecord(ids=np.zeros(3, int), logprobs=np.zeros(3), loc_probs=np.zeros((3, 5)))


def test_detections_carry_boxes_scores_and_sub_bin_coordinates() -> None:
    loc_probs = np.zeros((5, 1024), np.float32)
    loc_probs[range(4), [100, 200, 300, 400]] = 0.5
    loc_probs[range(4), [101, 201, 301, 401]] = 0.5
    record = TokenRecord(
        ids=np.array([*BOX, 3]), logprobs=np.log(np.float32([0.5] * 4 + [0.9])), loc_probs=loc_probs
    )
    (item,) = to_detections(parse_tokens(record, VOCAB, decode), (2046, 1023))
    assert item.label == "cat"
    assert item.box_xyxy_px == pytest.approx((400, 100, 800, 300))
    assert item.score == pytest.approx(0.9)
    assert (item.box_score, item.label_score) == pytest.approx((1.0, 0.9))
    assert item.box_expected_yxyx == pytest.approx(np.array([100.5, 200.5, 300.5, 400.5]) / 1023)
    assert item.box_std_yxyx == pytest.approx((0.5 / 1023,) * 4)
    (by_1024,) = to_detections(parse_tokens(record, VOCAB, decode), (1024, 1024), divisor=1024)
    assert by_1024.box_xyxy_px == (200, 100, 400, 300)
