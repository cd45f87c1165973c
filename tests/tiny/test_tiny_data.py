"""Batches: the same for the same step, true to the pictures, and in order."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from scene_training import FIELD_PX, WINDOW_PX, mask_codec, small_source, tokenizer
from torch import Tensor

from paligemma.batch import Batch
from paligemma.outputs.boxes import decode_boxes
from paligemma.outputs.parse import parse_objects
from paligemma.outputs.vqvae import mask_to_codes
from paligemma.scenes import Scene, SceneOptions, draw_scene
from paligemma.tiny.data import SceneBatch, _squashed
from paligemma.tiny.dense import patch_targets
from paligemma.train.data import batches

SEEDS = range(12)


def tensors(batch: SceneBatch) -> dict[str, Tensor]:
    text = {field.name: getattr(batch.text, field.name) for field in fields(Batch)}
    return {**text, **batch.patches, "corner": torch.tensor(batch.corner or (-1, -1))}


def assert_equal(first: SceneBatch, second: SceneBatch) -> None:
    ours, theirs = tensors(first), tensors(second)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def rows_as_text(batch: SceneBatch) -> list[tuple[str, str]]:
    """Prompt and answer of every row, decoded."""
    assert batch.text.mask_loss is not None
    rows = []
    for tokens, weight, valid in zip(
        batch.text.tokens, batch.text.mask_loss, batch.text.mask_input, strict=True
    ):
        in_answer = weight > 0
        prompt = tokens[valid & ~in_answer].tolist()
        # Without BOS and separator; without EOS.
        rows.append(
            (tokenizer().decode(prompt[1:-1]), tokenizer().decode(tokens[in_answer].tolist()[:-1]))
        )
    return rows


def test_the_batch_of_a_step_is_the_same_whatever_was_made_before() -> None:
    source = small_source(squashed_share=0.5)
    for step in (0, 1, 7):
        assert_equal(source.batch(step), small_source(squashed_share=0.5).batch(step))
    again, other = tensors(source.batch(1)), tensors(source.batch(2))
    assert not torch.equal(again["images"], other["images"])


def test_another_seed_draws_other_pictures_and_steps_share_none() -> None:
    def pictures(seed: int, steps: range) -> set[bytes]:
        source = small_source(seed=seed)
        drawn = [source.batch(step).text.images for step in steps]
        return {picture.numpy().tobytes() for images in drawn for picture in images}

    first = pictures(0, range(4))
    assert len(first) == 8
    assert not first & pictures(1_000, range(4))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_come_in_order_from_any_step_on(num_workers: int) -> None:
    source = small_source()
    made = list(batches(source, 2, 5, num_workers))
    assert len(made) == 3
    for step, batch in zip(range(2, 5), made, strict=True):
        assert_equal(batch, source.batch(step))


def test_rows_belong_to_their_pictures_in_turn_and_are_cut_to_the_longest() -> None:
    batch = small_source(num_scenes=3, prompts_per_scene=4).batch(0).text
    assert batch.images is not None
    assert batch.images.shape == (3, WINDOW_PX, WINDOW_PX, 3)
    assert len(batch.tokens) == 12
    assert batch.mask_input.any(dim=0).all()
    assert batch.mask_loss is not None
    assert (batch.mask_loss.sum(dim=1) >= 2).all()
    assert torch.equal(batch.mask_ar.bool(), batch.mask_loss.bool() | ~batch.mask_input)


def test_a_source_without_prompts_trains_the_tower_alone() -> None:
    batch = small_source(prompts_per_scene=0).batch(0)
    assert batch.text.tokens.shape == (0, 0)
    assert batch.text.mask_loss is None
    assert batch.patches["label"].shape == (2, 16)


def test_boxes_and_masks_in_answers_are_those_of_the_picture() -> None:
    source = small_source(kinds={"segment": 1.0}, window_px=FIELD_PX, num_scenes=4)
    scenes = [
        draw_scene(k, SceneOptions(size_hw=(FIELD_PX, FIELD_PX)))
        for k in range(source.stage.num_scenes)
    ]
    checked = 0
    for row, (prompt, answer) in enumerate(rows_as_text(source.batch(0))):
        scene = scenes[row // source.stage.prompts_per_scene]
        for found in parse_objects(answer).objects:
            box = np.array(decode_boxes(np.array(found.loc)))
            offsets = [np.abs(box - one.box_yxyx).max() for one in scene.objects]
            index = int(np.argmin(offsets))
            assert offsets[index] <= 0.5 / 1023 + 1e-6
            truth = mask_to_codes(
                mask_codec(), scene.mask(index), np.asarray(scene.objects[index].box_yxyx)
            )
            assert list(found.seg or ()) == truth.tolist()
            assert scene.objects[index].label in prompt
            checked += 1
    assert checked >= 8


def test_a_window_states_boxes_where_they_lie_in_the_field() -> None:
    source = small_source(kinds={"detect": 1.0}, num_scenes=1, prompts_per_scene=1)
    corners = set()
    for step in range(12):
        batch = source.batch(step)
        assert batch.corner is not None
        corners.add(batch.corner)
        scene = draw_scene(step, SceneOptions(size_hw=(WINDOW_PX, WINDOW_PX)))
        ((_, answer),) = rows_as_text(batch)
        shift = np.array([*batch.corner, *batch.corner]) * 16
        truth = [np.array(one.box_yxyx) * WINDOW_PX + shift for one in scene.objects]
        for found in parse_objects(answer).objects:
            box = decode_boxes(np.array(found.loc)) * FIELD_PX
            assert min(np.abs(box - true).max() for true in truth) <= 0.5 / 1023 * FIELD_PX + 1e-4
    # Three places down, three across.
    assert {row for row, _ in corners} == {column for _, column in corners} == {0, 1, 2}


def test_a_picture_as_large_as_the_field_has_no_corner() -> None:
    assert small_source(window_px=FIELD_PX).batch(0).corner is None


@pytest.mark.parametrize("hw", [(112, 160), (160, 112)])
def test_a_squashed_scene_keeps_every_label_true(hw: tuple[int, int]) -> None:
    for seed in SEEDS:
        scene = draw_scene(seed, SceneOptions(size_hw=hw))
        small = _squashed(scene, 112)
        assert small.image.shape == (112, 112, 3)
        assert small.object_map.shape == (112, 112)
        for index, one in enumerate(small.objects):
            assert one.box_yxyx == scene.objects[index].box_yxyx
            # The mask, sampled anew, still fills the box to within the pixel it lost.
            rows, columns = np.nonzero(small.mask(index))
            extent = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
            assert np.abs(np.array(extent) - np.array(one.box_yxyx) * 112).max() <= 1.0
            share = scene.mask(index).mean()
            assert small.mask(index).mean() == pytest.approx(share, rel=0.15)


@pytest.mark.parametrize("hw", [(112, 168), (168, 112)])
def test_letters_of_a_squashed_scene_stay_on_their_sign(hw: tuple[int, int]) -> None:
    num_letters = 0
    for seed in range(40):
        scene = draw_scene(seed, SceneOptions(size_hw=hw, label_shares=(0.1, 0.1, 0.8)))
        small = _squashed(scene, 112)
        for one, before in zip(small.objects, scene.objects, strict=True):
            assert [char for char, *_ in one.char_boxes] == [char for char, *_ in before.char_boxes]
            ymin, xmin, ymax, xmax = (edge * 112 for edge in one.box_yxyx)
            for _, top, left, bottom, right in one.char_boxes:
                assert ymin - 1 <= top < bottom <= ymax + 1
                assert xmin - 1 <= left < right <= xmax + 1
                num_letters += 1
    assert num_letters > 50


def test_a_square_scene_is_not_touched() -> None:
    scene = draw_scene(0, SceneOptions(size_px=112))
    assert _squashed(scene, 112) is scene


def test_the_share_of_squashed_pictures_is_what_was_asked() -> None:
    def shares(asked: float) -> float:
        source = small_source(squashed_share=asked, prompts_per_scene=0, num_scenes=1)
        plain = small_source(squashed_share=0.0, prompts_per_scene=0, num_scenes=1)
        pairs = [(source.batch(k).text.images, plain.batch(k).text.images) for k in range(24)]
        return sum(not torch.equal(a, b) for a, b in pairs) / len(pairs)

    assert shares(0.0) == 0.0
    assert 0.25 <= shares(0.5) <= 0.75
    assert shares(1.0) == 1.0


def test_patch_targets_in_a_batch_are_those_of_each_scene() -> None:
    batch = small_source(window_px=FIELD_PX).batch(0)
    for index in range(2):
        scene: Scene = draw_scene(index, SceneOptions(size_hw=(FIELD_PX, FIELD_PX)))
        targets = patch_targets(scene, 16)
        for name, stacked in batch.patches.items():
            assert np.array_equal(stacked[index].numpy(), getattr(targets, name))


def test_boxes_in_the_field_do_not_depend_on_the_patch_that_tells_them() -> None:
    for step in range(4):
        batch = small_source(num_scenes=1, prompts_per_scene=1).batch(step)
        assert batch.corner is not None
        scene = draw_scene(step, SceneOptions(size_hw=(WINDOW_PX, WINDOW_PX)))
        shift = np.array([*batch.corner, *batch.corner]) * 16
        truth = [np.array(one.box_yxyx) * WINDOW_PX + shift for one in scene.objects]
        shown = (batch.patches["label"][0] > 0).numpy()
        for box in batch.patches["box"][0].numpy()[shown]:
            # Units of 32 px.
            assert min(np.abs(box * 32 - true).max() for true in truth) <= 1e-3
