"""The constant under the root of every norm, where activations are so small that it matters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import NORM_EPS
from test_model_oracle import (
    MASK_AR,
    SMALL,
    TOKENS,
    VOCAB,
    image,
    loud_model,
    oracle_of,
    small_config,
)

from paligemma.config import TEXT_CONFIGS
from paligemma.model import PaliGemmaModel
from paligemma.tiny.start import tiny_config

# Standard deviation of what enters each norm: its variance is near the constant itself.
QUIET = 1e-3
QUIET_PARAMETERS = ("embed", "pos_embedding", ".out.", ".fc2.", "projector", ".down.")
POST_NORMS = ("post_attn_norm.scale", "post_ffw_norm.scale")


def quiet_model(generation: str) -> PaliGemmaModel:
    """Random weights with a residual stream so small that every norm must amplify it."""
    model = loud_model(small_config(generation))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(POST_NORMS):
                # The factor of a norm is 1 + scale; here it is about QUIET.
                parameter.mul_(QUIET).sub_(1 - QUIET)
            elif any(part in name for part in QUIET_PARAMETERS):
                parameter.mul_(QUIET)
    return model


@torch.no_grad()
def states(model: PaliGemmaModel) -> np.ndarray:
    """Soft tokens and final hidden states, each divided by what the oracle expects of its size."""
    picture, tokens, mask_ar = (torch.from_numpy(x)[None] for x in (image(32), TOKENS, MASK_AR))
    soft = model.encode_image(picture)
    hidden = model.hidden(soft, tokens, mask_ar, with_image=True)
    return np.concatenate((soft[0].double().numpy() / QUIET, hidden[0].double().numpy()))


def expected_states(model: PaliGemmaModel) -> np.ndarray:
    oracle = oracle_of(model)
    soft = oracle.soft_tokens(image(32))
    return np.concatenate((soft / QUIET, oracle.hidden(soft, TOKENS, MASK_AR)))


@pytest.mark.parametrize("generation", SMALL)
def test_quiet_activations_are_those_of_float64(generation: str) -> None:
    model = quiet_model(generation)
    expected = expected_states(model)
    assert 0.3 < expected.std() < 3
    assert np.abs(states(model) - expected).max() <= 1e-5


@pytest.mark.parametrize("generation", SMALL)
def test_another_constant_in_any_one_norm_is_noticed(generation: str) -> None:
    model = quiet_model(generation)
    expected = expected_states(model)
    norms = [(name, norm) for name, norm in model.named_modules() if hasattr(norm, "eps")]
    # Two norms a block of the tower and one behind; in Gemma 2 four a block of the decoder.
    assert len(norms) == 2 * 2 + 1 + 2 * (4 if generation == "gemma2" else 2) + 1
    for name, norm in norms:
        assert norm.eps == NORM_EPS, name
        norm.eps = 1e-5
        assert np.abs(states(model) - expected).max() > 1e-2, name
        norm.eps = NORM_EPS


def test_every_release_has_the_constant_of_the_original() -> None:
    configs = {**TEXT_CONFIGS, "tiny": tiny_config(VOCAB).text}
    assert {name: text.norm_eps for name, text in configs.items()} == dict.fromkeys(
        configs, NORM_EPS
    )
