"""The objective of gathering: the end of a prompt knows how many, where and how large."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scene_training import FIELD_PX, small_source, tokenizer

from paligemma.scenes import Scene, SceneObject
from paligemma.tiny.gathering import (
    MAX_COUNT,
    GatheringHead,
    ends_of_prompts,
    gathered,
    gathering_loss,
    tokens_at,
)

SCENE = Scene(
    image=np.zeros((64, 64, 3), np.uint8),
    objects=(
        SceneObject(label="star", color="red", text="", box_yxyx=(0.0, 0.5, 0.5, 1.0)),
        SceneObject(label="heart", color="red", text="", box_yxyx=(0.5, 0.0, 0.75, 0.25)),
    ),
    object_map=np.zeros((64, 64), np.uint8),
    seed=0,
)
NAN = math.nan


@pytest.mark.parametrize(
    ("named", "has_two", "expected"),
    [
        (({0}, set()), False, [[1, 2.5, 7.5, -2.0], [NAN] * 4]),
        (({0}, {1}), True, [[1, 2.5, 7.5, -2.0], [1, 6.25, 1.25, -4.0]]),
        (({0, 1}, {1}), True, [[2, NAN, NAN, NAN], [1, 6.25, 1.25, -4.0]]),
        ((set(), set()), False, [[0, NAN, NAN, NAN], [NAN] * 4]),
        (None, False, [[NAN] * 4, [NAN] * 4]),
    ],
)
def test_each_side_has_a_count_and_one_thing_has_a_place(
    named: tuple[set[int], set[int]] | None, has_two: bool, expected: list[list[float]]
) -> None:
    found = gathered(named, SCENE, has_two=has_two)
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-6)


def test_counts_and_places_are_means_over_those_that_are_asked() -> None:
    torch.manual_seed(0)
    answers, apart = torch.randn(3, 2, MAX_COUNT + 4), torch.randn(3, 3)
    targets = torch.full((3, 2, 4), NAN)
    targets[0, 0] = torch.tensor([1.0, 2.5, 7.5, -2.0])
    targets[2, 1, 0] = 3.0
    # Both sides of the second prompt are single things.
    targets[1] = torch.tensor([[1.0, 1.0, 2.0, -3.0], [1.0, 4.0, 1.0, -4.0]])
    counts = [
        -answers[row, side, :9].log_softmax(0)[number]
        for row, side, number in ((0, 0, 1), (2, 1, 3), (1, 0, 1), (1, 1, 1))
    ]

    def distance(off: torch.Tensor) -> float:
        return sum(0.5 * x**2 / 0.3 if x < 0.3 else x - 0.15 for x in off.abs().tolist())

    sides = ((0, 0), (1, 0), (1, 1))
    places = [distance(answers[row, k, 9:] - targets[row, k, 1:]) for row, k in sides]
    between = distance(apart[1] - torch.tensor([3.0, -1.0, -1.0]))
    expected = float(torch.stack(counts).mean()) + sum(places) / 3 + between
    assert gathering_loss(answers, apart, targets).item() == pytest.approx(expected, rel=1e-5)
    nothing = gathering_loss(answers, apart, torch.full((3, 2, 4), NAN))
    assert nothing.item() == 0.0


def test_a_head_begins_with_a_place_in_the_middle() -> None:
    head = GatheringHead(16)
    with torch.no_grad():
        head.proj.weight.zero_()
        sides, apart = head(torch.randn(2, 16))
    place = sides[..., MAX_COUNT + 1 :]
    assert place.shape == (2, 2, 3)
    assert apart.tolist() == [[0.0] * 3] * 2
    assert place[1, 1].tolist() == pytest.approx([5.0, 5.0, math.log2(0.04)])


def test_the_end_of_a_prompt_is_its_separator() -> None:
    batch = small_source(window_px=FIELD_PX, num_scenes=3, prompts_per_scene=3).batch(0)
    assert batch.text.mask_loss is not None
    ends = ends_of_prompts(batch.text.mask_loss)
    (separator,) = set(batch.text.tokens[torch.arange(9), ends].tolist())
    assert tokenizer().decode([separator]) == "\n"
    hidden = torch.randn(9, batch.text.tokens.shape[1], 2)
    assert torch.equal(tokens_at(hidden, ends)[4], hidden[4, ends[4]])


def test_a_batch_asks_two_sides_of_comparisons_alone() -> None:
    source = small_source(
        window_px=FIELD_PX,
        num_scenes=8,
        prompts_per_scene=2,
        naming=True,
        kinds={"comparison": 1.0, "count": 1.0},
    )
    batch = source.batch(1)
    assert batch.gathered is not None
    assert batch.text.mask_loss is not None
    seen = set()
    for tokens, end, said, known in zip(
        batch.text.tokens,
        ends_of_prompts(batch.text.mask_loss),
        batch.text.mask_loss,
        batch.gathered,
        strict=True,
    ):
        prompt = tokenizer().decode(tokens[1 : int(end) + 1].tolist())
        answer = tokenizer().decode(tokens[said > 0].tolist()[:-1])
        is_comparison = "how many" not in prompt
        seen.add(is_comparison)
        assert known[1].isnan().all().item() != is_comparison
        if "how many" in prompt:
            assert int(known[0, 0]) == int(answer)
        elif "more" in prompt:
            assert (known[0, 0] > known[1, 0]) == (answer == "yes")
        elif "left" in prompt:
            assert (known[0, 2] < known[1, 2]) == (answer == "yes")
        elif "below" in prompt:
            assert (known[0, 1] > known[1, 1]) == (answer == "yes")
        elif "bigger" in prompt:
            assert (known[0, 3] > known[1, 3]) == (answer == "yes")
    assert seen == {True, False}
