"""Muted backgrounds: crops of photographs and of computed textures, recoloured at random."""

from functools import lru_cache

import numpy as np
from PIL import Image

from paligemma.scenes.assets import PHOTOS, photo

TEXTURES: tuple[str, ...] = ("noise", "gradient", "wood", "paper", "tiles", "bricks")
BACKGROUNDS: tuple[str, ...] = (*PHOTOS, *TEXTURES)

_TEXTURE_PX = 512
# Rec. 601 luma, as Pillow's own conversion to grey.
_LUMA = np.array([0.299, 0.587, 0.114])
_GRAIN_PX = 640
_REFERENCE_PX = 224


def _value_noise(rng: np.random.Generator, cells_hw: tuple[int, int]) -> np.ndarray:
    """Smooth noise float64[512, 512] in 0..1: random cells, bicubic between them."""
    cells = rng.integers(0, 256, size=cells_hw, dtype=np.uint8)
    size_wh = (_TEXTURE_PX, _TEXTURE_PX)
    return np.asarray(Image.fromarray(cells).resize(size_wh, Image.Resampling.BICUBIC)) / 255.0


def _fractal(rng: np.random.Generator) -> np.ndarray:
    octaves = [_value_noise(rng, (n, n)) / k for k, n in enumerate((4, 9, 20, 48, 110), start=1)]
    total = np.sum(octaves, axis=0)
    return (total - total.min()) / (total.max() - total.min())


def _wood(rng: np.random.Generator) -> np.ndarray:
    """Boards of long streaks with dark joints."""
    streaks = 0.6 * _value_noise(rng, (160, 5)) + 0.4 * _value_noise(rng, (60, 3))
    board_px = _TEXTURE_PX // 6
    row = np.arange(_TEXTURE_PX)
    shade = rng.uniform(-0.12, 0.12, size=_TEXTURE_PX // board_px + 1)[row // board_px]
    joint = np.where(row % board_px < 3, -0.35, 0.0)
    return streaks * 0.7 + 0.2 + (shade + joint)[:, None]


def _tiles(rng: np.random.Generator) -> np.ndarray:
    """Square tiles of slightly different shades with light joints."""
    tile_px = 64
    num = _TEXTURE_PX // tile_px
    shade = np.kron(rng.uniform(0.3, 0.65, size=(num, num)), np.ones((tile_px, tile_px)))
    joint = np.arange(_TEXTURE_PX) % tile_px < 4
    shade[joint, :] = 0.85
    shade[:, joint] = 0.85
    return shade + 0.12 * (_fractal(rng) - 0.5)


def _bricks(rng: np.random.Generator) -> np.ndarray:
    """Courses of bricks, every second one shifted by half a brick."""
    height_px, width_px = 32, 64
    row, col = np.indices((_TEXTURE_PX, _TEXTURE_PX))
    course = row // height_px
    shifted = col + (course % 2) * (width_px // 2)
    shades = rng.uniform(0.35, 0.65, size=(32, 32))
    shade = shades[course % 32, (shifted // width_px) % 32]
    joint = (row % height_px < 3) | (shifted % width_px < 3)
    return np.where(joint, 0.85, shade) + 0.1 * (_fractal(rng) - 0.5)


@lru_cache(maxsize=len(TEXTURES))
def _texture(name: str) -> Image.Image:
    """A computed texture, grey, 512 x 512 px; the same in every process."""
    rng = np.random.default_rng(TEXTURES.index(name))
    if name == "noise":
        value = _fractal(rng)
    elif name == "gradient":
        row, col = np.indices((_TEXTURE_PX, _TEXTURE_PX)) / (_TEXTURE_PX - 1)
        value = 0.5 * row + 0.5 * col
    elif name == "wood":
        value = _wood(rng)
    elif name == "paper":
        fibres = rng.random((_TEXTURE_PX, _TEXTURE_PX))
        value = 0.5 + 0.25 * (fibres - 0.5) + 0.3 * (_fractal(rng) - 0.5)
    elif name == "tiles":
        value = _tiles(rng)
    else:
        value = _bricks(rng)
    return Image.fromarray(np.rint(255 * value.clip(0, 1)).astype(np.uint8))


@lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    """Film grain int16[640, 640, 1], standard deviation about 3 of 255."""
    rng = np.random.default_rng(11)
    return rng.integers(-5, 6, size=(_GRAIN_PX, _GRAIN_PX, 1), dtype=np.int16)


def _crop(image: Image.Image, hw: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A random window of the canvas' aspect, at a random zoom, perhaps mirrored, resized to it."""
    height, width = hw
    # A small canvas shows as small a part of the source as a crop of a 224 px canvas would.
    fit = min(image.height / height, image.width / width) * min(1.0, min(hw) / _REFERENCE_PX)
    scale = fit * float(rng.uniform(0.45, 1.0))
    box_h, box_w = height * scale, width * scale
    y0 = float(rng.uniform(0, image.height - box_h))
    x0 = float(rng.uniform(0, image.width - box_w))
    box = (x0, y0, min(x0 + box_w, image.width), min(y0 + box_h, image.height))
    out = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    if rng.random() < 0.5:
        out = out.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return out


def _recolour(
    image: Image.Image, *, saturation: float, contrast: float, tone: np.ndarray
) -> np.ndarray:
    """Mute colours, lower the contrast, and move mid grey to `tone`: uint8[H, W, 3]."""
    base = tone - contrast * 127.5
    if image.mode == "L":
        ramp = contrast * np.arange(256)[:, None] + base
        return ramp.clip(0, 255).astype(np.uint8)[np.asarray(image)]
    mix = contrast * (saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1)))
    matrix = np.concatenate([mix, base[:, None]], axis=1)
    return np.asarray(image.convert("RGB", tuple(float(v) for v in matrix.reshape(-1))))


def draw_background(
    hw: tuple[int, int],
    rng: np.random.Generator,
    *,
    name: str | None = None,
    tone_rgb: tuple[int, int, int] | None = None,
) -> np.ndarray:
    """Draw a background: uint8[H, W, 3].

    Args:
        hw: height and width of the canvas in pixels.
        name: one of BACKGROUNDS; None draws a random one.
        tone_rgb: colour that mid grey becomes, 0..255; None draws a random one.
    """
    if name is None:
        # A photograph in two of five pictures; otherwise one of the textures.
        names = PHOTOS if rng.random() < 0.4 else TEXTURES
        name = names[int(rng.integers(len(names)))]
    contrast, saturation = float(rng.uniform(0.4, 0.7)), float(rng.uniform(0.4, 0.6))
    if name in PHOTOS:
        source = photo(name)
        tone = rng.uniform(105, 165) + rng.uniform(-10, 10, size=3)
    else:
        source = _texture(name)
        contrast *= 0.85
        tone = rng.uniform(70, 195) + rng.uniform(-26, 26, size=3)
    if tone_rgb is not None:
        tone = np.array(tone_rgb, dtype=np.float64)
    crop = _crop(source, hw, rng)
    image = _recolour(crop, saturation=saturation, contrast=contrast, tone=tone)
    height, width = hw
    out = image.astype(np.int16)
    if height <= _GRAIN_PX and width <= _GRAIN_PX:
        y0 = int(rng.integers(_GRAIN_PX - height + 1))
        x0 = int(rng.integers(_GRAIN_PX - width + 1))
        out += _grain()[y0 : y0 + height, x0 : x0 + width]
    return out.clip(0, 255).astype(np.uint8)
