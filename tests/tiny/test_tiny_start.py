"""How the embedded model starts: size, whitened patches, neighbours and coordinates."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from scene_training import tokenizer

from paligemma.model import PaliGemmaModel
from paligemma.processing.resize import to_unit_range
from paligemma.scenes import SceneOptions, draw_scene
from paligemma.tiny import start as tiny_start
from paligemma.tiny.start import PATCH_PX, init_tiny, tiny_config
from paligemma.vocab import NUM_LOC


@pytest.fixture(scope="module", autouse=True)
def _whiten_once() -> Iterator[None]:
    """The statistics of three hundred scenes take a second and depend on nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_start, "_whitening", cache(tiny_start._whitening))
        yield


@pytest.fixture(scope="module")
def tiny(_whiten_once: None) -> PaliGemmaModel:
    model = PaliGemmaModel(tiny_config(tokenizer().vocab))
    init_tiny(model)
    return model.eval()


def pictures(num: int) -> torch.Tensor:
    """Scenes that the start was not computed from."""
    options = SceneOptions(size_px=224)
    drawn = [to_unit_range(draw_scene(5_000 + k, options).image) for k in range(num)]
    return torch.stack([torch.from_numpy(one) for one in drawn])


def test_it_has_about_ten_million_parameters_of_the_second_generation(
    tiny: PaliGemmaModel,
) -> None:
    count = sum(p.numel() for p in tiny.parameters())
    assert 8e6 <= count <= 12e6
    # In float16 it leaves room for tokenizer and mask codec below 20 MB.
    assert 2 * count < 20e6
    assert tiny.config.generation == 2
    assert tiny.config.num_image_tokens == 196


def test_equal_seeds_start_from_equal_weights(tiny: PaliGemmaModel) -> None:
    again = PaliGemmaModel(tiny.config)
    init_tiny(again)
    state = tiny.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    other = PaliGemmaModel(tiny.config)
    init_tiny(other, seed=1)
    assert not torch.equal(other.text.embed.weight, tiny.text.embed.weight)


def test_patches_begin_white(tiny: PaliGemmaModel) -> None:
    with torch.no_grad():
        features = tiny.vision.patch_embed(pictures(40)).flatten(0, 1)
    live = features[:, features.abs().amax(dim=0) > 0]
    covariance = torch.cov(live.T)
    spread = covariance.diagonal().sqrt()
    assert live.shape[1] == 192
    # About 0.8 in the directions above the floor, and no two alike.
    assert 0.3 < spread.median().item() < 1.0
    correlation = covariance / spread / spread[:, None] - torch.eye(192)
    assert correlation.abs().mean().item() < 0.1


def test_heads_of_the_first_block_begin_by_looking_at_one_neighbour(tiny: PaliGemmaModel) -> None:
    vision = tiny.vision
    block = vision.blocks[0]
    with torch.no_grad():
        x = block.norm1(vision.patch_embed(pictures(8)) + vision.pos_embedding)
        q, k = (part(x).unflatten(-1, (4, 64)) for part in (block.attn.q, block.attn.k))
        weights = torch.einsum("bqnh,bknh->bnqk", q, k).mul(64**-0.5).softmax(dim=-1)
    inner = [row * 14 + column for row in range(2, 12) for column in range(2, 12)]
    # Left, right, above, below.
    for head, move in enumerate((-1, 1, -14, 14)):
        there = weights[:, head][:, inner, [patch + move for patch in inner]]
        assert there.median().item() > 0.95
        # Loud patches shrink under the norm, and their positions with them: three in ten fail.
        assert (there > 0.5).float().mean().item() > 0.6


def test_location_tokens_begin_near_their_neighbours(tiny: PaliGemmaModel) -> None:
    vocab = tiny.config.vocab
    loc = tiny.text.embed.weight[vocab.loc0 : vocab.loc0 + NUM_LOC].detach()
    assert loc.norm(dim=1).tolist() == pytest.approx([1.0] * NUM_LOC, rel=1e-5)
    similarity = loc @ loc.T
    beside = similarity.diagonal(1)
    assert beside.min().item() > 0.9
    for far in (50, 200, 500):
        assert similarity.diagonal(far).max().item() < beside.min().item()


def test_a_picture_has_whole_patches(tiny: PaliGemmaModel) -> None:
    assert tiny.config.vision.image_size_px % PATCH_PX == 0
    with torch.no_grad():
        soft = tiny.encode_image(pictures(1))
    assert soft.shape == (1, 196, 256)
    assert soft.isfinite().all()
