"""Prompts: the templates of pre-training, and what is done to typed text."""

from __future__ import annotations

import pytest

from paligemma.errors import PromptError
from paligemma.processing.prompts import (
    answer_prompt,
    caption_prompt,
    clean_prompt,
    detect_prompt,
    object_prompt,
    question_prompt,
    read_prompt,
    region_caption_prompt,
    segment_prompt,
    strip_markers,
)


def test_the_templates_are_those_of_pretraining() -> None:
    assert caption_prompt() == "caption en"
    assert caption_prompt("de", "cap") == "cap de"
    assert caption_prompt(style="describe") == "describe en"
    assert answer_prompt("What is it?") == "answer en What is it?"
    assert question_prompt("a cow", "fr") == "question fr a cow"
    assert read_prompt() == "ocr"
    assert detect_prompt(["cat", "red dog"]) == "detect cat ; red dog"
    assert segment_prompt(["cat"]) == "segment cat"
    box = "<loc0000><loc0012><loc1023><loc0900>"
    assert region_caption_prompt(box) == f"caption {box}"


def test_labels_may_come_as_one_string() -> None:
    assert detect_prompt("cat;dog ;  a bird") == "detect cat ; dog ; a bird"
    assert segment_prompt("cat") == "segment cat"


@pytest.mark.parametrize("labels", [[], "", " ; ", ["cat", ""], ["a;b"], ["a\nb"]])
def test_labels_that_would_change_the_prompt_are_refused(labels: list[str] | str) -> None:
    with pytest.raises(PromptError):
        detect_prompt(labels)


def test_an_object_prompt_names_its_task_and_each_label_once_in_order() -> None:
    asked = object_prompt(" segment  star;heart ;; star ; 3.5mm jack ")
    assert asked is not None
    assert (asked.task, asked.labels) == ("segment", ("star", "heart", "3.5mm jack"))
    assert object_prompt(detect_prompt(["a", "b"])) == object_prompt("detect a;b")
    nothing = object_prompt("detect  ; ")
    assert nothing is not None
    assert nothing.labels == ()
    for other in ("detect", "caption en", "detection of cats", "answer en detect cat"):
        assert object_prompt(other) is None


def test_unknown_languages_styles_and_regions_are_refused() -> None:
    with pytest.raises(PromptError, match="code such as en"):
        caption_prompt("english please")
    with pytest.raises(PromptError, match="caption, cap, describe"):
        caption_prompt(style="poem")
    with pytest.raises(PromptError, match="question must hold some text"):
        answer_prompt("  ")
    for region in ("<loc0000>", "<loc0000><loc0000><loc0000><loc1024>", "somewhere"):
        with pytest.raises(PromptError, match="four location tokens"):
            region_caption_prompt(region)


def test_an_ordinary_prompt_is_left_alone() -> None:
    for prompt in ("caption en", "answer en  What? \t b", "Question: a\nAnswer:", " ocr "):
        assert clean_prompt(prompt) == (prompt, ())


@pytest.mark.parametrize(
    "typed",
    [
        "<image>caption en",
        "<image> caption en",
        "<image><image>\ncaption en",
        " <image> caption en",
    ],
)
def test_leading_image_markers_are_removed_and_reported(typed: str) -> None:
    text, notices = clean_prompt(typed)
    assert text == "caption en"
    assert len(notices) == 1
    assert "leading <image>" in notices[0]


def test_one_trailing_newline_is_removed_and_reported() -> None:
    for typed, kept in (("ocr\n", "ocr"), ("ocr\r\n", "ocr"), ("ocr\n\n", "ocr\n")):
        text, notices = clean_prompt(typed)
        assert text == kept
        assert [notice for notice in notices if "trailing newline" in notice]


def test_an_image_marker_inside_the_prompt_stays_text_and_is_reported() -> None:
    text, notices = clean_prompt("what is <image> ?")
    assert text == "what is <image> ?"
    assert "plain text" in notices[0]


@pytest.mark.parametrize("prompt", ["", " ", "\n", "<image>", "<image>\n", "\t\n"])
def test_an_empty_prompt_gets_one_sentence(prompt: str) -> None:
    with pytest.raises(PromptError, match=r"some text, got an empty one; try 'caption en'"):
        clean_prompt(prompt)


def test_ten_thousand_characters_are_the_bound() -> None:
    assert clean_prompt("a" * 10_000)[0] == "a" * 10_000
    with pytest.raises(PromptError, match="may have 10000 characters, got 10001; shorten"):
        clean_prompt("a" * 10_001)


@pytest.mark.parametrize("character", ["\0", "\x07", "\x1b", "\x7f", "\ud800"])
def test_control_characters_are_named(character: str) -> None:
    with pytest.raises(PromptError, match=rf"U\+{ord(character):04X} at position 3"):
        clean_prompt(f"ocr{character}")


def test_training_text_is_stripped_but_may_be_empty() -> None:
    assert strip_markers("")[0] == ""
    assert strip_markers("<image>detect all classes\n")[0] == "detect all classes"
