"""What every patch shows, against a loop over patches, objects and pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scene_training import small_model

from paligemma.scenes import COLORS, LABELS, THINGS, Scene, SceneObject, SceneOptions, draw_scene
from paligemma.tiny.dense import CHARS, MAX_CHARS, PatchHeads, patch_losses, patch_targets

PATCH_PX = 16


def owner_of(scene: Scene, row: int, column: int) -> SceneObject | None:
    """The object with the most pixels in a patch, if these are more than 12 % of it."""
    pixels = scene.object_map[
        row * PATCH_PX : (row + 1) * PATCH_PX, column * PATCH_PX : (column + 1) * PATCH_PX
    ]
    counts = [int((pixels == k + 1).sum()) for k in range(len(scene.objects))]
    best = int(np.argmax(counts))
    return scene.objects[best] if counts[best] > 0.12 * PATCH_PX**2 else None


@pytest.mark.parametrize("seed", range(8))
def test_label_colour_value_and_box_are_those_of_the_object_that_covers_most(seed: int) -> None:
    scene = draw_scene(seed, SceneOptions(size_px=112))
    targets = patch_targets(scene, PATCH_PX, corner=(2, 5))
    shown = 0
    for patch in range(49):
        row, column = divmod(patch, 7)
        owner = owner_of(scene, row, column)
        if owner is None:
            assert targets.label[patch] == 0
            assert targets.color[patch] == targets.value[patch] == -1
            continue
        shown += 1
        assert LABELS[targets.label[patch] - 1] == owner.label
        assert list(COLORS)[targets.color[patch]] == owner.color
        expected = int(owner.text) if owner.label == "digit" else -1
        assert targets.value[patch] == expected
        # In units of 32 pixels from the corner of the field; the scene begins at patch (2, 5).
        box_px = np.array(owner.box_yxyx) * 112 + np.array([2, 5, 2, 5]) * PATCH_PX
        assert np.abs(targets.box[patch] * 32 - box_px).max() <= 1e-3
    assert 0 < shown < 49


def test_letters_stand_in_the_half_of_the_patch_that_shows_them() -> None:
    # Three letters, 6 px wide each, on a sign across the second row of patches.
    letters = tuple(
        (char, 17.0, left, 31.0, left + 6) for char, left in (("A", 17.0), ("B", 25.0), ("7", 33.0))
    )
    sign = SceneObject(
        label="sign",
        color="red",
        text="AB7",
        box_yxyx=(1 / 4, 1 / 4, 1 / 2, 3 / 4),
        char_boxes=letters,
    )
    object_map = np.zeros((64, 64), np.uint8)
    object_map[16:32, 16:48] = 1
    scene = Scene(
        image=np.zeros((64, 64, 3), np.uint8), objects=(sign,), object_map=object_map, seed=0
    )
    targets = patch_targets(scene, PATCH_PX)
    chars, order = targets.chars.reshape(4, 4, 2), targets.order.reshape(4, 4, 2)
    # Halves of the row's patches are centred at 4, 12, 20, 28, 36, 44, 52 and 60 px.
    read = [CHARS[k] if k >= 0 else "." for k in chars[1].flatten()]
    assert "".join(read) == "..AB7..."
    assert order[1].flatten().tolist() == [-1, -1, 0, 1, 2, MAX_CHARS, -1, -1]
    assert (chars[[0, 2, 3]] == -1).all()


def test_beside_its_letters_a_sign_says_that_there_are_none() -> None:
    for seed in range(30):
        scene = draw_scene(seed, SceneOptions(size_px=112, label_shares=(0.1, 0.1, 0.8)))
        targets = patch_targets(scene, PATCH_PX)
        shown = targets.label > 0
        assert (targets.order[~shown] == -1).all()
        assert (targets.order[shown] >= 0).all()
        empty = shown[:, None] & (targets.chars == -1)
        assert (targets.order[empty] == MAX_CHARS).all()
        written = shown[:, None] & (targets.chars >= 0)
        assert (targets.order[written] < MAX_CHARS).all()


def test_every_letter_is_told_by_some_patch() -> None:
    told = total = 0
    for seed in range(30):
        scene = draw_scene(seed, SceneOptions(size_px=224))
        targets = patch_targets(scene, PATCH_PX)
        for one in scene.objects:
            for place, (char, *_) in enumerate(one.char_boxes[:MAX_CHARS]):
                hit = (targets.chars == CHARS.index(char)) & (targets.order == place)
                told += bool(hit.any())
                total += 1
    assert total > 50
    # Small writing may fall between the halves of patches.
    assert told / total > 0.85


def test_heads_answer_every_question_with_as_many_choices_as_there_are() -> None:
    heads = PatchHeads(32)
    answers = heads(torch.randn(2, 16, 32))
    sizes = {name: tuple(answer.shape) for name, answer in answers.items()}
    assert sizes["label"] == (2, 16, 1 + len(LABELS) + len(THINGS))
    assert sizes["color"] == (2, 16, 8)
    assert sizes["char_left"] == sizes["char_right"] == (2, 16, 36)
    assert sizes["order_left"] == (2, 16, MAX_CHARS + 1)
    assert sizes["box"] == (2, 16, 4)


def perfect(targets: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Answers that are sure of the truth."""
    heads = PatchHeads(4)

    def sure(target: torch.Tensor, size: int) -> torch.Tensor:
        return 50.0 * torch.nn.functional.one_hot(target.clamp(min=0), size).float()

    answers = {name: sure(targets[name], heads.sizes[name]) for name in ("label", "color", "value")}
    for side, name in enumerate(("left", "right")):
        answers[f"char_{name}"] = sure(targets["chars"][..., side], len(CHARS))
        answers[f"order_{name}"] = sure(targets["order"][..., side], MAX_CHARS + 1)
    return answers | {"box": targets["box"].clone()}


def scene_targets(seed: int) -> dict[str, torch.Tensor]:
    targets = patch_targets(draw_scene(seed, SceneOptions(size_px=112)), PATCH_PX)
    return {
        name: torch.from_numpy(getattr(targets, name))[None]
        for name in ("label", "color", "value", "chars", "order", "box")
    }


def test_true_answers_cost_nothing_and_a_question_without_patches_costs_zero() -> None:
    for seed in range(6):
        targets = scene_targets(seed)
        losses = patch_losses(perfect(targets), targets)
        assert max(loss.item() for loss in losses.values()) <= 1e-6
    nothing = {name: torch.full_like(target, -1) for name, target in targets.items()}
    nothing["label"].zero_()
    losses = patch_losses(perfect(targets), nothing)
    assert [losses[name].item() for name in ("color", "value", "char_left", "box")] == [0, 0, 0, 0]


def test_a_loss_is_the_mean_over_the_patches_that_the_question_applies_to() -> None:
    targets = scene_targets(0)
    answers = perfect(targets)
    shown = targets["label"] > 0
    # Colours unknown everywhere: log 8 on every patch that shows something, whatever the others.
    answers["color"] = torch.zeros_like(answers["color"])
    answers["box"] = answers["box"] + 1.0
    answers["box"][~shown] = 1e6
    losses = patch_losses(answers, targets)
    assert losses["color"].item() == pytest.approx(np.log(8), rel=1e-5)
    # Smooth L1 with beta 0.1: four edges, one unit off each, 1 - 0.05.
    assert losses["box"].item() == pytest.approx(4 * 0.95, rel=1e-5)


def test_the_heads_are_no_part_of_the_model() -> None:
    assert not any("heads" in name for name, _ in small_model().named_parameters())
