"""The objective of mask tokens: every patch names the codewords that lie on it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scene_training import FIELD_PX, mask_codec, small_source

from paligemma.outputs.vqvae import mask_to_codes
from paligemma.scenes import SceneOptions, draw_scene
from paligemma.tiny.data import SceneSource
from paligemma.tiny.dense import NO_TARGET, masked_cross_entropy
from paligemma.tiny.mask_tokens import (
    MaskTokenHead,
    mask_token_targets,
    similar_codewords,
    soft_cross_entropy,
)


def test_points_take_the_codeword_of_their_cell() -> None:
    # A box over the whole of a picture of 2 x 2 patches: each point has a cell of its own.
    codes = np.arange(16)[None]
    found = mask_token_targets(np.zeros(4, int), np.array([[0.0, 0, 32, 32]]), codes, 16)
    assert found.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_points_off_the_box_and_patches_of_nothing_are_not_asked() -> None:
    owners = np.array([0, -1, 0, 0])
    found = mask_token_targets(owners, np.array([[0.0, 0, 24, 8]]), np.arange(16)[None], 16)
    # Points lie at 4, 12, 20 and 28 px: the third row of the box is the second patch's first.
    assert found.tolist() == [
        [2, NO_TARGET, 10, NO_TARGET],
        [NO_TARGET] * 4,
        [14, NO_TARGET, NO_TARGET, NO_TARGET],
        [NO_TARGET] * 4,
    ]


def test_each_object_answers_on_its_own_patches_only() -> None:
    boxes = np.array([[0.0, 0, 32, 32], [0.0, 16, 32, 32]])
    codes = np.stack([np.full(16, 3), np.full(16, 9)])
    found = mask_token_targets(np.array([0, 1, 0, 1]), boxes, codes, 16)
    assert found.tolist() == [[3] * 4, [9] * 4, [3] * 4, [9] * 4]


@pytest.fixture(scope="module")
def source() -> SceneSource:
    return small_source(window_px=FIELD_PX, prompts_per_scene=1, mask_tokens=True)


def test_a_batch_asks_for_the_codewords_that_its_masks_have(source: SceneSource) -> None:
    batch = source.batch(0)
    side = FIELD_PX // 16
    asked = 0
    for number in range(2):
        scene = draw_scene(number, SceneOptions(size_px=FIELD_PX))
        targets = batch.patches["mask_tokens"][number].view(side, side, 4)
        for index, one in enumerate(scene.objects):
            codes = mask_to_codes(mask_codec(), scene.mask(index), np.array(one.box_yxyx))
            y0, x0, y1, x1 = np.array(one.box_yxyx) * FIELD_PX
            for row, column in np.ndindex(side, side):
                block = scene.object_map[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16]
                if np.bincount(block.ravel(), minlength=9)[1:].argmax() != index:
                    continue
                for point, (down, right) in enumerate(((4, 4), (4, 12), (12, 4), (12, 12))):
                    y, x = row * 16 + down, column * 16 + right
                    value = int(targets[row, column, point])
                    if value == NO_TARGET:
                        continue
                    cell = int((y - y0) / (y1 - y0) * 4) * 4 + int((x - x0) / (x1 - x0) * 4)
                    assert value == codes[cell]
                    asked += 1
    assert asked > 20
    assert not (batch.patches["mask_tokens"][batch.patches["label"] == 0] >= 0).any()


def test_without_being_told_to_a_source_makes_none() -> None:
    assert "mask_tokens" not in small_source(window_px=FIELD_PX).batch(0).patches


def test_a_head_compares_each_point_with_every_mask_embedding() -> None:
    head = MaskTokenHead(8)
    soft, table = torch.randn(3, 8), torch.randn(128, 8)
    with torch.no_grad():
        logits = head(soft, table)
        slow = head.proj.weight.view(4, 8, 8)[2] @ soft[1] + head.proj.bias.view(4, 8)[2]
    assert logits.shape == (3, 4, 128)
    assert logits[1, 2, 70].item() == pytest.approx(float(slow @ table[70]), rel=1e-4)


def test_the_loss_is_the_mean_over_the_points_that_are_asked() -> None:
    logits = torch.randn(3, 4, 128)
    targets = torch.full((3, 4), NO_TARGET)
    targets[0, 1], targets[2, 3] = 5, 127
    each = [-logits[0, 1].log_softmax(-1)[5], -logits[2, 3].log_softmax(-1)[127]]
    loss = masked_cross_entropy(logits, targets)
    assert loss.item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)
    nothing = masked_cross_entropy(logits, torch.full((3, 4), NO_TARGET))
    assert nothing.item() == 0.0
    ignorant = masked_cross_entropy(torch.zeros(3, 4, 128), targets).item()
    assert ignorant == pytest.approx(math.log(128), rel=1e-5)


def test_codewords_share_their_weight_with_those_that_lie_close() -> None:
    codec = mask_codec()
    weights = similar_codewords(codec)
    table = codec.codewords()
    assert weights.shape == (128, 128)
    assert torch.allclose(weights.sum(dim=1), torch.ones(128))
    assert torch.equal(weights[len(table) :], torch.eye(128)[len(table) :])
    square = weights[: len(table), : len(table)]
    distances = torch.cdist(table, table)
    for row in range(len(table)):
        by_distance = square[row][distances[row].argsort()]
        assert int(square[row].argmax()) == row
        assert (by_distance[1:] <= by_distance[:-1] + 1e-7).all()
    nearest = (distances + torch.diag(torch.full((len(table),), torch.inf))).amin(dim=1)
    row = int((nearest.square() - nearest.square().median()).abs().argmin())
    other = int((distances[row] + torch.eye(len(table))[row] * 1e9).argmin())
    ratio = square[row, row] / square[row, other]
    assert ratio.log().item() == pytest.approx(1.4, rel=0.01)


def test_the_soft_loss_is_its_slow_definition_and_sharp_it_is_the_usual_one() -> None:
    logits = torch.randn(3, 4, 128, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 5, NO_TARGET, 3], [31, NO_TARGET, 2, 2], [NO_TARGET] * 4])
    weights = similar_codewords(mask_codec())
    expected, num = 0.0, 0
    for row, target in zip(logits.flatten(0, 1).numpy(), targets.flatten().tolist(), strict=True):
        if target == NO_TARGET:
            continue
        log_p = row - np.log(np.exp(row).sum())
        expected -= float((weights[target].numpy() * log_p).sum())
        num += 1
    found = soft_cross_entropy(logits, targets, weights)
    assert found.item() == pytest.approx(expected / num, rel=1e-5)
    sharp = soft_cross_entropy(logits, targets, torch.eye(128))
    usual = masked_cross_entropy(logits, targets)
    assert sharp.item() == pytest.approx(usual.item(), rel=1e-6)
