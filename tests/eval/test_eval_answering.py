"""A model answers examples as their benchmark asks: the embedded one, on a drawn picture."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toy_task import TOY

from paligemma.errors import ConfigError, ImageError
from paligemma.eval.answering import ModelAnswerer, fingerprint
from paligemma.eval.distributed import LoadedAnswerer
from paligemma.eval.options import EvalOptions
from paligemma.eval.pixels import draw_box, pad_to_square, read_pictures
from paligemma.eval.scored import score_matched
from paligemma.example import ALL_CLASSES, MASK, OBJECTS, Asking, Example, Prediction
from paligemma.jobs.json_lines import prediction_from_json, prediction_to_json
from paligemma.jobs.run_folder import RunConfig
from paligemma.outputs.rle import decode_rle
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.processing.resize import BILINEAR, BILINEAR_ANTIALIAS, resize
from paligemma.tasks.reading.files import FilePicture
from paligemma.tasks.scenes.rows import heldout_scene

ASKING = Asking(text_len=128, max_new_tokens=12)


@dataclass(frozen=True)
class Drawn:
    """Picture of the scenes benchmark; a negative one cannot be read."""

    index: int

    def read(self, max_pixels: int) -> np.ndarray:
        if self.index < 0:
            raise ImageError("a picture must be an existing file, gone.png is none")
        return heldout_scene(self.index).image


# A picture that shows a star, whatever else it shows.
STARRY = next(k for k in range(50) if any(o.label == "star" for o in heldout_scene(k).objects))


@pytest.fixture(scope="module")
def tiny() -> PaliGemma:
    return PaliGemma.from_pretrained("tiny")


def _example(name: str, prefix: str, *pictures: int) -> Example:
    return Example(id=name, prefix=prefix, pictures=tuple(map(Drawn, pictures)), references=None)


def _answer(
    model: Any, examples: Sequence[Example], asking: Asking = ASKING, **more: Any
) -> list[Prediction]:
    answerer = ModelAnswerer(model, lambda one: asking, **more)
    return answerer.answer(examples, answerer.read(examples))


QUESTIONS = [
    _example("a", "answer en how many stars are there?", 3),
    _example("b", "caption en", 5),
    _example("c", "ocr", 3),
]


def test_answers_are_those_of_the_pipeline_with_their_probability(tiny: PaliGemma) -> None:
    found = _answer(tiny, QUESTIONS)
    pictures = [one.pictures[0].read(10**6) for one in QUESTIONS]
    asked = tiny.generate_batch(pictures, [one.prefix for one in QUESTIONS], max_new_tokens=12)
    assert [one.id for one in found] == ["a", "b", "c"]
    assert [one.text for one in found] == [one.text for one in asked]
    for ours, theirs in zip(found, asked, strict=True):
        assert ours.logprob == pytest.approx(sum(theirs.token_logprobs), abs=1e-4)
    assert len({one.text for one in found}) == 3


def test_beams_are_searched_where_the_benchmark_says_so(tiny: PaliGemma) -> None:
    (found,) = _answer(tiny, QUESTIONS[1:2], replace(ASKING, num_beams=3))
    picture = QUESTIONS[1].pictures[0].read(10**6)
    expected = tiny.generate(picture, "caption en", num_beams=3, max_new_tokens=12)
    assert found.text == expected.text
    assert found.logprob == pytest.approx(sum(expected.token_logprobs), abs=1e-4)


def test_each_picture_of_a_batch_is_encoded_once(
    tiny: PaliGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[tuple[int, ...]] = []
    encode = tiny.model.encode_image

    def counting(images: torch.Tensor) -> torch.Tensor:
        encoded.append(tuple(images.shape))
        return encode(images)

    monkeypatch.setattr(tiny.model, "encode_image", counting)
    _answer(tiny, QUESTIONS)
    assert encoded == [(2, 224, 224, 3)]


def test_an_unreadable_picture_is_an_error_of_its_own(tiny: PaliGemma) -> None:
    broken = _example("x", "ocr", -1)
    found = _answer(tiny, [QUESTIONS[0], broken, *QUESTIONS[1:]])
    assert found[1] == Prediction(
        id="x", text="", error="a picture must be an existing file, gone.png is none"
    )
    assert [found[0], *found[2:]] == _answer(tiny, QUESTIONS)
    (alone,) = _answer(tiny, [broken])
    assert alone == found[1]


def test_prompts_that_cannot_be_read_and_pictures_that_are_not_there_are_errors_too(
    tiny: PaliGemma,
) -> None:
    lone, blind, empty = _answer(
        tiny, [_example("a", "\ud800", 3), _example("b", "ocr"), _example("c", "", 3)]
    )
    assert "valid Unicode" in str(lone.error)
    assert blind.error == "an example needs a picture, b has none"
    # An empty prompt is what some benchmarks have.
    assert empty.error is None


def test_a_prompt_is_read_to_the_letter_and_cut_at_the_training_length(
    tiny: PaliGemma, caplog: pytest.LogCaptureFixture
) -> None:
    answerer = ModelAnswerer(tiny, lambda one: replace(ASKING, text_len=10))
    prompts = ["answer en  two spaces\n", "answer en " + "long " * 20]
    with caplog.at_level(logging.WARNING):
        rows = answerer.read([_example(str(k), p, 3) for k, p in enumerate(prompts)]).rows
    encode, vocab = tiny.processor.tokenizer.encode, tiny.vocab
    full = [vocab.bos, *encode(prompts[0]), vocab.sep]
    assert len(full) > 10  # the embedded vocabulary has short pieces
    assert [list(getattr(row, "tokens", ())) for row in rows] == [
        full[:10],
        [vocab.bos, *encode(prompts[1])][:10],
    ]
    assert "cut at 10 tokens" in caplog.text
    assert len(caplog.records) == 1
    whole = ModelAnswerer(tiny, lambda one: ASKING).read([_example("a", prompts[0], 3)]).rows[0]
    assert list(getattr(whole, "tokens", ())) == full


def test_objects_come_with_labels_boxes_and_confidences(tiny: PaliGemma) -> None:
    asking = replace(ASKING, answer=OBJECTS, max_new_tokens=24)
    prefix = "detect star"
    (found,) = _answer(tiny, [_example("a", prefix, STARRY)], asking)
    expected = tiny.ask(heldout_scene(STARRY).image, prefix, max_new_tokens=24)
    assert len(found.objects) == len(expected) > 0
    for ours, theirs in zip(found.objects, expected, strict=True):
        assert (ours.label, ours.box_yxyx) == (theirs.label, theirs.box_yxyx)
        assert ours.score == pytest.approx(theirs.score, abs=1e-4)
        assert ours.mask is None
    assert found.text.startswith("<loc")


def test_masks_come_as_run_lengths_of_the_whole_picture(tiny: PaliGemma) -> None:
    asking = replace(ASKING, answer=MASK, max_new_tokens=24)
    label = heldout_scene(3).objects[0].label
    (found,) = _answer(tiny, [_example("a", f"segment {label}", 3)], asking, needs_masks=True)
    expected = tiny.segment(heldout_scene(3).image, label, max_new_tokens=24)
    assert len(found.objects) == len(expected) > 0
    for ours, theirs in zip(found.objects, expected, strict=True):
        assert ours.mask is not None
        assert ours.mask["size"] == [224, 224]
        assert (decode_rle(ours.mask) == theirs.mask).all()


def test_a_benchmark_of_masks_refuses_a_model_without_codec(tiny: PaliGemma) -> None:
    blind = SimpleNamespace(model=tiny.model, processor=tiny.processor, mask_codec=None)
    with pytest.raises(ConfigError, match="name one with --mask-codec"):
        ModelAnswerer(blind, lambda one: ASKING, needs_masks=True)  # type: ignore[arg-type]


def test_all_classes_are_written_to_the_bound_and_scored_by_their_class_alone(
    tiny: PaliGemma,
) -> None:
    example = _example("a", "detect star", STARRY)
    plain = replace(ASKING, answer=OBJECTS, max_new_tokens=24)
    every = replace(plain, answer=ALL_CLASSES)
    assert ModelAnswerer(tiny, lambda one: every).settings()["noise_id"] is None
    (ended,), (full,) = _answer(tiny, [example], plain), _answer(tiny, [example], every)
    assert full.text.startswith(ended.text)
    assert len(full.objects) > len(ended.objects) > 0
    detected = tiny.ask(heldout_scene(STARRY).image, example.prefix, max_new_tokens=24)
    for ours, theirs in zip(full.objects, detected, strict=False):
        assert ours.score == pytest.approx(theirs.label_score, abs=1e-4)


def test_the_noise_piece_is_barred_but_keeps_its_share_of_every_confidence(
    tiny: PaliGemma,
) -> None:
    # A piece that the model would write stands in for the noise.
    assert len(tiny.processor.tokenizer.encode(" star")) == 1
    every = replace(ASKING, answer=ALL_CLASSES, max_new_tokens=12)
    example = _example("a", "detect star", STARRY)
    (free,) = _answer(tiny, [example], every)
    (barred,) = _answer(tiny, [example], every, noise_piece=" star")
    assert free.objects[0].label == "star"
    assert barred.objects[0].label != "star"
    # What is written instead had been improbable, and stays so.
    assert free.objects[0].score > 0.9
    assert barred.objects[0].score < 0.1


def test_the_fingerprint_knows_the_weights(
    tiny: PaliGemma,
) -> None:
    before = fingerprint(tiny.model)
    assert before == fingerprint(tiny.model)
    weight = tiny.model.text.embed.weight
    with torch.no_grad():
        kept = weight[0, 0].clone()
        weight[0, 0] += 1
        assert fingerprint(tiny.model) != before
        weight[0, 0] = kept
    assert fingerprint(tiny.model) == before


def test_the_model_is_left_in_training_if_it_was(tiny: PaliGemma) -> None:
    tiny.model.train()
    _answer(tiny, QUESTIONS[2:])
    assert tiny.model.training
    tiny.model.eval()


def test_another_process_loads_the_model_by_its_name(tiny: PaliGemma) -> None:
    make = LoadedAnswerer(
        model="tiny", task=TOY, options=EvalOptions(max_new_tokens=3), loading={"mode": "exact"}
    )
    # Ray sends it as bytes.
    answerer = pickle.loads(pickle.dumps(make))()
    assert answerer.settings() == ModelAnswerer(tiny, lambda one: ASKING).settings()
    (found,) = answerer.answer(QUESTIONS[1:2], answerer.read(QUESTIONS[1:2]))
    assert found.text == _answer(tiny, QUESTIONS[1:2], replace(ASKING, max_new_tokens=3))[0].text


# Pictures


def _read(example: Example, **changes: Any) -> Any:
    return read_pictures(example, replace(ASKING, **changes), size_px=30, max_pixels=10**6)


def test_pictures_are_resized_by_the_benchmarks_method() -> None:
    image = heldout_scene(3).image
    for method in (BILINEAR, BILINEAR_ANTIALIAS):
        read = _read(_example("a", "", 3), resize_method=method)
        expected = resize(image, 30, method).astype(np.float32) / 255 * 2 - 1
        assert np.abs(read.pixels - expected).max() < 1e-6
        assert read.image_wh == read.padded_wh == (224, 224)


def test_a_picture_of_another_size_than_its_annotation_states_is_noted(
    tiny: PaliGemma, tmp_path: Path
) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    examples = [
        Example(
            id=f"{rows}",
            prefix="ocr",
            pictures=(FilePicture(path=tmp_path / "a.png", size_hw=(rows, 40)),),
            references=None,
        )
        for rows in (30, 50)
    ]
    answers = _answer(tiny, examples, replace(ASKING, max_new_tokens=2))
    said = "it is 40x30 pixels, its annotation says 40x50"
    assert [one.note for one in answers] == [None, said]
    again = [prediction_from_json(prediction_to_json(one), "line 1") for one in answers]
    assert [one.note for one in again] == [None, said]
    config = RunConfig(task="toy", split="test", model="m")
    found = score_matched(TOY, config, [replace(one, references="0") for one in examples], again)
    assert found.notices == (
        f"1 pictures are not those that were annotated, such as that of 50: {said}; take the "
        "official files",
    )


def test_frames_stay_in_order_and_may_keep_fractions() -> None:
    frames = _read(_example("a", "", 3, 5), resize_method=BILINEAR)
    fine = _read(_example("a", "", 3, 5), resize_method=BILINEAR, keep_fractions=True)
    assert frames.pixels.shape == fine.pixels.shape == (2, 30, 30, 3)
    assert (frames.pixels[1] == _read(_example("a", "", 5), resize_method=BILINEAR).pixels).all()
    levels = (fine.pixels + 1) / 2 * 255 - (frames.pixels + 1) / 2 * 255
    assert levels.min() > -1e-3
    assert 0.5 < levels.max() < 1.0


def test_padding_is_white_on_the_right_or_below() -> None:
    wide = np.zeros((2, 4, 3), np.uint8)
    assert pad_to_square(wide).tolist() == [[[0] * 3] * 4] * 2 + [[[255] * 3] * 4] * 2
    tall = np.zeros((3, 1, 3), np.uint8)
    assert pad_to_square(tall).tolist() == [[[0] * 3, [255] * 3, [255] * 3]] * 3


def test_boxes_and_masks_of_padded_pictures_are_those_of_the_picture_itself(
    tiny: PaliGemma,
) -> None:
    @dataclass(frozen=True)
    class Upper:
        def read(self, max_pixels: int) -> np.ndarray:
            return heldout_scene(3).image[:112]

    asking = replace(ASKING, answer=MASK, max_new_tokens=24, pad_to_square=True)
    label = heldout_scene(3).objects[0].label
    example = replace(_example("a", f"segment {label}"), pictures=(Upper(),))
    (found,) = _answer(tiny, [example], asking)
    plain = tiny.segment(pad_to_square(Upper().read(0)), label, max_new_tokens=24)
    assert len(found.objects) == len(plain) > 0
    for ours, theirs in zip(found.objects, plain, strict=True):
        y0, x0, y1, x1 = theirs.box_yxyx
        assert ours.box_yxyx == pytest.approx((2 * y0, x0, 2 * y1, x1))
        assert ours.mask is not None
        assert (decode_rle(ours.mask) == theirs.mask[:112]).all()


def test_a_marked_box_is_a_red_line_one_pixel_wide_on_the_resized_picture() -> None:
    black = np.zeros((5, 9, 3), np.uint8)
    marked = draw_box(black, (0.25, 0.0, 1.0, 0.5))
    red = (marked == (255, 0, 0)).all(axis=-1)
    assert ["".join(".#"[int(cell)] for cell in row) for row in red] == [
        ".........",
        "#####....",
        "#...#....",
        "#...#....",
        "#####....",
    ]
    assert not black.any()
    read = _read(replace(_example("a", "", 3), mark_box_yxyx=(0.0, 0.0, 1.0, 1.0)))
    assert (read.pixels[0] == (1, -1, -1)).all()
    assert not (read.pixels[1, 1:-1] == (1, -1, -1)).all()
