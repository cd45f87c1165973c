"""The engine: requests of any kind together are answered as each would be alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_folder import DESK

from paligemma import AnswerOptions, Frames, PaliGemma
from paligemma.errors import ConfigError
from paligemma.pipeline import engine as engine_module
from paligemma.pipeline.engine import Engine, Request, Written
from paligemma.pipeline.options import ObjectOptions, RunSettings, object_grammar
from paligemma.pipeline.picture_cache import PictureCache
from paligemma.processing.prompts import object_prompt

PROMPTS = ("ocr", "caption en", "answer en how many digits are there?", "detect star ; heart")


def requests_of(pg: PaliGemma) -> list[Request]:
    """Requests that differ in prompt, picture, bound, sampler, seed, beams and grammar."""
    two, one = (encoded.soft_tokens for encoded in pg.encode_images([Frames(DESK, DESK), DESK]))
    ways = (
        AnswerOptions(max_new_tokens=3),
        AnswerOptions(max_new_tokens=9),
        AnswerOptions(temperature=1.5, seed=3),
        AnswerOptions(top_k=5, seed=4, max_new_tokens=5),
        AnswerOptions(num_beams=2, max_new_tokens=4),
        AnswerOptions(num_beams=2, max_new_tokens=6, length_penalty=0.5),
        AnswerOptions(temperature=1.0, best_of=3, seed=5, max_new_tokens=4),
    )
    made = [
        Request(
            row=pg.processor.prompt_row(PROMPTS[number % len(PROMPTS)]),
            soft_tokens=(one, two, None)[number % 3],
            decoder=way.decoder(pg.settings, pg.vocab, 8),
            best_of=way.best_of,
        )
        for number, way in enumerate(ways * 2)
    ]
    asked = object_prompt("detect star ; heart")
    assert asked is not None
    grammar = object_grammar(pg.vocab, pg.processor.tokenizer.encode, asked, ObjectOptions())
    row = pg.processor.prompt_row("detect star ; heart")
    guided = Request(
        row=row,
        soft_tokens=one,
        decoder=AnswerOptions(max_new_tokens=12).decoder(pg.settings, pg.vocab, 8),
        constraint=grammar,
    )
    return [*made, guided]


def assert_same(found: Written, expected: Written) -> None:
    assert found.record.ids.tolist() == expected.record.ids.tolist()
    np.testing.assert_allclose(found.record.logprobs, expected.record.logprobs, atol=1e-5)
    assert found.logprob == pytest.approx(expected.logprob, abs=1e-4)
    assert found.is_cut == expected.is_cut


def test_requests_of_every_kind_together_are_answered_as_alone(random_tiny: PaliGemma) -> None:
    requests = requests_of(random_tiny)
    together = random_tiny.engine.answer(requests)
    for request, found in zip(requests, together, strict=True):
        assert_same(found, random_tiny.engine.answer([request])[0])


def test_no_batch_is_larger_than_its_bounds(
    random_tiny: PaliGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    generate: Callable[..., object] = engine_module.generate

    def watched(model: object, batch: object, *args: object, **options: object) -> object:
        sizes.append(batch.num_examples)  # type: ignore[attr-defined]
        return generate(model, batch, *args, **options)

    monkeypatch.setattr(engine_module, "generate", watched)
    decoder = AnswerOptions(max_new_tokens=1).decoder(random_tiny.settings, random_tiny.vocab, 8)
    requests = [
        Request(row=random_tiny.processor.prompt_row(text), soft_tokens=None, decoder=decoder)
        for text in ["ocr"] * 70 + ["caption en " * 40] * 3
    ]
    random_tiny.engine.answer(requests)
    assert max(sizes) == engine_module.MAX_ROWS
    assert sum(sizes) == len(requests)
    sizes.clear()
    random_tiny.engine.answer(requests, max_rows=50)
    assert sizes == [50, 23]
    # Few rows of many tokens have a bound of their own.
    monkeypatch.setattr(engine_module, "MAX_PREFIX_TOKENS", 3 * requests[-1].num_prefix_tokens)
    sizes.clear()
    random_tiny.engine.answer(requests[-4:])
    assert sizes == [3, 1]


def test_pictures_are_encoded_in_passes_of_bounded_size(
    random_tiny: PaliGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = torch.rand(5, *[random_tiny.config.vision.image_size_px] * 2, 3) * 2 - 1
    whole = random_tiny.engine.encode(list(pixels))
    sizes: list[int] = []
    encode = random_tiny.model.encode_image

    def watched(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return encode(images)

    monkeypatch.setattr(random_tiny.model, "encode_image", watched)
    monkeypatch.setattr(random_tiny, "_pictures", PictureCache(0))
    monkeypatch.setattr(engine_module, "MAX_PATCHES", 2 * random_tiny.config.num_image_tokens)
    parts = random_tiny.engine.encode(list(pixels))
    assert sizes == [2, 2, 1]
    for found, expected in zip(parts, whole, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_stream_and_a_grammar_are_refused_where_several_answers_are_written(
    random_tiny: PaliGemma,
) -> None:
    beams = AnswerOptions(num_beams=2).decoder(random_tiny.settings, random_tiny.vocab, 8)
    request = Request(row=random_tiny.processor.prompt_row("ocr"), soft_tokens=None, decoder=beams)
    with pytest.raises(ConfigError, match="a stream follows one answer"):
        random_tiny.engine.stream(request)
    asked = object_prompt("detect star")
    assert asked is not None
    grammar = object_grammar(random_tiny.vocab, lambda text: [5], asked, ObjectOptions())
    with pytest.raises(ConfigError, match="a grammar follows one answer"):
        replace(request, constraint=grammar)


def test_a_model_in_training_is_evaluated_and_then_left_in_training(
    random_tiny: PaliGemma,
) -> None:
    engine = Engine(random_tiny.model, RunSettings())
    pixels = torch.zeros(*[random_tiny.config.vision.image_size_px] * 2, 3)
    random_tiny.model.train()
    try:
        engine.encode([pixels])
        assert random_tiny.model.training
    finally:
        random_tiny.model.eval()
