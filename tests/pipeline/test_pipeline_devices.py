"""`device=` with several names: a model divided by blocks answers as a whole one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_folder import DESK

from paligemma import PaliGemma
from paligemma.adapt.quant import Quant
from paligemma.errors import ConfigError
from paligemma.weights.load import OpenCheckpoint, load_model
from paligemma.weights.sizes import parameter_bytes

BF16 = torch.bfloat16


def test_what_is_counted_is_what_the_layers_of_a_gpu_hold(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paligemma.weights.load.packs_for", lambda device: False)
    for text in ("int4", "int8:decoder", "fp8,head=int4", "nf4:vision", "bf16"):
        quant = Quant.parse(text)
        with OpenCheckpoint(tiny_dir) as opened:
            model = opened.load(dtype=BF16, quant=quant)
            sizes = parameter_bytes(opened.config, quant, BF16, packs=False)
        held = {id(one): one.nbytes for one in (*model.parameters(), *model.buffers())}
        assert sum(one.stays for one in sizes.values()) == sum(held.values())


def test_a_divided_model_answers_with_the_bits_of_a_whole_one(tiny_dir: Path) -> None:
    whole, divided = (
        PaliGemma.from_pretrained(tiny_dir, device=device, mode="bf16", kv_cache_dtype=cache)
        for device, cache in (("cpu", "float32"), ("cpu,cpu:0", "float32"))
    )
    prompts = ["caption en", "answer en how many stars are there?", "ocr"]
    ways: tuple[dict[str, Any], ...] = ({}, {"num_beams": 3}, {"temperature": 1.0, "best_of": 2})
    for options in ways:
        ours = divided.generate_batch([DESK] * 3, prompts, max_new_tokens=6, **options)
        theirs = whole.generate_batch([DESK] * 3, prompts, max_new_tokens=6, **options)
        assert [one.text for one in ours] == [one.text for one in theirs]
        assert [one.token_logprobs for one in ours] == [one.token_logprobs for one in theirs]


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("cpu,cpu", "different devices of one kind, got cpu,cpu; name each once"),
        ("cpu,", "the device must be one that torch finds here"),
        ("cpu,cuda:77", "the device must be one that torch finds here"),
        ("cpu,meta", "must be one that computes"),
    ],
)
def test_devices_that_do_not_go_together_are_refused(device: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        PaliGemma.from_pretrained("tiny", device=device)


def test_a_model_that_does_not_fit_is_refused_before_its_tensors_are_read(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paligemma.weights.sizes.room_on", lambda device: 10**5)
    with pytest.raises(
        ConfigError,
        match=r"fit on cpu: .* GB of them go there \(blocks 0 to 1\), 0\.0 GB .* name more devices",
    ):
        load_model(tiny_dir)
