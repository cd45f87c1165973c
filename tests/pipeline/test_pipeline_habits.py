"""Keywords of other libraries, and answers that are followed event by event."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_folder import DESK

import paligemma
from paligemma import Detections, PaliGemma, TextAnswer
from paligemma.errors import ConfigError, PaliGemmaError
from paligemma.pipeline.following import CompleteObject, Ended, WrittenToken
from paligemma.pipeline.options import AskKeywords

CIRCLE = "<loc0100><loc0200><loc0300><loc0400> circle"
STAR = "<loc0000><loc0000><loc1023><loc1023> star"


def test_the_version_is_that_of_the_package() -> None:
    assert paligemma.__version__ == version("paligemma")


@pytest.mark.parametrize(
    ("keywords", "mode"),
    [
        ({"torch_dtype": torch.bfloat16}, "bf16"),
        ({"torch_dtype": "bfloat16", "device_map": "auto"}, "bf16"),
        ({"dtype": torch.float32, "device_map": {"": "cpu"}}, "exact"),
        ({"dtype": "auto", "device_map": torch.device("cpu"), "token": None}, "exact"),
        ({"mode": "bf16", "torch_dtype": torch.bfloat16, "local_files_only": False}, "bf16"),
        ({"low_cpu_mem_usage": True, "trust_remote_code": True}, "exact"),
    ],
)
def test_keywords_of_loading_are_taken_in_their_meaning(
    tiny_dir: Path, keywords: dict[str, Any], mode: str
) -> None:
    pg = PaliGemma.from_pretrained(tiny_dir, **keywords)
    assert (pg.settings.mode, pg.model.device.type) == (mode, "cpu")


@pytest.mark.parametrize(
    ("keywords", "ours"),
    [
        ({"torch_dtype": torch.float16}, "'exact' or 'mixed'"),
        ({"dtype": "bf16"}, "mode says it too"),
        ({"torch_dtype": "bfloat16", "mode": "exact"}, "torch_dtype and mode say the same"),
        ({"device_map": "balanced"}, "device='cuda:0,cuda:1'"),
        ({"device_map": {"vision_tower": 0, "language_model": 1}}, "device='cuda:0,cuda:1'"),
        ({"device_map": 7}, "cuda:7"),
        ({"token": "hf_x"}, "HF_TOKEN"),
        ({"cache_dir": "/cache"}, "HF_HUB_CACHE"),
        ({"local_files_only": True}, "HF_HUB_OFFLINE=1"),
        ({"load_in_4bit": True}, "quant='int4'"),
        ({"max_pixels": 0}, "at least 1"),
        ({"attn_implementation": "sdpa"}, "leave it out"),
        ({"variant": "fp16"}, "the revision that holds it"),
        ({"proxies": {}}, "HTTPS_PROXY"),
    ],
)
def test_keywords_of_loading_without_a_meaning_here_name_ours(
    tiny_dir: Path, keywords: dict[str, Any], ours: str
) -> None:
    with pytest.raises(PaliGemmaError) as error:
        PaliGemma.from_pretrained(tiny_dir, **keywords)
    assert ours in str(error.value)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"max_tokens": 5}, {"max_new_tokens": 5}),
        ({"max_new_tokens": 5, "do_sample": False, "use_cache": True}, {"max_new_tokens": 5}),
        ({"max_tokens": 5, "do_sample": False, "temperature": 2.0}, {"max_new_tokens": 5}),
        ({"max_new_tokens": 5, "use_cache": True, "pad_token_id": 0}, {"max_new_tokens": 5}),
        (
            {"max_tokens": 5, "do_sample": True, "seed": 3},
            {"max_new_tokens": 5, "temperature": 1.0, "seed": 3},
        ),
        (
            {"max_tokens": 5, "do_sample": True, "top_k": 9},
            {"max_new_tokens": 5, "top_k": 9},
        ),
    ],
)
def test_keywords_of_asking_are_taken_in_their_meaning(
    random_tiny: PaliGemma, theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    for ask in (
        lambda how: random_tiny.read(DESK, **how).text,
        lambda how: random_tiny.ask([DESK], "caption en", **how)[0].text,
        lambda how: random_tiny.generate_batch([DESK], ["ocr"], **how)[0].text,
        lambda how: "".join(random_tiny.stream(DESK, "ocr", **how)),
    ):
        assert ask(theirs) == ask(ours)


@pytest.mark.parametrize(
    ("keywords", "ours"),
    [
        ({"max_tokens": 3, "max_new_tokens": 4}, "say the same, got 3 and 4"),
        ({"max_length": 30}, "pass max_new_tokens"),
        ({"do_sample": "yes"}, "do_sample must be True or False"),
        ({"num_return_sequences": 2}, "best_of"),
        ({"eos_token_id": 7}, "an answer ends at the model's own <eos>"),
        ({"early_stopping": True}, "beams end as in big_vision"),
        ({"streamer": print}, "call stream"),
        ({"n": 2}, "best_of"),
        ({"bos_token_id": 0}, "it is the tokenizer's"),
        ({"generation_config": {"num_beams": 2}}, "as keywords"),
        ({"presence_penalty": 0.5}, "no_repeats"),
        ({"confidence": 0.5}, "pass threshold"),
        ({"frames": [DESK, DESK]}, r"Frames\(\[...\]\)"),
    ],
)
def test_keywords_of_asking_without_a_meaning_here_name_ours(
    random_tiny: PaliGemma, keywords: dict[str, Any], ours: str
) -> None:
    for ask in (random_tiny.read, random_tiny.caption, lambda p, **how: random_tiny.ask(p, "x")):
        if ask in (random_tiny.read, random_tiny.caption):
            with pytest.raises(ConfigError, match=ours):
                ask("no-such-picture.png", **keywords)
    with pytest.raises(ConfigError, match="pass threshold"):
        random_tiny.detect("no-such-picture.png", "star", conf=0.5)  # type: ignore[call-overload]


def test_events_tell_each_object_when_it_is_complete_and_end_with_the_answer(
    random_tiny: PaliGemma,
) -> None:
    how: AskKeywords = {"choices": [f"{CIRCLE} ; {STAR}"]}
    found = list(random_tiny.stream_events(DESK, "detect circle ; star", **how))
    kinds = [type(event) for event in found]
    first = kinds.index(CompleteObject)
    assert kinds[-2:] == [CompleteObject, Ended]
    assert WrittenToken in kinds[first:]  # the circle is told before the star is written
    objects = [event.detection for event in found if isinstance(event, CompleteObject)]
    whole = random_tiny.detect(DESK, "circle ; star", **how)
    assert [one.label for one in whole] == ["circle", "star"]
    assert isinstance(found[-1], Ended)
    assert isinstance(found[-1].answer, Detections)
    assert found[-1].answer.text == whole.text
    for one, other in zip(objects, whole, strict=True):
        assert (one.label, one.box_yxyx) == (other.label, other.box_yxyx)
        assert one.score == pytest.approx(other.score, rel=1e-3)
    text = "".join(event.text for event in found if isinstance(event, WrittenToken))
    assert text == whole.text
    lines = [json.loads(json.dumps(event.to_json())) for event in found]
    assert {line["event"] for line in lines} == {"token", "object", "end"}
    assert lines[-1] == {"event": "end", **found[-1].answer.to_json()}
    assert [line["label"] for line in lines if line["event"] == "object"] == ["circle", "star"]
    strict = random_tiny.stream_events(DESK, "detect circle ; star", threshold=1.0, **how)
    assert not any(isinstance(event, CompleteObject) for event in strict)


def test_events_of_words_are_their_tokens_and_the_end(random_tiny: PaliGemma) -> None:
    for how in ({}, {"num_beams": 2}, {"temperature": 1.0, "best_of": 2}):
        *tokens, end = random_tiny.stream_events(DESK, "ocr", max_new_tokens=3, **how)
        assert isinstance(end, Ended)
        assert isinstance(end.answer, TextAnswer)
        assert "".join(one.text for one in tokens if isinstance(one, WrittenToken)) == (
            end.answer.text
        )
        assert end.to_json()["score"] == end.answer.score
    with pytest.raises(ConfigError, match="max_new_tokens"):
        random_tiny.stream_events("no-such-picture.png", "ocr", max_new_tokens=0)
