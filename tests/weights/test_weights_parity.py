"""Logits and greedy tokens against transformers, float32, through both file layouts.

The weights make attention scores pass the cap of 50, so that forgetting it would show.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from paligemma.model import PaliGemmaModel
from paligemma.weights.load import load_model
from paligemma.weights.save import convert, save_model

# Its own deprecations are not ours to mend.
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")

IMAGE_ID = 130
generations = pytest.mark.parametrize("generation", [1, 2])


def theirs(folder: Path) -> Any:
    from transformers import PaliGemmaForConditionalGeneration
    from transformers.utils import logging

    logging.disable_progress_bar()
    model, info = PaliGemmaForConditionalGeneration.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


def through_hf(model: PaliGemmaModel, tmp_path: Path) -> tuple[PaliGemmaModel, Path]:
    save_model(model, tmp_path / "hf", max_shard_bytes=40_000)
    return load_model(tmp_path / "hf"), tmp_path / "hf"


def through_npz(model: PaliGemmaModel, tmp_path: Path) -> tuple[PaliGemmaModel, Path]:
    save_model(model, tmp_path / "npz", layout="npz")
    convert(tmp_path / "npz", tmp_path / "hf", spelling="current", pad_rows=True)
    return load_model(tmp_path / "npz"), tmp_path / "hf"


layouts = pytest.mark.parametrize("through", [through_hf, through_npz])


class Pairs:
    """Our model and theirs, loaded from files written in one of two ways; each pair once."""

    def __init__(self, make: Callable[[int], PaliGemmaModel], root: Path) -> None:
        self._make, self._root = make, root
        self._pairs: dict[tuple[int, Callable], tuple[PaliGemmaModel, Any]] = {}

    def __call__(self, generation: int, through: Callable) -> tuple[PaliGemmaModel, Any]:
        key = (generation, through)
        if key not in self._pairs:
            folder = self._root / f"{generation}_{through.__name__}"
            ours, theirs_at = through(self._make(generation), folder)
            self._pairs[key] = (ours, theirs(theirs_at))
        return self._pairs[key]


@pytest.fixture(scope="module")
def pairs(make_config, make_model, tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(lambda g: make_model(make_config(g)), tmp_path_factory.mktemp("parity"))


def example(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Image [2, 28, 28, 3], tokens [2, 9] and mask_ar with prefixes of 5 and 3 tokens."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 28, 28, 3, generator=generator) * 2 - 1
    tokens = torch.randint(3, 128, (2, 9), generator=generator)
    mask_ar = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1, 1]])
    return image, tokens, mask_ar


def their_logits(model: Any, image: Tensor, tokens: Tensor, mask_ar: Tensor) -> Tensor:
    num_image = 4
    ids = torch.cat((tokens.new_full((len(tokens), num_image), IMAGE_ID), tokens), dim=1)
    types = torch.cat((mask_ar.new_zeros(len(tokens), num_image), mask_ar), dim=1)
    with torch.no_grad():
        logits = model(
            input_ids=ids,
            pixel_values=image.permute(0, 3, 1, 2),
            token_type_ids=types,
            attention_mask=torch.ones_like(ids),
        ).logits
    return logits[:, num_image:, :130]


def our_logits(model: PaliGemmaModel, image: Tensor, tokens: Tensor, mask_ar: Tensor) -> Tensor:
    with torch.no_grad():
        return model(model.encode_image(image), tokens, mask_ar)


def greedy(model: PaliGemmaModel, image: Tensor, prompt: Tensor, num_steps: int) -> Tensor:
    """int64[B, num_steps] with a float32 cache."""
    with torch.no_grad():
        soft = model.encode_image(image)
        room = soft.shape[1] + prompt.shape[1] + num_steps
        cache = model.new_cache(len(prompt), room, torch.float32)
        valid = torch.ones_like(prompt, dtype=torch.bool)
        logits, positions = model.prefill(soft, prompt, torch.zeros_like(prompt), valid, cache)
        chosen = [logits.argmax(-1)]
        for step in range(num_steps - 1):
            logits = model.decode_step(chosen[-1], positions + step, cache)
            chosen.append(logits.argmax(-1))
    return torch.stack(chosen, dim=1)


@generations
@layouts
def test_logits_agree_with_transformers_to_one_in_ten_thousand(
    pairs: Pairs, generation: int, through: Callable
) -> None:
    ours, model = pairs(generation, through)
    inputs = example()
    expected = their_logits(model, *inputs)
    actual = our_logits(ours, *inputs)
    assert expected.abs().max() > 2
    assert (actual - expected).abs().max().item() <= 1e-4


@generations
@layouts
def test_thirty_two_greedy_tokens_are_those_of_transformers(
    pairs: Pairs, generation: int, through: Callable
) -> None:
    ours, model = pairs(generation, through)
    image, tokens, _ = example()
    prompt = tokens[:, :5]
    ids = torch.cat((prompt.new_full((2, 4), IMAGE_ID), prompt), dim=1)
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        expected = model.generate(
            input_ids=ids,
            pixel_values=image.permute(0, 3, 1, 2),
            token_type_ids=torch.zeros_like(ids),
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=32,
        )[:, ids.shape[1] :]
    actual = greedy(ours, image, prompt, 32)
    assert actual.tolist() == expected.tolist()
    assert len(set(actual.flatten().tolist())) > 5


def test_the_attention_cap_bites_on_these_weights(make_config, make_model) -> None:
    capped = make_model(make_config(2))
    uncapped = make_model(make_config(2, attn_softcap=None))
    inputs = example()
    difference = our_logits(capped, *inputs) - our_logits(uncapped, *inputs)
    assert difference.abs().max().item() > 0.1


def test_the_final_cap_and_the_window_are_taken_over_by_name(
    make_config, make_model, tmp_path: Path
) -> None:
    config = make_config(2, final_softcap=2.0, sliding_window=3)
    save_model(make_model(config), tmp_path / "hf")
    inputs = example()
    expected = their_logits(theirs(tmp_path / "hf"), *inputs)
    as_theirs = load_model(tmp_path / "hf", conventions="transformers")
    assert as_theirs.config == config
    with torch.no_grad():
        soft = as_theirs.encode_image(inputs[0])
        capped = as_theirs(soft, *inputs[1:], final_softcap=True)
    assert (capped - expected).abs().max().item() <= 1e-4
    as_original = load_model(tmp_path / "hf")
    assert as_original.config.text.final_softcap is None
    assert as_original.config.text.sliding_window is None
    assert (our_logits(as_original, *inputs) - expected).abs().max().item() > 0.1


def test_a_window_holds_while_decoding_too(make_config, make_model, tmp_path: Path) -> None:
    model = make_model(make_config(2, sliding_window=3))
    image, tokens, mask_ar = (part[:1] for part in example())
    full = our_logits(model, image, tokens, mask_ar)
    assert (cached_logits(model, image, tokens, mask_ar) - full).abs().max().item() <= 1e-5


def cached_logits(model: PaliGemmaModel, image: Tensor, tokens: Tensor, mask_ar: Tensor) -> Tensor:
    """What `our_logits` gives, by prefill of the prefix and one step a token; one row."""
    prefix = int((mask_ar == 0).sum())
    with torch.no_grad():
        soft = model.encode_image(image)
        cache = model.new_cache(1, soft.shape[1] + tokens.shape[1], torch.float32)
        prompt = tokens[:, :prefix]
        valid = torch.ones_like(prompt, dtype=torch.bool)
        logits, positions = model.prefill(soft, prompt, mask_ar[:, :prefix], valid, cache)
        steps = [logits]
        for index in range(prefix, tokens.shape[1]):
            step = model.decode_step(tokens[:, index], positions + index - prefix, cache)
            steps.append(step)
        head = our_logits(model, image, tokens, mask_ar)[:, : prefix - 1]
    return torch.cat((head, torch.stack(steps, dim=1)), dim=1)


@generations
def test_cached_steps_equal_the_whole_forward(make_config, make_model, generation: int) -> None:
    model = make_model(make_config(generation))
    for row in range(2):
        image, tokens, mask_ar = (part[row : row + 1] for part in example())
        full = our_logits(model, image, tokens, mask_ar)
        assert (cached_logits(model, image, tokens, mask_ar) - full).abs().max().item() <= 1e-5


@generations
def test_a_batch_of_unequal_prompts_equals_each_alone(
    make_config, make_model, generation: int
) -> None:
    model = make_model(make_config(generation))
    image, tokens, _ = example()
    lengths = (7, 3)
    valid = torch.arange(9)[None] < torch.tensor(lengths)[:, None]
    next_tokens = torch.tensor([11, 12])
    with torch.no_grad():
        soft = model.encode_image(image)
        cache = model.new_cache(2, 4 + 9 + 1, torch.float32)
        ar = torch.zeros_like(tokens)
        first, positions = model.prefill(soft, tokens.where(valid, 0), ar, valid, cache)
        second = model.decode_step(next_tokens, positions, cache)
        for row, length in enumerate(lengths):
            alone = model.new_cache(1, 4 + length + 1, torch.float32)
            rows = slice(row, row + 1)
            prompt = tokens[rows, :length]
            kept = torch.ones_like(prompt, dtype=torch.bool)
            one, position = model.prefill(
                model.encode_image(image[rows]), prompt, torch.zeros_like(prompt), kept, alone
            )
            two = model.decode_step(next_tokens[rows], position, alone)
            assert (first[rows] - one).abs().max().item() <= 1e-5
            assert (second[rows] - two).abs().max().item() <= 1e-5


def test_a_folder_that_transformers_saved_is_read(
    pairs: Pairs, make_config, tmp_path: Path
) -> None:
    config = make_config(2)
    model, other = pairs(2, through_hf)
    other.save_pretrained(tmp_path / "theirs")
    saved = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert saved["text_config"]["model_type"] == "gemma2"
    loaded = load_model(tmp_path / "theirs")
    assert loaded.config == config
    expected = dict(model.named_parameters())
    assert all(torch.equal(p, expected[n]) for n, p in loaded.named_parameters())


def test_a_config_of_transformers_alone_needs_only_the_vocabulary(make_config) -> None:
    from transformers import Gemma2Config, GemmaConfig, SiglipVisionConfig
    from transformers import PaliGemmaConfig as TheirConfig

    from paligemma.config import SO400M_14, TEXT_CONFIGS
    from paligemma.vocab import GEMMA_VOCAB
    from paligemma.weights.hf_config import config_from_hf

    vision = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        patch_size=14,
        vision_use_head=False,
    )
    # to_diff_dict leaves out what equals the defaults, as published files do
    first = TheirConfig(
        text_config=GemmaConfig(
            hidden_size=2048,
            num_hidden_layers=18,
            intermediate_size=16384,
            num_attention_heads=8,
            num_key_value_heads=1,
            vocab_size=257216,
        ),
        vision_config=vision,
        image_token_index=257152,
    )
    second = TheirConfig(
        text_config=Gemma2Config(vocab_size=257216), vision_config=vision, image_token_index=257152
    )
    for published, name in ((first, "gemma_2b"), (second, "gemma2_2b")):
        config = config_from_hf(json.loads(published.to_json_string(use_diff=True)))
        assert config.text == TEXT_CONFIGS[name]
        assert config.vision == SO400M_14
        assert config.vocab == GEMMA_VOCAB
    hybrid = config_from_hf(json.loads(second.to_json_string()), conventions="transformers")
    assert hybrid.text == replace(
        TEXT_CONFIGS["gemma2_2b"], final_softcap=30.0, sliding_window=4096
    )
