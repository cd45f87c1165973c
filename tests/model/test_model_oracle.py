"""The whole model against a slow float64 forward written head by head (tests/reference.py)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from golden_set import original_arrays
from reference import ForwardOracle

from paligemma.config import PaliGemmaConfig
from paligemma.model import PaliGemmaModel
from paligemma.tiny.start import tiny_config
from paligemma.vocab import Vocab

VOCAB = Vocab(size=1500, pad=0, eos=1, bos=2, sep=4, loc0=300, seg0=1324)
# Prompt of five tokens, answer of three, two of padding.
TOKENS = np.array([2, 40, 41, 42, 4, 700, 701, 1, 0, 0])
MASK_AR = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
TEXT = tiny_config(VOCAB).text
MASK_INPUT = np.array([1, 1, 1, 1, 1, 1, 1, 1, 0, 0], bool)


def loud_model(config: PaliGemmaConfig) -> PaliGemmaModel:
    """Weights, norms and biases all random; attention scores pass the soft-cap."""
    model = PaliGemmaModel(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fan_in = parameter.shape[-1] if parameter.ndim == 2 else 16
            parameter.normal_(std=fan_in**-0.5, generator=generator)
            if ".attn.q." in name or ".attn.k." in name:
                parameter.mul_(2.0 if name.startswith("text") else 1.2)
    return model.eval()


def image(size_px: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (size_px, size_px, 3)).astype(np.float32)


def oracle_of(model: PaliGemmaModel) -> ForwardOracle:
    arrays = original_arrays(dict(model.named_parameters()), model.config)
    return ForwardOracle(
        weights={name: array.astype(np.float64) for name, array in arrays.items()},
        query_scale=model.config.text.query_scale,
        attn_softcap=model.config.text.attn_softcap,
    )


def fast_logits(
    model: PaliGemmaModel, picture: np.ndarray | None, mask_input: np.ndarray | None = None
) -> np.ndarray:
    def row(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values)[None]

    with torch.no_grad():
        soft = None if picture is None else model.encode_image(row(picture))
        valid = None if mask_input is None else row(mask_input)
        return model(soft, row(TOKENS), row(MASK_AR), valid)[0].double().numpy()


def test_the_embedded_architecture_agrees_with_float64_at_full_size() -> None:
    model = loud_model(tiny_config(VOCAB, 224))
    oracle = oracle_of(model)
    soft = oracle.soft_tokens(image(224))
    assert soft.shape == (196, 256)
    expected = oracle.text_logits(soft, TOKENS, MASK_AR)
    assert expected.std() > 0.5
    assert np.abs(fast_logits(model, image(224)) - expected).max() <= 1e-4
    # The cap of 50 bites: without it the same weights give other logits.
    uncapped = PaliGemmaModel(replace(model.config, text=replace(TEXT, attn_softcap=None)))
    uncapped.load_state_dict(model.state_dict())
    assert np.abs(fast_logits(uncapped.eval(), image(224)) - expected).max() > 1e-2


# Gemma 1 and Gemma 2, with a query scale that is not one over the root of the head dimension.
SMALL = {
    "gemma": {"attn_softcap": None, "post_norms": False, "num_kv_heads": 1},
    "gemma2": {"attn_softcap": 5.0, "post_norms": True, "num_kv_heads": 2},
}


def small_config(generation: str) -> PaliGemmaConfig:
    base = tiny_config(VOCAB, 32)
    text = replace(TEXT, width=48, depth=2, mlp_dim=64, head_dim=16, query_scale=1 / 12)
    vision = replace(base.vision, width=24, depth=2, mlp_dim=40, num_heads=2)
    return replace(base, text=replace(text, **SMALL[generation]), vision=vision)


@pytest.mark.parametrize("generation", SMALL)
@pytest.mark.parametrize("with_image", [True, False], ids=["image", "text alone"])
@pytest.mark.parametrize("mask_input", [None, MASK_INPUT], ids=["training", "inference"])
def test_both_generations_agree_with_and_without_image_and_validity(
    generation: str, with_image: bool, mask_input: np.ndarray | None
) -> None:
    model = loud_model(small_config(generation))
    oracle = oracle_of(model)
    soft = oracle.soft_tokens(image(32)) if with_image else None
    expected = oracle.text_logits(soft, TOKENS, MASK_AR, mask_input)
    actual = fast_logits(model, image(32) if with_image else None, mask_input)
    real = MASK_INPUT if mask_input is not None else slice(None)
    assert np.abs(actual[real] - expected[real]).max() <= 1e-4


@pytest.mark.parametrize("generation", SMALL)
@pytest.mark.parametrize("mask_input", [None, MASK_INPUT], ids=["training", "inference"])
@torch.no_grad()
def test_hidden_states_of_the_image_stand_in_front_of_those_of_the_text(
    generation: str, mask_input: np.ndarray | None
) -> None:
    model = loud_model(small_config(generation))
    oracle = oracle_of(model)
    expected = oracle.hidden(oracle.soft_tokens(image(32)), TOKENS, MASK_AR, mask_input)
    picture, tokens, mask_ar = (torch.from_numpy(x)[None] for x in (image(32), TOKENS, MASK_AR))
    valid = None if mask_input is None else torch.from_numpy(mask_input)[None]
    soft = model.encode_image(picture)
    whole = model.hidden(soft, tokens, mask_ar, valid, with_image=True)
    assert whole.shape == (1, soft.shape[1] + len(TOKENS), 48)
    real = slice(None) if mask_input is None else np.append([True] * soft.shape[1], mask_input)
    assert np.abs(whole[0].double().numpy() - expected)[real].max() <= 1e-4
    # The text positions are those of the plain call, and give the logits of the whole forward.
    text = model.hidden(soft, tokens, mask_ar, valid)
    assert (whole[:, soft.shape[1] :] - text).abs().max().item() <= 1e-5
    logits = model.text.logits(whole[:, soft.shape[1] :])
    assert (logits - model(soft, tokens, mask_ar, valid)).abs().max().item() <= 1e-4
    # Without an image both calls are one.
    plain = model.hidden(None, tokens, mask_ar, valid, with_image=True)
    assert torch.equal(plain, model.hidden(None, tokens, mask_ar, valid))
