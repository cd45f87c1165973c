"""Norms, patches, position tables, frames and starting weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import zoom
from test_model_cache import picture, small_model

from paligemma.model import PaliGemmaModel
from paligemma.model.gemma import RMSNorm
from paligemma.model.paligemma import init_weights
from paligemma.model.siglip import resize_position_table


def test_the_norm_multiplies_by_one_plus_its_scale_in_float32() -> None:
    norm = RMSNorm(4, 1e-6)
    x = torch.tensor([3.0, -3.0, 3.0, -3.0])
    assert norm(x).tolist() == pytest.approx([1, -1, 1, -1], rel=1e-6)
    norm.scale.data = torch.tensor([0.0, 1.0, -1.0, 0.25])
    assert norm(x).tolist() == pytest.approx([1, -2, 0, -1.25], rel=1e-6)
    # 1 + 2^-9 is lost in bfloat16; computed before the cast, it moves 1.5 * 168 across a step.
    narrow = RMSNorm(2, 0.0).bfloat16()
    narrow.scale.data.fill_(2**-9)
    wide = torch.tensor([1.0, 7.0]).bfloat16()
    exact = wide.float() / 5 * (1 + 2**-9)
    assert torch.equal(narrow(wide), exact.bfloat16())


def test_a_bfloat16_table_rounds_the_factor_and_nothing_else() -> None:
    model = small_model("gemma").text
    model.config = replace(model.config, width=2048)
    model.set_embed_scale(torch.bfloat16)
    assert model.embed_scale == 45.25
    model.set_embed_scale(torch.float32)
    assert model.embed_scale == pytest.approx(2048**0.5, rel=1e-7)


def test_patches_are_the_convolution_of_the_original_in_raster_order() -> None:
    model = small_model("gemma2")
    embed = model.vision.patch_embed
    images = picture(2)
    # [out, (y, x, channel)] -> [out, channel, y, x]
    kernel = embed.proj.weight.view(-1, 16, 16, 3).permute(0, 3, 1, 2)
    expected = F.conv2d(images.permute(0, 3, 1, 2), kernel, embed.proj.bias, stride=16)
    actual = embed(images)
    assert (actual - expected.flatten(2).transpose(1, 2)).abs().max().item() <= 1e-5


def test_a_change_at_the_right_of_the_top_row_is_seen_by_the_second_patch() -> None:
    embed = small_model("gemma2").vision.patch_embed
    images = torch.zeros(1, 32, 32, 3)
    plain = embed(images)
    images[0, 3, 20] = 1.0
    changed = (embed(images) != plain).any(dim=-1)[0]
    assert changed.tolist() == [False, True, False, False]


def test_frames_become_soft_tokens_in_time_order() -> None:
    model = small_model("gemma2")
    frames = torch.stack((picture(2), -picture(2)), dim=1)
    with torch.no_grad():
        soft = model.encode_image(frames)
        first, second = (model.encode_image(frames[:, k]) for k in range(2))
    assert soft.shape == (2, 8, 32)
    assert (soft - torch.cat((first, second), dim=1)).abs().max().item() <= 1e-5
    assert (first - second).abs().max().item() > 0.1


def test_the_order_of_frames_matters_to_the_answer() -> None:
    model = small_model("gemma2")
    frames = torch.stack((picture(1), -picture(1)), dim=1)
    tokens = torch.tensor([[2, 40, 4]])
    with torch.no_grad():
        forward, backward = (
            model(model.encode_image(order), tokens, torch.zeros_like(tokens))
            for order in (frames, frames.flip(1))
        )
    assert (forward - backward).abs().max().item() > 1e-2


@pytest.mark.parametrize("padding", [1, 5])
def test_appended_padding_changes_no_real_logit(padding: int) -> None:
    model = small_model("gemma2")
    tokens = torch.tensor([[2, 40, 41, 4, 700, 1]])
    mask_ar = torch.tensor([[0, 0, 0, 0, 1, 1]])
    longer = F.pad(tokens, (0, padding))
    longer_ar = F.pad(mask_ar, (0, padding), value=1)
    valid = F.pad(torch.ones_like(tokens), (0, padding)).bool()
    with torch.no_grad():
        soft = model.encode_image(picture(1))
        plain = model(soft, tokens, mask_ar)
        # Marked by mask_ar alone, as in training, and by validity, as at inference.
        for mask_input in (None, valid):
            padded = model(soft, longer, longer_ar, mask_input)[:, :6]
            assert (padded - plain).abs().max().item() <= 1e-5


@pytest.mark.parametrize(("old", "new"), [(16, 32), (16, 64), (32, 16), (7, 14)])
def test_a_position_table_is_resized_with_its_corners_kept(old: int, new: int) -> None:
    table = torch.randn(1, old * old, 5, generator=torch.Generator().manual_seed(0))
    resized = resize_position_table(table, new * new)
    grid = table[0].view(old, old, 5).double().numpy()
    # Without "nearest", rounding puts scipy's last sample outside the grid when shrinking: zeros.
    expected = zoom(grid, (new / old, new / old, 1), order=1, mode="nearest")
    expected = expected.reshape(1, new * new, 5)
    assert np.abs(resized.numpy() - expected).max() <= 1e-5
    assert torch.equal(resized[0, 0], table[0, 0])


def test_a_position_table_of_the_right_size_is_left_alone() -> None:
    table = torch.randn(1, 9, 4)
    assert resize_position_table(table, 9) is table


def test_an_untrained_model_starts_as_the_original_does() -> None:
    config = small_model("gemma2").config
    model = PaliGemmaModel(config)
    init_weights(model, seed=3)
    state = model.state_dict()
    assert not state["projector.weight"].any()
    assert not state["text.blocks.0.pre_attn_norm.scale"].any()
    assert (state["vision.norm.weight"] == 1).all()
    # Variance 1/fan-in, cut at two deviations of the uncut normal.
    down = state["text.blocks.0.mlp.down.weight"]
    assert float(down.var()) * 48 == pytest.approx(1.0, rel=0.1)
    assert down.abs().max().item() <= 2 * 48**-0.5 / 0.8796 + 1e-6
    assert float(state["text.embed.weight"].var()) * 32 == pytest.approx(1.0, rel=0.05)
    again = PaliGemmaModel(config)
    init_weights(again, seed=3)
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
