"""Prompts: the templates of pre-training, and what is done to typed text."""

from __future__ import annotations

import time

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
    single_prompts,
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


@pytest.mark.parametrize(
    ("typed", "kept", "named"),
    [
        ("<image><bos>detect cat", "detect cat", ("leading <image>", "leading <bos>")),
        ("<bos>ocr\n", "ocr", ("leading <bos>", "trailing newline")),
        ("<pad><pad><image><image> <bos> ocr\n<eos>", "ocr", ("leading <pad>", "trailing <eos>")),
        ("caption en<eos><eos>\n", "caption en", ("trailing <eos>",)),
    ],
)
def test_the_control_pieces_of_other_tools_are_removed_and_reported(
    typed: str, kept: str, named: tuple[str, ...]
) -> None:
    text, notices = clean_prompt(typed)
    assert text == kept
    for words in named:
        assert any(words in notice for notice in notices), words
    assert clean_prompt(kept) == (kept, ())


@pytest.mark.parametrize("piece", ["<image>", "<bos>", "<eos>", "<pad>", "<start_of_turn>"])
def test_a_control_piece_that_stays_text_is_reported(piece: str) -> None:
    assert clean_prompt(f"what {piece} is it?") == (
        f"what {piece} is it?",
        (f"{piece} inside the prompt is read as plain text",),
    )


def test_markers_before_a_question_or_a_label_come_before_the_prompt_made_of_it() -> None:
    assert answer_prompt("<image><bos>what is it?") == "<image><bos>answer en what is it?"
    assert question_prompt("<bos>two", "de") == "<bos>question de two"
    assert detect_prompt("<image>\n<bos>cat ; dog") == "<image>\n<bos>detect cat ; dog"
    assert segment_prompt(["<bos>cat", "dog<eos>"]) == "<bos>segment cat ; dog<eos>"
    with pytest.raises(PromptError, match="label must hold some text"):
        detect_prompt("<image><bos>")


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        ("detect cat; detect dog", ("detect cat", "detect dog")),
        ("detect cat ; dog ; segment bird", ("detect cat ; dog", "segment bird")),
        ("segment cat\nsegment dog\n", ("segment cat", "segment dog")),
        ("detect detect cat ; detect dog", ("detect cat", "detect dog")),
    ],
)
def test_several_prompts_for_objects_in_one_are_asked_one_by_one(
    typed: str, asked: tuple[str, ...]
) -> None:
    prompts, notices = single_prompts(typed)
    assert prompts == asked
    assert len(notices) == 1


@pytest.mark.parametrize(
    "prompt",
    [
        "detect cat ; dog",
        "detect",
        "detect a\nb",
        "detect a ; detective ; segment",
        "ocr ; detect a",
    ],
)
def test_one_prompt_is_asked_as_it_is(prompt: str) -> None:
    assert single_prompts(prompt) == ((prompt,), ())


def test_hostile_blanks_and_markers_are_read_at_once() -> None:
    began = time.monotonic()
    for filler in (" ", "\n", ";", "<eos>", "<bos>", "detect ", "; detect "):
        text = f"detect {filler * (9000 // len(filler))} x"
        single_prompts(clean_prompt(text)[0])
        clean_prompt(text[::-1])
    assert time.monotonic() - began < 1


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


@pytest.mark.parametrize("label", ["<eos>", " <eos> <eos>", "", " ; "])
def test_a_label_of_nothing_but_a_marker_is_none(label: str) -> None:
    with pytest.raises(PromptError, match="the label must hold some text"):
        detect_prompt(label)
    with pytest.raises(PromptError, match="must hold some text"):
        answer_prompt(label if ";" not in label else "")
