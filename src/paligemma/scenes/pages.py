"""Drawn pages: a heading, lines of words and numbers, now and then a figure; and queries for them.

A query names some of what a page or a picture shows, as somebody would who looks for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from paligemma.errors import DataError
from paligemma.scenes.assets import CAP_HEIGHT_EM, FONTS, font
from paligemma.scenes.draw import draw_scene
from paligemma.scenes.language import describe, join_list, with_article
from paligemma.scenes.objects import draw_shape
from paligemma.scenes.questions import pick
from paligemma.scenes.scene import COLORS, SHAPES, SPLITS, Scene, SceneOptions
from paligemma.scenes.words import WORDS

_PAPERS = ((250, 250, 246), (255, 255, 255), (246, 240, 226), (232, 240, 248), (240, 246, 234))
_INKS = ((24, 24, 28), (30, 40, 78), (70, 26, 30), (28, 60, 40))
_SHARE_SCENES = 0.5
_SHARE_FIGURES = 0.4
_SHARE_NUMBERS = 0.25
_SHARE_LOWER_CASE = 0.5
# How many objects of a picture and words of a page a query names; fewer would fit many pages.
_NAMED_OBJECTS, _NAMED_WORDS = (3, 4), (2, 4)
_ASKING = ("{}", "a page about {}", "page with {}", "where does it say {}?", "find {}")
_ASKING_SCENE = ("{}", "a picture of {}", "find {}")


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnPage:
    """A page with a query that it answers.

    Attributes:
        image: uint8[H, W, 3].
        query: names something that the page shows.
        words: everything that is written on it, in reading order.
        figure: colour and shape of the figure below the writing, or "".
        scene: what a picture shows; None for writing.
    """

    image: np.ndarray
    query: str
    words: tuple[str, ...]
    figure: str = ""
    scene: Scene | None = None


def draw_page(seed: int, *, size_px: int = 224, split: str = "train") -> DrawnPage:
    """Draw the page of a seed: in half of the cases writing, in the others a scene.

    Args:
        seed: seed of the page and of its query, 0 or more.
        size_px: side of the square page, 128..2048 px.
        split: "train" or "heldout", which draws other pages for equal seeds.

    Raises:
        DataError: the seed is negative, or the size or the split out of range.
    """
    if seed < 0:
        raise DataError(f"the seed of a page must be 0 or more, got {seed}; choose another")
    if not 128 <= size_px <= 2048:
        raise DataError(f"a page has 128..2048 px a side, got {size_px}; choose another size")
    if split not in SPLITS:
        raise DataError(f"a page's split must be one of {SPLITS}, got {split!r:.80}; name one")
    # A third number sets these draws apart from those of scenes with the same seed.
    rng = np.random.default_rng([SPLITS.index(split), seed, 1])
    if rng.random() < _SHARE_SCENES:
        scene = draw_scene(seed, SceneOptions(size_px=size_px, split=split, min_objects=3))
        words = tuple(one.text for one in scene.objects if one.label == "sign")
        page = DrawnPage(image=scene.image, query="", words=words, scene=scene)
    else:
        page = _draw_writing(size_px, rng)
    return replace(page, query=draw_query(page, rng))


def draw_query(page: DrawnPage, rng: np.random.Generator) -> str:
    """Draw another query that a page answers."""
    if page.scene is not None:
        return _scene_query(page.scene, rng)
    return _page_query(page.words, page.figure, rng)


def _scene_query(scene: Scene, rng: np.random.Generator) -> str:
    """Name three or four objects of a picture, or all where there are fewer, in any order."""
    low, high = _NAMED_OBJECTS
    count = min(len(scene.objects), int(rng.integers(low, high + 1)))
    chosen = rng.permutation(len(scene.objects))[:count]
    parts = [describe(scene.objects[k]) for k in chosen]
    return pick(rng, _ASKING_SCENE).format(join_list(parts))


def _draw_writing(size_px: int, rng: np.random.Generator) -> DrawnPage:
    """A heading on a band or on paper, three to five lines, and perhaps a shape below."""
    unit = size_px / 224
    paper, ink = pick(rng, _PAPERS), pick(rng, _INKS)
    picture = Image.new("RGB", (size_px, size_px), paper)
    pen = ImageDraw.Draw(picture)
    face, margin = pick(rng, FONTS), round(14 * unit)
    room = size_px - 2 * margin
    y = margin * 0.8
    heading = _text(rng)
    cap_px = float(rng.uniform(20, 25)) * unit
    if rng.random() < 0.5:
        band = COLORS[pick(rng, ("red", "green", "blue", "purple", "black"))]
        pen.rectangle((0, 0, size_px, round(y + cap_px + 12 * unit)), fill=band)
        written = _write(pen, heading, (margin, y), cap_px, room, face, (250, 250, 250))
    else:
        written = _write(pen, heading, (margin, y), cap_px, room, face, ink)
    words = [written]
    y += cap_px + 26 * unit
    has_figure = rng.random() < _SHARE_FIGURES
    bottom = size_px - margin - (62 * unit if has_figure else 0)
    cap_px = float(rng.uniform(16.5, 20)) * unit
    while y + cap_px < bottom:
        x = float(margin)
        for _ in range(int(rng.integers(1, 3))):
            text = _text(rng)
            width = font(face, _em(cap_px)).getlength(text)
            if x + width > size_px - margin:
                break
            words.append(_write(pen, text, (x, y), cap_px, room, face, ink))
            x += width + 12 * unit
        y += cap_px + float(rng.uniform(11, 18)) * unit
    image = np.array(picture)
    figure = ""
    if has_figure:
        color, label = pick(rng, tuple(COLORS)), pick(rng, SHAPES)
        patch = draw_shape(label, color, float(rng.uniform(40, 54)) * unit, rng)
        top = size_px - margin // 2 - patch.hw[0]
        left = int(rng.integers(margin, size_px - margin - patch.hw[1]))
        window = image[top : top + patch.hw[0], left : left + patch.hw[1]]
        share = patch.alpha[:, :, None] / 255.0
        window[:] = np.rint(window * (1 - share) + patch.paint * share)
        figure = f"{color} {label}"
    return DrawnPage(image=image, query="", words=tuple(words), figure=figure)


def _page_query(words: tuple[str, ...], figure: str, rng: np.random.Generator) -> str:
    """Two to four words of a page; in half of the cases its figure in the place of the last."""
    low, high = _NAMED_WORDS
    count = min(len(words), int(rng.integers(low, high + 1)))
    named = [words[k] for k in rng.permutation(len(words))[:count]]
    if rng.random() < _SHARE_LOWER_CASE:
        named = [word.lower() for word in named]
    if figure and rng.random() < 0.5:
        named[-1] = with_article(figure)
    joined = join_list(named) if rng.random() < 0.5 else " ".join(named)
    return pick(rng, _ASKING).format(joined)


def _text(rng: np.random.Generator) -> str:
    """A word in capitals, or a number of two to four digits."""
    if rng.random() < _SHARE_NUMBERS:
        return str(int(rng.integers(10, 10_000)))
    return pick(rng, WORDS)


def _em(cap_px: float) -> int:
    return max(6, round(cap_px / CAP_HEIGHT_EM))


def _write(
    pen: ImageDraw.ImageDraw,
    text: str,
    xy: tuple[float, float],
    cap_px: float,
    room: float,
    face: str,
    fill: tuple[int, int, int],
) -> str:
    """Write a text with its capitals' upper edge at y, smaller where there is less room."""
    writing = font(face, _em(cap_px))
    width = writing.getlength(text)
    if width > room:
        writing = font(face, max(6, int(writing.size * room / width)))
    pen.text((xy[0], xy[1] + cap_px), text, fill=fill, font=writing, anchor="ls")
    return text
