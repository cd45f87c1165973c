"""Tokens of captions, compared with the answers of the Java tokeniser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.errors import DataError
from paligemma.metrics import ptb
from paligemma.metrics.ptb import DELETED, ptb_tokenize, ptb_tokenize_batch

DATA = Path(__file__).parent / "data"
BREAKS = ("\n", "\r", "\r\n", "\u000b", "\u000c", "\u2028", "\u2029")


def _vectors(metric: str) -> list[dict[str, Any]]:
    every = json.loads((DATA / "metric_vectors.json").read_text())["vectors"]
    return [one for one in every if one["metric"] == metric]


@pytest.mark.parametrize("vector", _vectors("ptb_tokenize"), ids=lambda one: one["id"])
def test_tokens_are_those_of_the_official_tokeniser(vector: dict[str, Any]) -> None:
    assert ptb_tokenize(vector["predictions"]) == vector["expected"]


def test_there_are_26_vectors_of_single_captions_and_one_of_a_batch() -> None:
    assert len(_vectors("ptb_tokenize")) == 26
    assert len(_vectors("ptb_tokenize_batch")) == 1


def test_line_breaks_shift_captions_only_where_asked() -> None:
    (vector,) = _vectors("ptb_tokenize_batch")
    captions = vector["predictions"]
    assert ptb_tokenize_batch(captions, java_line_breaks=True) == vector["expected"]
    assert ptb_tokenize_batch(captions) == [
        "first caption",
        "bad separator",
        "third caption",
        "fourth",
    ]


def test_hostile_strings_come_out_as_in_java() -> None:
    pairs = json.loads((DATA / "ptb_adversarial.json").read_text())["pairs"]
    assert len(pairs) > 1000
    differing = [text for text, expected in pairs if ptb_tokenize(text) != expected]
    assert differing == []


def test_in_a_file_the_next_caption_decides_about_initials_and_numbers() -> None:
    captions = [
        "plan B.",
        "A dog on a road.",
        "see no.",
        "5 men",
        "vitamin c. ",
        "",
        "The cat",
        "fig.",
        "x\rk",
        "last",
    ]
    # Java's answer to these lines.
    assert ptb_tokenize_batch(captions, java_line_breaks=True) == [
        "plan b",
        "a dog on a road",
        "see no.",
        "5 men",
        "vitamin c",
        "",
        "the cat",
        "fig",
        "x",
        "k",
    ]
    alone = ptb_tokenize_batch(captions)
    assert alone[0] == "plan b."
    assert alone[2] == "see no"
    assert alone[8] == "x k"


@pytest.mark.parametrize("line_break", BREAKS, ids=ascii)
def test_every_line_break_is_a_space(line_break: str) -> None:
    assert ptb_tokenize(f"a red{line_break}bus") == "a red bus"
    assert ptb_tokenize_batch([f"a{line_break}", "b"]) == ["a", "b"]


def test_an_initial_loses_its_stop_to_a_sentence_that_follows() -> None:
    assert ptb_tokenize("vitamin C. The label") == "vitamin c the label"
    assert ptb_tokenize("vitamin C. the label") == "vitamin c. the label"


def test_tokens_reach_over_spaces_where_java_lets_them() -> None:
    assert ptb_tokenize("call (650) 723-0293 now") == "call -lrb-650-rrb-\u00a0723-0293 now"
    assert ptb_tokenize("1 1/2 cups") == "1\u00a01/2 cups"
    assert ptb_tokenize('see <a href="x y"> there') == 'see <a\u00a0href="x\u00a0y"> there'


def test_scripts_without_spaces_are_one_token() -> None:
    assert ptb_tokenize("一个人骑着马\uff0c在草地上。") == "一个人骑着马 \uff0c 在草地上 。"
    assert ptb_tokenize("คนขี่ม้าบนชายหาด") == "คนขี่ม้าบนชายหาด"


@pytest.mark.parametrize("caption", [None, 3, b"a dog"])
def test_a_caption_is_a_string(caption: Any) -> None:
    with pytest.raises(DataError, match="a caption is a string, got"):
        ptb_tokenize(caption)


def test_a_caption_has_a_bound() -> None:
    assert ptb_tokenize("a" * 20_000) == "a" * 20_000
    with pytest.raises(DataError, match="at most 20000 characters, got 20001"):
        ptb_tokenize("a" * 20_001)


LETTERS_AND_MARKS = list(
    "aAbBsSnt.,;:!?'\"()<>-/&$#%@*~_| 0123456789\u00a0\u2019\u201c\u00ad\u65e5"
)
SHORT = ["n't", "U.S.", "no. ", "The ", "it's", "<b>", " 1/2", "555 1234", "http://", ".com"]
PIECES = st.sampled_from([*LETTERS_AND_MARKS, *SHORT])
TEXTS = st.lists(PIECES, max_size=14).map("".join)


@given(text=TEXTS)
@settings(max_examples=200, deadline=None)
def test_reading_piece_by_piece_changes_nothing(text: str) -> None:
    whole = " ".join(ptb._tokens(text, ""))
    assert ptb_tokenize(text) == whole


@given(captions=st.lists(TEXTS, max_size=5))
@settings(max_examples=30, deadline=None)
def test_each_caption_is_read_by_itself(captions: list[str]) -> None:
    assert ptb_tokenize_batch(captions) == [ptb_tokenize(one) for one in captions]


@given(caption=st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_text_gives_lower_case_tokens_without_the_deleted_ones(caption: str) -> None:
    tokens = ptb_tokenize(caption)
    assert "\n" not in tokens
    if tokens:
        assert not DELETED & set(tokens.split(" "))


@given(words=st.lists(st.text("bcdfghjkpqrvwxyz", min_size=5, max_size=9), max_size=12))
@settings(max_examples=30, deadline=None)
def test_plain_words_stay_as_they_are(words: list[str]) -> None:
    text = " ".join(words)
    assert ptb_tokenize(text.upper() + ".") == text
