"""Asking a loaded model: every way to ask, and that they agree with one another."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_folder import DESK

from paligemma import Detections, Frames, PaliGemma, TextAnswer
from paligemma.errors import CheckpointError, ConfigError, DataError, ImageError, PromptError
from paligemma.kernels import native
from paligemma.model import KVCache, PaliGemmaModel
from paligemma.pipeline.loading import LoadKeywords, LoadOptions
from paligemma.pipeline.options import AnswerKeywords, AnswerOptions, AskKeywords, ObjectOptions

Scripted = Callable[..., PaliGemma]

CIRCLE = "<loc0100><loc0200><loc0300><loc0400> circle"
STAR = "<loc0000><loc0000><loc1023><loc1023> star"
CODES = "".join(f"<seg{code:03d}>" for code in range(16))


def test_caption_answer_and_read_give_text_with_the_probability_of_their_tokens(
    random_tiny: PaliGemma,
) -> None:
    answers = [
        random_tiny.caption(DESK, max_new_tokens=4),
        random_tiny.caption(DESK, box_yxyx=(0.1, 0.1, 0.5, 0.5), max_new_tokens=4),
        random_tiny.answer(DESK, "what color is the circle?", max_new_tokens=4),
        random_tiny.read(DESK, max_new_tokens=4),
    ]
    for answer in answers:
        assert isinstance(answer, TextAnswer)
        assert len(answer.token_logprobs) <= 4
        assert answer.score == pytest.approx(np.exp(sum(answer.token_logprobs)))


def test_labels_found_are_kept_whether_asked_or_not_and_the_others_are_absent(
    scripted: Scripted,
) -> None:
    found = scripted(f"{CIRCLE} ; {STAR}").detect(DESK, ["circle", "digit"])
    assert [item.label for item in found] == ["circle", "star"]
    assert found.text == f"{CIRCLE} ; {STAR}"
    assert found.rest == ""


def test_the_asked_labels_travel_with_the_detections_in_the_order_of_the_question(
    scripted: Scripted,
) -> None:
    pg = scripted(f"{STAR} ; {CIRCLE}")
    found = pg.detect(DESK, ["circle", "digit", "circle"])
    assert found.asked_labels == ("circle", "digit")
    assert found.class_names == ("circle", "digit", "star")
    assert [line.split()[0] for line in found.to_yolo().splitlines()] == ["2", "0"]
    assert pg.ask(DESK, "segment star;circle", threshold=0.0).class_names == ("star", "circle")
    assert pg.ask(DESK, "caption en").asked_labels == ()


def test_boxes_are_in_pixels_of_the_original_picture(scripted: Scripted) -> None:
    (item,) = scripted(CIRCLE).detect(DESK, "circle")
    assert item.image_wh == (640, 480)
    assert item.box_yxyx == pytest.approx((100 / 1023, 200 / 1023, 300 / 1023, 400 / 1023))
    assert item.box_xyxy_px == pytest.approx((125.122, 46.921, 250.244, 140.762), abs=1e-3)


def test_detections_draw_on_the_picture_they_were_found_in(scripted: Scripted) -> None:
    pg = scripted(CIRCLE)
    found = pg.detect(DESK, "circle")
    with Image.open(DESK) as desk:
        expected = found.draw(desk.convert("RGB"))
    assert found.draw().tobytes() == expected.tobytes()
    assert found.above(0.0).draw().tobytes() == expected.tobytes()
    pixels = pg.processor.pixels(DESK)
    with pytest.raises(DataError, match="pass it to draw"):
        pg.detect(pixels, "circle").draw()


def test_scores_come_from_the_probabilities_of_the_tokens(scripted: Scripted) -> None:
    pg = scripted(CIRCLE, 0.9)
    (item,) = pg.detect(DESK, "circle")
    num_label = len(pg.processor.tokenizer.encode(" circle"))
    assert item.label_score == pytest.approx(0.9**num_label, abs=1e-5)
    # A coordinate counts the probability of its neighbours too: 0.9 and twenty small ones.
    small = 0.1 / (pg.vocab.size - 1)
    assert item.box_score == pytest.approx(0.9 + 20 * small, abs=1e-5)
    assert item.score == pytest.approx(item.box_score * item.label_score)


def test_a_threshold_leaves_out_weak_and_empty_boxes(scripted: Scripted) -> None:
    pg = scripted(f"{CIRCLE} ; <loc0005><loc0005><loc0005><loc0005> star", 0.8)
    assert len(pg.detect(DESK, "circle")) == 2
    assert [item.label for item in pg.detect(DESK, "circle", threshold=0.1)] == ["circle"]
    assert len(pg.detect(DESK, "circle", threshold=0.9)) == 0


def test_a_thing_found_twice_is_shown_once_if_asked(scripted: Scripted) -> None:
    pg = scripted(f"{CIRCLE} ; {CIRCLE} ; <loc0900><loc0900><loc1000><loc1000> circle", 0.8)
    assert len(pg.detect(DESK, "circle")) == 3
    assert len(pg.detect(DESK, "circle", max_overlap=0.5)) == 2
    with pytest.raises(ConfigError, match="max_overlap must be"):
        pg.detect("no-such-picture.png", "circle", max_overlap=2)


@pytest.mark.parametrize("threshold", [float("nan"), 50, -1, "0.5"])
def test_a_threshold_that_is_no_confidence_is_refused(scripted: Scripted, threshold: float) -> None:
    with pytest.raises(ConfigError, match=r"a confidence in \[0, 1\], got"):
        scripted(CIRCLE).detect("no-such-picture.png", "circle", threshold=threshold)


@pytest.mark.parametrize(
    "box_yxyx",
    [
        (120, 160, 360, 480),
        (0.5, 0.1, 0.2, 0.4),
        (-0.1, 0.1, 0.2, 0.4),
        (0.1, 0.1, 0.1, 0.4),
        (0.1, 0.1, float("nan"), 0.4),
        (0.1, 0.2, 0.3),
        "here",
        3,
    ],
)
def test_a_region_that_is_no_normalised_box_is_refused(
    random_tiny: PaliGemma, box_yxyx: Any
) -> None:
    with pytest.raises(DataError, match="0 <= ymin < ymax <= 1"):
        random_tiny.caption(DESK, box_yxyx=box_yxyx)


def test_style_and_language_are_checked_beside_a_region_too(random_tiny: PaliGemma) -> None:
    region = (0.1, 0.1, 0.5, 0.5)
    with pytest.raises(PromptError, match="the caption style"):
        random_tiny.caption(DESK, box_yxyx=region, style="nope")
    with pytest.raises(PromptError, match="the language"):
        random_tiny.caption(DESK, box_yxyx=region, lang="??")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda pg: pg.ask(DESK, None), "a prompt must be a text, got None"),
        (lambda pg: pg.generate(DESK, 3), "a prompt must be a text, got 3"),
        (lambda pg: pg.detect(DESK, [3]), "a label must be a text, got 3"),
        (lambda pg: pg.segment(DESK, 3), "labels must be a text or a list, got 3"),
        (lambda pg: pg.answer(DESK, None), "a question must be a text, got None"),
        (lambda pg: pg.caption(DESK, lang=None), "the language must be a code"),
        (lambda pg: pg.generate_batch([DESK], "ocr"), "a list of prompts, got str"),
        (lambda pg: pg.generate_batch([DESK], None), "a list of prompts, got NoneType"),
    ],
)
def test_what_is_no_text_is_refused_in_a_sentence(
    random_tiny: PaliGemma, ask: Callable[[PaliGemma], object], message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        ask(random_tiny)


@pytest.mark.parametrize("what", ["detect", "segment"])
def test_nothing_can_be_found_without_a_picture(random_tiny: PaliGemma, what: str) -> None:
    with pytest.raises(ImageError, match=f"{what} needs a picture to find things in, got None"):
        getattr(random_tiny, what)(None, "star")


def test_the_prompt_decides_what_comes_back(scripted: Scripted) -> None:
    as_text = scripted("yes")
    assert isinstance(as_text.ask(DESK, "answer en is it red?"), TextAnswer)
    empty = as_text.ask(DESK, "<image>detect circle\n")
    assert isinstance(empty, Detections)
    assert (len(empty), empty.rest) == (0, "yes")
    # A model tuned on referring expressions writes boxes to a bare expression.
    assert isinstance(scripted(CIRCLE).ask(DESK, "the red circle"), Detections)
    assert scripted(CIRCLE).generate(DESK, "detect circle").text == CIRCLE


@pytest.mark.parametrize(
    "ask",
    [
        lambda pg, how: pg.ask(DESK, "<image><bos>detect circle\n", **how),
        lambda pg, how: pg.ask(DESK, "<bos>detect circle<eos>", **how),
        lambda pg, how: pg.detect(DESK, "<image><image><bos>circle<eos>\n", **how),
        lambda pg, how: pg.detect(DESK, ["<bos>circle"], **how),
        lambda pg, how: pg.encode_image(DESK).ask("<pad><bos>detect circle", **how),
    ],
)
def test_the_prompt_of_another_tool_is_answered_as_the_prompt_itself(
    random_tiny: PaliGemma,
    caplog: pytest.LogCaptureFixture,
    ask: Callable[[PaliGemma, dict[str, Any]], Detections],
) -> None:
    how = {"constrain": True, "max_new_tokens": 40}
    plain = random_tiny.detect(DESK, "circle", **how)
    random_tiny.processor._reported.clear()
    found = ask(random_tiny, how)
    assert (found.text, found.asked_labels) == (plain.text, ("circle",))
    assert "was removed" in caplog.text


def test_text_is_answered_alike_with_the_markers_of_another_tool(random_tiny: PaliGemma) -> None:
    how: AnswerKeywords = {"max_new_tokens": 6}
    plain = random_tiny.answer(DESK, "what is it?", **how).text
    typed = "<image><bos>answer en what is it?<eos>\n"
    assert random_tiny.answer(DESK, "<image><bos>what is it?<eos>", **how).text == plain
    assert random_tiny.generate(DESK, typed, **how).text == plain
    assert "".join(random_tiny.stream(DESK, typed, **how)) == plain
    assert random_tiny.generate_batch([DESK], [typed], **how)[0].text == plain


def test_each_of_several_prompts_in_one_is_asked_and_their_objects_are_joined(
    random_tiny: PaliGemma, caplog: pytest.LogCaptureFixture
) -> None:
    how: AskKeywords = {"constrain": True, "max_new_tokens": 60}
    first = random_tiny.detect(DESK, "circle ; heart", **how)
    second = random_tiny.segment(DESK, "star", **how)
    found = random_tiny.ask(DESK, "<bos>detect circle ; heart; segment star", **how)
    assert isinstance(found, Detections)
    assert found.text == f"{first.text} ; {second.text}"
    assert found.asked_labels == ("circle", "heart", "star")
    assert found.to_json()["detections"] == [
        *first.to_json()["detections"],
        *second.to_json()["detections"],
    ]
    assert "each is asked by itself" in caplog.text


def test_a_segmentation_has_masks_of_the_size_of_the_picture(scripted: Scripted) -> None:
    (item,) = scripted(f"<loc0100><loc0200><loc0300><loc0400>{CODES} circle").segment(
        DESK, "circle"
    )
    assert item.codes == tuple(range(16))
    assert item.mask is not None
    assert item.mask.shape == (480, 640)
    assert not item.mask[:46].any()
    assert not item.mask[:, :125].any()


def test_without_a_mask_codec_codes_stay_and_one_sentence_says_where_to_get_it(
    scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    pg = scripted(f"<loc0100><loc0200><loc0300><loc0400>{CODES} circle")
    pg._mask_codec = None
    for _ in range(2):
        (item,) = pg.segment(DESK, "circle")
    assert item.codes == tuple(range(16))
    assert item.region is None
    (record,) = caplog.records
    assert "vae-oid.npz" in record.getMessage()
    assert "PALIGEMMA_MASK_CODEC" in record.getMessage()


def test_objects_of_a_segmentation_without_a_mask_are_counted_in_a_warning(
    scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    masked = f"<loc0100><loc0200><loc0300><loc0400>{CODES} circle"
    pg = scripted(f"{masked} ; {STAR} ; {CIRCLE}")
    assert len(pg.segment(DESK, "circle ; star")) == 3
    (record,) = caplog.records
    assert "2 of 3 objects came without a mask" in record.getMessage()
    caplog.clear()
    pg.detect(DESK, "circle ; star")
    scripted(masked).segment(DESK, "circle")
    # A box below a pixel has no mask however it is asked for.
    (item,) = scripted(masked).segment(np.zeros((3, 3, 3), np.uint8), "circle")
    assert item.codes is not None
    assert item.region is None
    assert caplog.records == []


def test_objects_without_a_mask_are_counted_over_many_pictures_in_one_warning(
    scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    pg = scripted(STAR)
    assert len(list(pg.map([DESK] * 3, "segment star", batch_size=1))) == 3
    (record,) = caplog.records
    assert record.getMessage().startswith("3 of 3 objects came without a mask; --constrain")
    caplog.clear()
    mapped = pg.map([DESK] * 3, "segment star ; heart", batch_size=1)
    next(mapped)
    mapped.close()  # type: ignore[attr-defined]
    (record,) = caplog.records
    assert "1 of 1 objects came without a mask; ask for one label" in record.getMessage()
    caplog.clear()
    assert len(pg.segment(DESK, "star")) == 1
    (record,) = caplog.records
    assert "one label at a time" not in record.getMessage()
    assert "constrain=True" in record.getMessage()


def test_a_bad_mask_codec_is_refused_before_the_answer_is_written(scripted: Scripted) -> None:
    pg = scripted(CIRCLE)
    pg._mask_codec = DESK
    assert len(pg.detect(DESK, "circle")) == 1
    with pytest.raises(CheckpointError, match=r"must end in \.npz or \.safetensors"):
        pg.segment("no-such-picture.png", "circle")


def test_a_constrained_answer_names_only_what_was_asked_with_upright_boxes(
    random_tiny: PaliGemma,
) -> None:
    for found in (
        random_tiny.detect(DESK, ["digit", "circle"], constrain=True, max_new_tokens=24),
        random_tiny.segment(DESK, "digit ; circle", constrain=True, max_new_tokens=48),
    ):
        assert found
        assert found.rest == ""
        for item in found:
            assert item.label in ("digit", "circle")
            y0, x0, y1, x1 = item.box_yxyx
            assert (y0 < y1, x0 < x1) == (True, True)
    assert all(item.codes is not None for item in found)


def test_a_constrained_answer_has_no_more_objects_than_asked_for_and_none_twice(
    random_tiny: PaliGemma,
) -> None:
    how: AskKeywords = {"constrain": True, "max_new_tokens": 200, "temperature": 1e-6}
    for number in (1, 3):
        found = random_tiny.detect(DESK, "circle", max_objects=number, **how)
        assert 0 < len(found) <= number
    distinct = random_tiny.detect(DESK, ["circle", "digit"], no_repeats=True, **how)
    objects = [(item.box_yxyx, item.label) for item in distinct]
    assert len(objects) == len(set(objects))


@pytest.mark.parametrize(
    ("choices", "possible"),
    [(["yes", "no"], {"yes", "no"}), (range(3, 12), {str(k) for k in range(3, 12)}), ([7], {"7"})],
)
def test_an_answer_is_one_of_the_choices(
    random_tiny: PaliGemma, choices: Any, possible: set[str]
) -> None:
    seen = set()
    for seed in range(6):
        how: AnswerKeywords = {"choices": choices, "temperature": 5.0, "seed": seed}
        answer = random_tiny.answer(DESK, "how many stars?", **how)
        seen.add(answer.text)
        assert "".join(random_tiny.stream(DESK, "answer en how many stars?", **how)) == answer.text
    assert seen <= possible
    assert len(seen) > 1 or len(possible) == 1


def test_choices_and_objects_do_not_share_an_answer(random_tiny: PaliGemma) -> None:
    with pytest.raises(ConfigError, match="one grammar, got another than constrain"):
        random_tiny.detect(DESK, "star", constrain=True, choices=["yes"])


def test_pictures_given_as_path_bytes_pillow_array_and_pixels_get_one_answer(
    random_tiny: PaliGemma,
) -> None:
    picture = Image.open(DESK)
    pixels = random_tiny.processor.pixels(DESK)
    answers = {
        random_tiny.read(source, max_new_tokens=6).token_logprobs
        for source in (DESK, str(DESK), DESK.read_bytes(), picture, np.asarray(picture), pixels)
    }
    assert len(answers) == 1


def test_an_encoded_picture_gives_exactly_the_answers_of_the_picture(
    random_tiny: PaliGemma,
) -> None:
    encoded = random_tiny.encode_image(DESK)
    for question in ("what color is the star?", "how many digits are there?"):
        once = random_tiny.answer(DESK, question, max_new_tokens=6)
        again = random_tiny.answer(encoded, question, max_new_tokens=6)
        assert again.token_logprobs == once.token_logprobs
    found = encoded.ask("detect digit", constrain=True, max_new_tokens=12)
    assert isinstance(found, Detections)
    assert found.image_wh == (640, 480)


def test_a_tensor_or_array_is_the_picture_that_its_layout_states(random_tiny: PaliGemma) -> None:
    rows = torch.from_numpy(np.asarray(Image.open(DESK).convert("RGB")).copy())
    truth = random_tiny.read(DESK, max_new_tokens=6).token_logprobs
    first = rows.permute(2, 0, 1)
    for picture, layout in (
        (rows, "HWC"),
        (first, "CHW"),
        (first / 255, "CHW"),
        (first[None] / 255, "CHW"),
        (first.numpy(), "CHW"),
    ):
        encoded = random_tiny.encode_image(picture, layout=layout)
        assert encoded.image_wh == (640, 480)
        assert random_tiny.read(encoded, max_new_tokens=6).token_logprobs == truth
    assert random_tiny.open_picture(first, layout="CHW").shape == (480, 640, 3)
    size = random_tiny.processor.image_size_px
    with pytest.raises(ImageError, match=r"got 0\.\.1; state layout='HWC' or 'CHW'"):
        random_tiny.read(torch.linspace(0, 1, size * size * 3).reshape(size, size, 3))


def test_frames_of_a_file_are_one_picture_or_one_example(
    random_tiny: PaliGemma, tmp_path: Path
) -> None:
    desk = Image.open(DESK).convert("RGB")
    pages = tmp_path / "pages.tiff"
    Image.new("RGB", (20, 10)).save(pages, save_all=True, append_images=[desk, desk])
    truth = random_tiny.read(DESK, max_new_tokens=6).token_logprobs
    second = random_tiny.encode_image(pages, frames=1)
    assert random_tiny.read(second, max_new_tokens=6).token_logprobs == truth
    both = random_tiny.encode_image(pages, frames=[1, 2])
    pair = random_tiny.read(Frames(DESK, DESK), max_new_tokens=6).token_logprobs
    assert random_tiny.read(both, max_new_tokens=6).token_logprobs == pair
    every = random_tiny.encode_image(pages, frames="all")
    assert every.image_wh == (20, 10)
    assert every.soft_tokens.shape[1] == 3 * second.soft_tokens.shape[1]
    with pytest.raises(ImageError, match=r"must lie in 0\.\.2"):
        random_tiny.encode_image(pages, frames=[0, 3])


def test_an_encoded_picture_of_another_model_is_refused(
    random_tiny: PaliGemma, scripted: Scripted
) -> None:
    with pytest.raises(ImageError, match="belongs to the model that encoded it"):
        random_tiny.read(scripted("yes").encode_image(DESK))


def test_a_batch_of_unequal_prompts_gives_what_each_gives_alone(random_tiny: PaliGemma) -> None:
    prompts = ["ocr", "answer en what color is the big star on the left?", "caption en"]
    pictures = [DESK, np.zeros((40, 30, 3), np.uint8), DESK]
    together = random_tiny.generate_batch(pictures, prompts, max_new_tokens=6)
    for picture, prompt, found in zip(pictures, prompts, together, strict=True):
        alone = random_tiny.generate(picture, prompt, max_new_tokens=6)
        assert found.text == alone.text
        np.testing.assert_allclose(found.token_logprobs, alone.token_logprobs, atol=1e-5)


def test_one_encoded_picture_answers_a_batch_of_prompts(random_tiny: PaliGemma) -> None:
    prompts = ["ocr", "caption en"]
    encoded = random_tiny.encode_image(DESK)
    shared = random_tiny.generate_batch(encoded, prompts, max_new_tokens=4)
    repeated = random_tiny.generate_batch([DESK, DESK], prompts, max_new_tokens=4)
    for a, b in zip(shared, repeated, strict=True):
        np.testing.assert_allclose(a.token_logprobs, b.token_logprobs, atol=1e-5)


def test_a_batch_needs_a_picture_for_each_prompt(random_tiny: PaliGemma) -> None:
    with pytest.raises(PromptError, match="got 1 and 2"):
        random_tiny.generate_batch([DESK], ["ocr", "caption en"])
    assert random_tiny.generate_batch([], []) == []
    with Image.open(DESK) as picture:
        for one in (picture, DESK, str(DESK), DESK.read_bytes()):
            with pytest.raises(PromptError, match="got 1 and 2"):
                random_tiny.generate_batch(one, ["ocr", "caption en"])  # type: ignore[arg-type]


def test_examples_of_one_picture_and_of_several_frames_share_a_call(
    random_tiny: PaliGemma,
) -> None:
    examples = [Frames(DESK, DESK), DESK]
    together = random_tiny.generate_batch(examples, ["ocr", "ocr"], max_new_tokens=4)
    encoded = random_tiny.encode_images(examples)
    assert [one.soft_tokens.shape[1] for one in encoded] == [
        2 * random_tiny.config.num_image_tokens,
        random_tiny.config.num_image_tokens,
    ]
    for example, picture, found in zip(examples, encoded, together, strict=True):
        for alone in (
            random_tiny.generate(example, "ocr", max_new_tokens=4),
            random_tiny.generate(picture, "ocr", max_new_tokens=4),
        ):
            np.testing.assert_allclose(found.token_logprobs, alone.token_logprobs, atol=1e-5)


def test_frames_of_one_example_are_read_one_after_the_other(random_tiny: PaliGemma) -> None:
    white = np.full((30, 60, 3), 255, np.uint8)
    both = random_tiny.encode_image(Frames([DESK, white]))
    assert both.image_wh == (640, 480)
    parts = [random_tiny.encode_image(DESK), random_tiny.encode_image(white)]
    torch.testing.assert_close(both.soft_tokens, torch.cat([p.soft_tokens for p in parts], 1))


def test_text_alone_needs_no_picture(random_tiny: PaliGemma) -> None:
    assert isinstance(random_tiny.generate(None, "ocr", max_new_tokens=2), TextAnswer)
    assert isinstance(random_tiny.ask(None, "detect digit", max_new_tokens=2), TextAnswer)


def test_a_streamed_answer_joins_to_the_whole_one(random_tiny: PaliGemma) -> None:
    options = {"max_new_tokens": 12, "temperature": 1.0, "seed": 3}
    pieces = list(random_tiny.stream(DESK, "caption en", **options))
    assert len(pieces) > 3
    assert "".join(pieces) == random_tiny.generate(DESK, "caption en", **options).text


def test_an_answer_cut_by_the_bound_is_reported(
    random_tiny: PaliGemma, scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    random_tiny.read(DESK, max_new_tokens=2)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "1 of 1 answers reached max_new_tokens = 2" in record.getMessage()
    caplog.clear()
    scripted("yes").read(DESK)
    assert caplog.records == []


def test_an_object_without_room_under_a_grammar_is_reported(
    scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    pg = scripted(CIRCLE)
    num_tokens = len(pg.processor.tokenizer.encode(CIRCLE)) + 1
    assert len(pg.detect(DESK, "circle", constrain=True, max_new_tokens=num_tokens - 1)) == 0
    (record,) = caplog.records
    assert f"1 of 1 answers reached max_new_tokens = {num_tokens - 1}" in record.getMessage()
    assert "no room" in record.getMessage()
    caplog.clear()
    assert len(pg.detect(DESK, "circle", constrain=True, max_new_tokens=num_tokens)) == 1
    assert caplog.records == []


def test_beams_that_the_bound_stopped_are_reported(
    random_tiny: PaliGemma, caplog: pytest.LogCaptureFixture
) -> None:
    random_tiny.read(DESK, num_beams=3, max_new_tokens=2)
    (record,) = caplog.records
    assert "1 of 1 answers reached max_new_tokens = 2" in record.getMessage()
    assert "longer ones might be better" in record.getMessage()


@pytest.mark.parametrize("quant", [None, "int8"])
def test_a_closed_stream_computes_no_more_and_gives_its_memory_back(
    tiny_dir: Path, quant: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if quant and native.library() is None:
        pytest.skip(native.describe())
    pg = PaliGemma.from_pretrained(tiny_dir, **({"quant": quant} if quant else {}))
    caches: list[weakref.ref[KVCache]] = []
    steps: list[str] = []
    new_cache = PaliGemmaModel.new_cache

    def noted(self: PaliGemmaModel, *sizes: Any) -> KVCache:
        cache = new_cache(self, *sizes)
        caches.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr(PaliGemmaModel, "new_cache", noted)
    for name in ("decode_step", "decode_runs"):
        step = getattr(PaliGemmaModel, name)
        monkeypatch.setattr(
            PaliGemmaModel,
            name,
            lambda *given, step=step, name=name: steps.append(name) or step(*given),
        )
    pg.model.train()
    pieces = pg.stream(DESK, "caption en", max_new_tokens=100, choices=["a star", "a circle"])
    next(pieces)
    assert caches[0]() is not None
    num_steps = len(steps)
    pieces.close()  # type: ignore[attr-defined]
    assert list(pieces) == []
    assert len(steps) == num_steps
    assert caches[0]() is None
    assert pg.model.training
    # The model answers as before.
    assert pg.read(DESK, choices=["ab"]).text == "ab"


def test_a_streamed_answer_cut_by_the_bound_is_reported_after_its_last_piece(
    random_tiny: PaliGemma, scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    stream = random_tiny.stream(DESK, "ocr", max_new_tokens=2)
    next(stream)
    assert caplog.records == []
    list(stream)
    (record,) = caplog.records
    assert "1 of 1 answers reached max_new_tokens = 2" in record.getMessage()
    caplog.clear()
    assert "".join(scripted("yes").stream(DESK, "ocr")) == "yes"
    assert caplog.records == []


def test_a_model_that_produces_no_numbers_is_reported_while_streaming_too(
    scripted: Scripted,
) -> None:
    pg = scripted("yes")
    pg.model.rows *= torch.nan  # type: ignore[operator]
    with pytest.raises(ConfigError, match="produced NaN"):
        pg.generate(DESK, "ocr", max_new_tokens=1)
    with pytest.raises(ConfigError, match="produced NaN"):
        list(pg.stream(DESK, "ocr", max_new_tokens=1))


def test_prompts_and_options_are_checked_before_a_picture_is_read(random_tiny: PaliGemma) -> None:
    with pytest.raises(PromptError, match="empty"):
        random_tiny.ask("no-such-picture.png", " ")
    with pytest.raises(ConfigError, match="max_new_tokens"):
        random_tiny.read("no-such-picture.png", max_new_tokens=0)
    with pytest.raises(ConfigError, match="no option 'new_tokens' here; did you mean max_new_tok"):
        random_tiny.read("no-such-picture.png", new_tokens=3)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="no option 'treshold' here; did you mean threshold"):
        random_tiny.detect("no-such-picture.png", "cat", treshold=0.5)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="no option 'zzz' here; use max_new_tokens, temperature"):
        random_tiny.caption("no-such-picture.png", zzz=1)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="no option 'image_size' here; did you mean image_size_"):
        PaliGemma.from_pretrained("no-such-model", image_size=448)  # type: ignore[call-arg]


def test_the_typed_keywords_are_the_fields_of_the_options() -> None:
    pairs = {
        AnswerKeywords: (AnswerOptions,),
        AskKeywords: (AnswerOptions, ObjectOptions),
        LoadKeywords: (LoadOptions,),
    }
    for keywords, kinds in pairs.items():
        stated = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
        assert get_type_hints(keywords) == stated
