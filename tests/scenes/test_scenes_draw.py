"""Pictures: exact boxes and masks, visible objects, determinism, bounds."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from paligemma.errors import DataError
from paligemma.scenes import COLORS, LABELS, SHAPES, Scene, SceneOptions, draw_scene
from paligemma.scenes.assets import FONTS
from paligemma.scenes.backgrounds import BACKGROUNDS, draw_background
from paligemma.scenes.canvas import Canvas
from paligemma.scenes.objects import Patch, draw_digit, draw_shape, draw_sign
from paligemma.scenes.words import WORDS

NUM_SEEDS = 200


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(seed, SceneOptions()) for seed in range(NUM_SEEDS)]


@pytest.fixture(scope="module")
def heldout_scenes() -> list[Scene]:
    options = SceneOptions(size_px=112, split="heldout")
    return [draw_scene(seed, options) for seed in range(NUM_SEEDS)]


def test_two_hundred_seeds_give_well_formed_scenes(scenes, heldout_scenes):
    for size, num_max, drawn in ((224, 6, scenes), (112, 3, heldout_scenes)):
        for scene in drawn:
            assert scene.image.shape == (size, size, 3)
            assert scene.image.dtype == np.uint8
            assert scene.object_map.dtype == np.uint8
            assert 1 <= len(scene.objects) <= num_max
            assert set(np.unique(scene.object_map)) <= set(range(len(scene.objects) + 1))


def test_boxes_are_the_extents_of_the_visible_masks(scenes, heldout_scenes):
    for scene in scenes + heldout_scenes:
        side = scene.image.shape[0]
        for k, item in enumerate(scene.objects):
            rows, columns = np.nonzero(scene.object_map == k + 1)
            extent = (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
            assert item.box_yxyx == tuple(v / side for v in extent)
            assert np.array_equal(scene.mask(k), scene.object_map == k + 1)


def test_at_least_85_percent_of_every_object_is_visible(monkeypatch):
    whole: list[int] = []
    paste = Canvas.paste

    def spy(self, patch, y0, x0):
        whole.append(int(patch.mask.sum()))
        paste(self, patch, y0, x0)

    monkeypatch.setattr(Canvas, "paste", spy)
    shares = []
    for seed in range(100):
        whole.clear()
        scene = draw_scene(seed, SceneOptions(size_px=160, max_objects=8))
        shares += [scene.mask(k).sum() / whole[k] for k in range(len(scene.objects))]
    assert min(shares) >= 0.85
    # Some objects do overlap: the rule is at work.
    assert min(shares) < 0.97


def test_writing_on_signs_is_never_covered():
    for seed in range(120):
        scene = draw_scene(seed, SceneOptions(size_px=176, max_objects=8))
        for k, item in enumerate(scene.objects):
            for _, y0, x0, y1, x1 in item.char_boxes:
                window = scene.object_map[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))]
                assert (window == k + 1).all()


def test_no_two_objects_share_label_color_and_text(scenes):
    for scene in scenes:
        identities = [(o.label, o.color, o.text) for o in scene.objects]
        assert len(set(identities)) == len(identities)


def test_the_same_seed_draws_the_same_picture_in_another_process():
    code = (
        "import hashlib; from paligemma.scenes import draw_scene; "
        "print(hashlib.sha256(b''.join(draw_scene(s).image.tobytes() for s in (5, 3)))"
        ".hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    mine = [draw_scene(3), draw_scene(5)]
    digest = hashlib.sha256(mine[1].image.tobytes() + mine[0].image.tobytes()).hexdigest()
    assert other.stdout.strip() == digest


def test_the_two_splits_lay_out_the_same_seed_differently():
    train, heldout = (draw_scene(4, SceneOptions(split=s)) for s in ("train", "heldout"))
    assert not np.array_equal(train.object_map, heldout.object_map)


def test_labels_and_counts_have_the_intended_frequencies(scenes):
    labels = Counter(o.label for scene in scenes for o in scene.objects)
    total = sum(labels.values())
    assert set(labels) == set(LABELS)
    assert 0.45 <= sum(labels[s] for s in SHAPES) / total <= 0.65
    assert 0.15 <= labels["digit"] / total <= 0.30
    assert 0.15 <= labels["sign"] / total <= 0.30
    numbers = Counter(len(scene.objects) for scene in scenes)
    assert all(numbers[n] >= 0.08 * NUM_SEEDS for n in range(1, 7))
    assert {o.color for scene in scenes for o in scene.objects} == set(COLORS)


def test_some_scenes_are_crowds_of_one_label(scenes):
    most = [max(Counter(o.label for o in scene.objects).values()) for scene in scenes]
    assert max(most) >= 4


def test_heldout_signs_say_words_of_the_list_or_numbers(heldout_scenes):
    texts = [o.text for scene in heldout_scenes for o in scene.objects if o.label == "sign"]
    assert len(texts) >= 40
    assert all(text in WORDS or (text.isdigit() and len(text) <= 4) for text in texts)


def test_about_a_third_of_training_signs_spell_random_letters(scenes):
    texts = [o.text for scene in scenes for o in scene.objects if o.label == "sign"]
    random_letters = [t for t in texts if t.isalpha() and t not in WORDS]
    assert 0.2 <= len(random_letters) / len(texts) <= 0.5
    assert all(2 <= len(t) <= 6 for t in random_letters)


def test_object_sizes_are_pixels_and_do_not_follow_the_canvas():
    for size, low, high in ((112, 18, 67), (224, 21, 94), (448, 21, 94)):
        sides = []
        for seed in range(60):
            scene = draw_scene(seed, SceneOptions(size_px=size))
            for o in scene.objects:
                if o.label != "sign":
                    y0, x0, y1, x1 = (v * size for v in o.box_yxyx)
                    sides.append(max(y1 - y0, x1 - x0))
        assert low <= min(sides)
        assert max(sides) <= high


def test_a_canvas_may_be_rectangular_and_objects_larger():
    scene = draw_scene(1, SceneOptions(size_hw=(300, 500), object_scale=2.0, max_objects=3))
    assert scene.image.shape == (300, 500, 3)
    for k, item in enumerate(scene.objects):
        rows, columns = np.nonzero(scene.mask(k))
        assert item.box_yxyx[0] == rows.min() / 300
        assert item.box_yxyx[3] == (columns.max() + 1) / 500


def test_digits_have_no_mask_on_their_halo():
    patch = draw_digit(7, "white", 60, np.random.default_rng(0))
    halo = (patch.alpha >= 64) & ~patch.mask
    assert halo.sum() > 50
    # Ink is white, the halo dark.
    assert patch.paint[patch.mask].mean() > 200
    assert np.median(patch.paint[halo]) < 130


def _distance_to(color: str, rgb: np.ndarray) -> float:
    return float(np.abs(np.array(COLORS[color]) - rgb).max())


@pytest.mark.parametrize("color", COLORS)
def test_every_drawn_color_is_nearest_to_its_own_name(color):
    for seed in range(40):
        rng = np.random.default_rng(seed)
        label = SHAPES[seed % len(SHAPES)]
        patch = draw_shape(label, color, 60, rng)
        rgb = np.median(patch.paint[patch.mask].astype(float), axis=0)
        assert min(COLORS, key=lambda name: _distance_to(name, rgb)) == color


@pytest.mark.parametrize("label", SHAPES)
def test_a_shape_fills_the_side_it_was_asked_for(label):
    for seed in range(20):
        patch = draw_shape(label, "red", 64, np.random.default_rng(seed))
        rows, columns = np.nonzero(patch.mask)
        side = max(np.ptp(rows), np.ptp(columns)) + 1
        assert 50 <= side <= 72
        # A margin remains, so anti-aliased edges are not cut.
        assert not patch.mask[0].any()
        assert not patch.mask[:, -1].any()


def test_shapes_differ_in_how_much_of_their_box_they_fill():
    shares = {}
    for label in SHAPES:
        patch = draw_shape(label, "blue", 80, np.random.default_rng(3), aspect=1.0)
        rows, columns = np.nonzero(patch.mask)
        shares[label] = patch.mask.sum() / ((np.ptp(rows) + 1) * (np.ptp(columns) + 1))
    # pi / 4 for a circle; the others follow from their outlines.
    assert shares["circle"] == pytest.approx(0.785, abs=0.02)
    assert shares["square"] > 0.65
    assert shares["star"] < 0.45 < shares["cross"] < 0.65


def test_an_unknown_shape_or_color_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="shape"):
        draw_shape("blob", "red", 40, rng)
    with pytest.raises(DataError, match="colour"):
        draw_shape("circle", "mauve", 40, rng)


@pytest.mark.parametrize("face", FONTS)
def test_character_boxes_hold_the_ink_of_their_characters(face):
    text = "WAVE 17"
    patch = draw_sign(text, "white", 24, np.random.default_rng(1), face=face)
    assert [box[0] for box in patch.char_boxes] == list(text)
    grey = patch.paint.astype(int).mean(axis=2)
    inside = np.zeros(grey.shape, dtype=bool)
    for char, y0, x0, y1, x1 in patch.char_boxes:
        if char == " ":
            continue
        window = np.s_[round(y0) : round(y1), round(x0) : round(x1)]
        assert (grey[window] < 100).sum() >= 20, char
        grown = np.s_[round(y0) - 1 : round(y1) + 1, round(x0) - 1 : round(x1) + 1]
        inside[grown] = True
    # Black ink elsewhere on a white plate could only be writing that no box holds.
    middle = np.s_[8:-8, 8:-8]
    assert (grey[middle][~inside[middle]] > 150).all()


def test_a_sign_writes_dark_on_light_and_light_on_dark():
    rng = np.random.default_rng(0)
    for color, is_dark_ink in (
        ("yellow", True),
        ("white", True),
        ("black", False),
        ("blue", False),
    ):
        patch = draw_sign("HI", color, 22, rng, face="DejaVuSans-Bold")
        char, y0, x0, y1, x1 = patch.char_boxes[0]
        assert char == "H"
        plate = np.median(patch.paint[patch.mask].mean(axis=1))
        window = patch.paint[int(y0) : int(y1), int(x0) : int(x1)].mean(axis=2)
        assert window.min() < min(60, plate - 70) if is_dark_ink else window.max() > plate + 100


@pytest.mark.parametrize("text", ["", "A" * 13, "caf\u00e9", "A\nB"])
def test_a_sign_refuses_text_it_cannot_write(text):
    with pytest.raises(DataError, match="printable ASCII"):
        draw_sign(text, "red", 20, np.random.default_rng(0), face=FONTS[0])


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_backgrounds_are_muted(name):
    for seed in range(5):
        rgb = draw_background((224, 224), np.random.default_rng(seed), name=name).astype(float)
        assert rgb.std(axis=(0, 1)).max() < 60
        # Colourful pixels, as an object has them, are rare.
        assert (np.ptp(rgb, axis=2) > 120).mean() < 0.05


def test_the_canvas_refuses_what_leaves_it_or_hides_too_much():
    def block(side: int) -> Patch:
        ones = np.ones((side, side))
        return Patch(
            paint=np.zeros((side, side, 3), np.uint8),
            alpha=(255 * ones).astype(np.uint8),
            mask=ones.astype(bool),
            label="square",
            color="red",
        )

    canvas = Canvas(np.zeros((100, 100, 3), np.uint8))
    assert not canvas.fits(block(20), -1, 0)
    assert not canvas.fits(block(20), 0, 81)
    assert canvas.fits(block(20), 80, 80)
    canvas.paste(block(20), 40, 40)
    # Three columns of twenty are 15 %, four are 20 %.
    assert canvas.fits(block(20), 40, 57)
    assert not canvas.fits(block(20), 40, 56)
    # What two later objects hide adds up.
    canvas.paste(block(20), 40, 58)
    assert not canvas.fits(block(20), 40, 22)
    assert canvas.fits(block(20), 40, 20)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size_px", 63),
        ("size_px", 4096),
        ("split", "test"),
        ("max_objects", 0),
        ("max_objects", 13),
        ("object_scale", 0.1),
        ("size_px", 64.5),
        ("size_hw", ()),
        ("size_hw", (64, 64, 64)),
        ("max_objects", 2.5),
        ("min_objects", 1.5),
        ("max_signs", -1),
        # Each of these drew signs for ever.
        ("label_shares", (float("nan"), 0.0, 0.0)),
        ("label_shares", (0.0, 0.0, 1.0000001)),
        ("label_shares", (1e-7, 0.0, 1 - 1e-7)),
        ("label_shares", (0.5, 0.5)),
    ],
)
def test_options_out_of_bounds_are_refused(field, value):
    with pytest.raises(DataError):
        SceneOptions(**{field: value})


@pytest.mark.parametrize(
    "options",
    [
        SceneOptions(size_px=64, max_objects=12),
        SceneOptions(size_px=64, object_scale=8.0),
        SceneOptions(size_hw=(64, 640), object_scale=8.0),
        SceneOptions(size_hw=(640, 64), object_scale=8.0),
        SceneOptions(size_px=700, object_scale=0.5, max_objects=12),
    ],
)
def test_scenes_of_extreme_options_still_have_objects(options):
    for seed in range(15):
        scene = draw_scene(seed, options)
        assert 1 <= len(scene.objects) <= options.num_objects_max
        assert all(scene.mask(k).any() for k in range(len(scene.objects)))


def test_a_negative_seed_is_refused():
    with pytest.raises(DataError, match="0 or more"):
        draw_scene(-1)
