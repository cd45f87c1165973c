"""The picture of the demo: things on a wooden desk."""

from __future__ import annotations

import numpy as np

from paligemma.scenes.assets import digit_indices, digits
from paligemma.scenes.backgrounds import draw_background
from paligemma.scenes.canvas import Canvas
from paligemma.scenes.objects import Patch, draw_digit, draw_shape, draw_sign
from paligemma.scenes.scene import Scene
from paligemma.scenes.things import draw_thing

# Of a thousand arrangements, one of which the embedded model tells all that is there and finds what
# a newcomer asks for. What it tells of others is in its card.
_SEED = 25_274
_SIZE_HW = (480, 640)


def heldout_digit(value: int, skip: int = 0) -> int:
    """Index of a handwritten digit of that value that training never shows."""
    indices = digit_indices("heldout")
    return int(indices[digits()[1][indices] == value][skip])


def draw_desk() -> Scene:
    """The picture, 640 x 480, with its true boxes and masks."""
    rng = np.random.default_rng(_SEED)
    canvas = Canvas(draw_background(_SIZE_HW, rng, name="wood", tone_rgb=(158, 126, 98)))

    def put(patch: Patch, centre_yx: tuple[int, int]) -> None:
        y0, x0 = centre_yx[0] - patch.hw[0] // 2, centre_yx[1] - patch.hw[1] // 2
        assert canvas.fits(patch, y0, x0)
        canvas.paste(patch, y0, x0)

    put(draw_shape("heart", "red", 120, rng, aspect=1.1), (80, 81))
    put(draw_sign("HELLO", "yellow", 44, rng, face="DejaVuSans-Bold"), (86, 338))
    put(draw_thing("cat", "noto", 155, rng), (280, 113))
    put(draw_shape("star", "blue", 116, rng, aspect=1.15), (405, 307))
    put(draw_thing("pizza", "flat", 136, rng), (250, 326))
    put(draw_digit(heldout_digit(5, 2), "white", 138, rng), (136, 555))
    put(draw_thing("trumpet", "round", 155, rng), (315, 539))
    return canvas.scene(_SEED)
