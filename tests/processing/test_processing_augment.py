"""Drawn changes of pictures: pixels, boxes and outlines move by the same numbers."""

from __future__ import annotations

import numpy as np
import pytest

from paligemma.errors import ConfigError
from paligemma.outputs.contours import fill_rings
from paligemma.outputs.masks import mask_iou
from paligemma.processing.augment import POLICIES, Augmentation, Move
from paligemma.processing.resize import KERNELS, resize, resize_by_kernel

WORDS = ("flip", "crop=0.3", "zoom-out=2")


def drawn(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """A blue picture with a red rectangle, its mask and its box."""
    height, width = (int(n) for n in rng.integers(60, 300, 2))
    y0, x0 = int(rng.integers(0, height - 20)), int(rng.integers(0, width - 20))
    y1, x1 = int(rng.integers(y0 + 8, height + 1)), int(rng.integers(x0 + 8, width + 1))
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    image = np.where(mask[..., None], (250, 0, 0), (0, 0, 250)).astype(np.uint8)
    return image, mask, (y0 / height, x0 / width, y1 / height, x1 / width)


def test_a_drawn_rectangle_lies_under_its_box_after_every_move() -> None:
    rng = np.random.default_rng(0)
    augment = Augmentation.of(WORDS)
    kinds = set()
    for _ in range(200):
        image, mask, box = drawn(rng)
        move = augment.move(image.shape[:2], [box], rng, may_flip=True)
        kinds.add((move.flip, move.window_yxyx == (0, 0, *image.shape[:2])))
        shown = move.array(image, (0, 0, 250))
        height, width = shown.shape[:2]
        y0, x0, y1, x1 = move.box(box)
        inside = np.zeros((height, width), bool)
        inside[round(y0 * height) : round(y1 * height), round(x0 * width) : round(x1 * width)] = 1
        assert ((shown[..., 0] > 200) == inside).all()
        moved = move.array(mask, fill=False)
        assert (moved == inside).all()
        assert moved.sum() == mask.sum()
        corners = np.array([(box[1], box[0]), (box[3], box[0]), (box[3], box[2]), (box[1], box[2])])
        filled = fill_rings([move.points(corners) * (width, height)], (height, width))
        assert mask_iou(filled, moved) >= 0.95
    assert len(kinds) == 4


def windows(
    word: str, size_hw: tuple[int, int], boxes: list[tuple[float, ...]]
) -> set[tuple[int, ...]]:
    """The windows of 300 visits, without those that show the whole picture."""
    rng, augment = np.random.default_rng(1), Augmentation.of([word])
    found = {augment.move(size_hw, boxes, rng, may_flip=True).window_yxyx for _ in range(300)}
    return found - {(0, 0, *size_hw)}


def test_a_crop_keeps_every_box_whole_a_share_of_the_area_and_an_aspect_near_one() -> None:
    boxes = [(0.1, 0.2, 0.3, 0.4), (0.5, 0.35, 0.55, 0.6)]
    found = windows("crop=0.4", (100, 200), boxes)
    assert len(found) > 100
    for y0, x0, y1, x1 in found:
        assert 0 <= y0 <= 10
        assert 55 <= y1 <= 100
        assert 0 <= x0 <= 40
        assert 120 <= x1 <= 200
        # A pixel is what rounding may take.
        assert (y1 - y0 + 1) * (x1 - x0 + 1) >= 0.4 * 100 * 200
        assert (x1 - x0 - 1) / (y1 - y0 + 1) <= 4 / 3
        assert (x1 - x0 + 1) / (y1 - y0 - 1) >= 3 / 4
    shapes = np.array([(y1 - y0, x1 - x0) for y0, x0, y1, x1 in found])
    assert len({tuple(shape) for shape in shapes}) > 60


@pytest.mark.parametrize(
    ("size_hw", "boxes"),
    [
        ((100, 300), [(0.1, 0.1, 0.2, 0.9)]),  # a box wider than any crop may be
        ((20, 400), [(0.1, 0.1, 0.2, 0.101)]),  # no crop of that aspect has the area
        ((30, 30), [(0.0, 0.0, 1.0, 1.0)]),
    ],
)
def test_a_picture_that_no_crop_fits_is_shown_whole(
    size_hw: tuple[int, int], boxes: list[tuple[float, ...]]
) -> None:
    assert windows("crop", size_hw, boxes) == set()


def test_a_crop_without_objects_keeps_a_tenth_of_the_area() -> None:
    shares = [(y1 - y0) * (x1 - x0) / 90_000 for y0, x0, y1, x1 in windows("crop", (300, 300), [])]
    assert 0.09 < min(shares) < 0.2
    assert max(shares) > 0.8


def test_nothing_is_drawn_that_was_not_asked_for() -> None:
    image = np.random.default_rng(2).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    rng = np.random.default_rng(3)
    none = Augmentation()
    assert none.move((30, 40), [], rng, may_flip=True).is_still
    assert none.recoloured(image, rng) is image
    assert none.resized(image, 16, rng) is image
    flips = [
        Augmentation.of(["flip=1"]).move((30, 40), [], rng, may_flip=may) for may in (True, False)
    ]
    assert [one.flip for one in flips] == [True, False]


def test_colours_and_encodings_change_a_picture_within_their_strength() -> None:
    image = np.full((32, 32, 3), (120, 90, 60), np.uint8)
    for words, most in ((["colour=0.1"], 30), (["jpeg=90"], 12)):
        augment = Augmentation.of(words)
        rng = np.random.default_rng(4)
        changes = [
            np.abs(augment.recoloured(image, rng).astype(int) - image).max() for _ in range(40)
        ]
        assert 0 in changes
        assert 0 < max(changes) <= most


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("antialias", [True, False])
def test_each_kernel_keeps_a_plain_picture_and_a_ramp(kernel: str, antialias: bool) -> None:
    plain = np.full((70, 50, 3), 200, np.uint8)
    assert (resize_by_kernel(plain, 32, kernel, antialias=antialias) == 200).all()
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None], 64, 0)[..., None].repeat(3, 2)
    found = resize_by_kernel(ramp, 64, kernel, antialias=antialias)[:, 8:-8, 0].astype(float)
    assert np.abs(np.diff(found, axis=1) - 4).max() <= 1


@pytest.mark.parametrize("antialias", [True, False])
def test_the_bilinear_kernel_is_the_exact_resize_within_one_level(antialias: bool) -> None:
    image = np.random.default_rng(5).integers(0, 256, (91, 140, 3)).astype(np.uint8)
    exact = resize(image, 48, "bilinear-antialias" if antialias else "bilinear")
    found = resize_by_kernel(image, 48, "bilinear", antialias=antialias)
    # The exact one lets four neighbours fall at the border, where a kernel weighs them anew.
    assert np.abs(found.astype(int) - exact).max() <= 1


def test_area_averages_what_it_covers() -> None:
    image = np.random.default_rng(6).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    found = resize_by_kernel(image, 32, "area", antialias=False)
    expected = image.reshape(32, 2, 32, 3, 3).mean((1, 3))
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("word", ["flop", "crop=0", "crop=x", "jpeg=200", "resize=nan", ""])
def test_an_unknown_policy_or_strength_is_named(word: str) -> None:
    with pytest.raises(ConfigError, match=r"augment takes|strength of"):
        Augmentation.of([word])


def test_a_policy_is_named_once() -> None:
    assert [name for name, _ in Augmentation.of(list(POLICIES)).strengths] == list(POLICIES)
    with pytest.raises(ConfigError, match="once"):
        Augmentation.of(["flip", "flip=1"])


def test_a_still_move_changes_nothing() -> None:
    image = np.random.default_rng(7).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    assert (Move((9, 7), (0, 0, 9, 7)).array(image, (0, 0, 0)) == image).all()
