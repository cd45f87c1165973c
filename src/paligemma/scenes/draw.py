"""From a seed to a labelled picture."""

import math

import numpy as np

from paligemma.errors import DataError
from paligemma.scenes.assets import FONTS, digit_indices
from paligemma.scenes.backgrounds import draw_background
from paligemma.scenes.canvas import Canvas
from paligemma.scenes.objects import Patch, draw_digit, draw_shape, draw_sign
from paligemma.scenes.scene import COLORS, SHAPES, SPLITS, Scene, SceneOptions
from paligemma.scenes.thing_names import THINGS
from paligemma.scenes.things import Jitter, draw_thing, sprite_file
from paligemma.scenes.words import WORDS

_COLOR_NAMES = tuple(COLORS)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# In a quarter of the pictures one label is favoured, so that counts above two occur.
_SHARE_CROWD, _CROWD_PULL = 0.25, 0.6
# Training signs often show random letters, so that a model learns to read, not a list of words.
_SHARE_RANDOM_LETTERS = 0.35
_SHARE_NUMBERS = 0.3
_NUM_ATTEMPTS = 3


def _draw_label(options: SceneOptions, rng: np.random.Generator) -> str:
    # Without things nothing more is drawn from the generator: the same pictures as ever.
    if options.thing_share and rng.random() < options.thing_share:
        names = sprite_file(options.things).names
        return names[int(rng.integers(len(names)))]
    shapes, digits, _ = options.label_shares
    share = rng.random()
    if share < shapes:
        return SHAPES[int(rng.integers(len(SHAPES)))]
    return "digit" if share < shapes + digits else "sign"


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(float(rng.uniform(math.log(low), math.log(high))))


def _draw_text(rng: np.random.Generator, split: str) -> str:
    """Text of a sign: a word, a number of 1..4 digits, or (training) 2..6 random capitals."""
    if split == "train" and rng.random() < _SHARE_RANDOM_LETTERS:
        picks = rng.integers(len(_LETTERS), size=int(rng.integers(2, 7)))
        return "".join(_LETTERS[k] for k in picks)
    if rng.random() < _SHARE_NUMBERS:
        num_digits = int(rng.integers(1, 5))
        return str(int(rng.integers(10 ** (num_digits - 1), 10**num_digits)))
    return WORDS[int(rng.integers(len(WORDS)))]


def _draw_sign_that_fits(
    color: str, options: SceneOptions, shrink: float, rng: np.random.Generator
) -> Patch:
    """Draw a sign at most nine tenths of the canvas wide, with smaller writing or another word."""
    low, high = options.cap_range_px
    face = FONTS[int(rng.integers(len(FONTS)))]
    cap_px = max(low, _log_uniform(rng, low, high) * shrink)
    limit_px = 0.9 * options.hw[1]
    while True:
        text = _draw_text(rng, options.split)
        # The widest face takes about one cap height a character, plus padding.
        cap_px = max(low, min(cap_px, limit_px / (len(text) * 1.05 + 1.2)))
        patch = draw_sign(text, color, cap_px, rng, face=face)
        if patch.hw[1] <= limit_px:
            return patch


def _draw_thing(
    label: str, options: SceneOptions, shrink: float, rng: np.random.Generator
) -> Patch:
    low, high = options.thing_range_px
    styles = sprite_file(options.things).styles(label)
    usual, factor = Jitter(), options.thing_jitter
    jitter = Jitter(
        degrees=usual.degrees * factor, light=usual.light * factor, hue=usual.hue * factor
    )
    return draw_thing(
        label,
        styles[int(rng.integers(len(styles)))],
        max(low, _log_uniform(rng, low, high) * shrink),
        rng,
        source=options.things,
        jitter=jitter,
    )


def _draw_patch(
    label: str, options: SceneOptions, shrink: float, rng: np.random.Generator
) -> Patch:
    if label in THINGS:
        return _draw_thing(label, options, shrink, rng)
    low, high = options.side_range_px
    color = _COLOR_NAMES[int(rng.integers(len(_COLOR_NAMES)))]
    if label == "sign":
        return _draw_sign_that_fits(color, options, shrink, rng)
    side_px = max(low, _log_uniform(rng, low, high) * shrink)
    if label == "digit":
        indices = digit_indices(options.split)
        index = int(indices[int(rng.integers(len(indices)))])
        return draw_digit(index, color, max(side_px, low * 28 / 26), rng)
    return draw_shape(label, color, side_px, rng)


def draw_scene(seed: int, options: SceneOptions | None = None) -> Scene:
    """Draw the picture of a seed.

    Args:
        seed: seed of the picture, 0 or more. Equal seeds and options give equal pictures; the two
            splits give different pictures for one seed.

    Returns:
        A scene with 1..max_objects objects, each inside the canvas and at least 85 % visible. No
        two objects share label, colour, text and style.

    Raises:
        DataError: the seed is negative.
    """
    if seed < 0:
        raise DataError(f"the seed of a scene must be 0 or more, got {seed}; choose another")
    options = options or SceneOptions()
    rng = np.random.default_rng([SPLITS.index(options.split), seed])
    canvas = Canvas(draw_background(options.hw, rng))
    num_objects = int(rng.integers(options.min_objects, options.num_objects_max + 1))
    crowd = _draw_label(options, rng) if rng.random() < _SHARE_CROWD else None
    taken: set[tuple[str, str, str, str]] = set()
    num_signs = 0
    for _ in range(num_objects):
        is_crowd = crowd is not None and rng.random() < _CROWD_PULL
        label = crowd if is_crowd and crowd is not None else _draw_label(options, rng)
        while label == "sign" and num_signs >= options.num_signs_max:
            label = _draw_label(options, rng)
        for attempt in range(_NUM_ATTEMPTS):
            # An object that finds no room is drawn again and smaller.
            patch = _draw_patch(label, options, 0.75**attempt, rng)
            identity = (patch.label, patch.color, patch.text, patch.style)
            if identity not in taken and canvas.place(patch, rng):
                taken.add(identity)
                num_signs += label == "sign"
                break
    while not len(canvas):
        canvas.place(_draw_patch(SHAPES[0], options, 0.5, rng), rng)
    return canvas.scene(seed)
