"""A model answers examples as their benchmark asks: the embedded one, on a drawn picture."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_folder import DESK

from paligemma.errors import ConfigError, ImageError
from paligemma.example import ALL_CLASSES, MASK, OBJECTS, Asking, Example, Prediction
from paligemma.jobs.json_lines import prediction_from_json, prediction_to_json
from paligemma.jobs.model_answerer import ModelAnswerer, fingerprint, load_answerer
from paligemma.jobs.pictures import read_pictures
from paligemma.outputs.rle import decode_rle
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.pipeline.picture_cache import PictureCache
from paligemma.processing.preparation import Preparation, pad_to_square
from paligemma.processing.resize import BILINEAR
from paligemma.tasks.reading.pictures import FilePicture
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
    monkeypatch.setattr(tiny, "_pictures", PictureCache(0))
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


def _rows(answerer: ModelAnswerer, examples: Sequence[Example]) -> list[list[int]]:
    return [list(read.row.tokens) for read in answerer.read(examples) if not isinstance(read, str)]


def test_a_prompt_is_read_to_the_letter_and_cut_at_the_training_length(
    tiny: PaliGemma, caplog: pytest.LogCaptureFixture
) -> None:
    answerer = ModelAnswerer(tiny, lambda one: replace(ASKING, text_len=10))
    prompts = ["answer en  two spaces\n", "answer en " + "long " * 20]
    with caplog.at_level(logging.WARNING):
        rows = _rows(answerer, [_example(str(k), p, 3) for k, p in enumerate(prompts)])
    encode, vocab = tiny.processor.tokenizer.encode, tiny.vocab
    full = [vocab.bos, *encode(prompts[0]), vocab.sep]
    assert len(full) > 10  # the embedded vocabulary has short pieces
    assert rows == [full[:10], [vocab.bos, *encode(prompts[1])][:10]]
    assert "cut at 10 tokens" in caplog.text
    assert len(caplog.records) == 1
    whole = ModelAnswerer(tiny, lambda one: ASKING)
    assert _rows(whole, [_example("a", prompts[0], 3)]) == [full]


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
    blind = PaliGemma(tiny.model, tiny.processor)
    with pytest.raises(ConfigError, match="name one with --mask-codec"):
        ModelAnswerer(blind, lambda one: ASKING, needs_masks=True)


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


def _asking_for_three_tokens(example: Example) -> Asking:
    return replace(ASKING, max_new_tokens=3)


def test_another_process_loads_the_model_by_its_name(tiny: PaliGemma) -> None:
    make = partial(load_answerer, "tiny", {"mode": "exact"}, asking_of=_asking_for_three_tokens)
    # Ray sends it as bytes.
    answerer = pickle.loads(pickle.dumps(make))()
    assert answerer.settings() == ModelAnswerer(tiny, lambda one: ASKING).settings()
    (found,) = answerer.answer(QUESTIONS[1:2], answerer.read(QUESTIONS[1:2]))
    assert found.text == _answer(tiny, QUESTIONS[1:2], replace(ASKING, max_new_tokens=3))[0].text


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


def test_frames_of_an_example_stay_in_order_and_are_prepared_alike() -> None:
    preparation = Preparation(size_px=30, resize_method=BILINEAR)
    pair = read_pictures(_example("a", "", 3, 5), preparation, 10**6)
    assert pair.pixels.shape == (2, 30, 30, 3)
    assert pair.image_wh == pair.padded_wh == (224, 224)
    alone = read_pictures(_example("a", "", 5), preparation, 10**6)
    assert (pair.pixels[1] == alone.pixels).all()


def test_a_picture_is_prepared_as_its_benchmark_asks(tiny: PaliGemma) -> None:
    asking = replace(ASKING, resize_method=BILINEAR, keep_fractions=True, pad_to_square=True)
    example = replace(_example("a", "ocr", 3), mark_box_yxyx=(0.1, 0.2, 0.5, 0.6))
    (found,) = ModelAnswerer(tiny, lambda one: asking).read([example])
    preparation = Preparation(
        size_px=224,
        resize_method=BILINEAR,
        keep_fractions=True,
        pad_to_square=True,
        mark_box_yxyx=(0.1, 0.2, 0.5, 0.6),
    )
    assert not isinstance(found, str)
    assert (found.pictures.pixels == preparation.prepare(heldout_scene(3).image)).all()


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


def test_one_picture_asked_in_two_ways_is_prepared_in_both(tiny: PaliGemma) -> None:
    first = replace(QUESTIONS[0], pictures=(FilePicture(path=DESK),))
    second = replace(first, id="again")
    ways = {
        first.id: Asking(text_len=64, max_new_tokens=4),
        second.id: Asking(text_len=64, max_new_tokens=4, pad_to_square=True, keep_fractions=True),
    }
    answerer = ModelAnswerer(tiny, lambda one: ways[one.id])
    together = answerer.read([first, second])
    for example, read in zip((first, second), together, strict=True):
        (alone,) = answerer.read([example])
        assert not isinstance(read, str)
        assert not isinstance(alone, str)
        assert np.array_equal(read.pictures.pixels, alone.pictures.pixels)
    one, other = together
    assert not isinstance(one, str)
    assert not isinstance(other, str)
    assert not np.array_equal(one.pictures.pixels, other.pictures.pixels)
