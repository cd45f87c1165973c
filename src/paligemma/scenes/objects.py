"""Single objects as small patches: shapes, handwritten digits and signs, with exact masks."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from paligemma.errors import DataError
from paligemma.scenes.assets import CAP_HEIGHT_EM, digits, font
from paligemma.scenes.scene import COLORS, SHAPES

_SUPERSAMPLE = 4
# A pixel belongs to an object when the object covers at least half of it.
_HALF = 128
_DIGIT_THRESHOLD = 0.45
_DIGIT_ZOOM = 12
_COLOR_JITTER = 11


@dataclass(frozen=True, kw_only=True, eq=False)
class Patch:
    """One drawn object before it is placed; label, color and text are those of `SceneObject`.

    Attributes:
        paint: uint8[h, w, 3], colours.
        alpha: uint8[h, w], opacity of the paint, halo included.
        mask: bool[h, w], the object without its halo; never empty.
        char_boxes: (character, y0, x0, y1, x1) in pixels of the patch.
        style: art style of a thing, "" otherwise.
    """

    paint: np.ndarray
    alpha: np.ndarray
    mask: np.ndarray
    label: str
    color: str
    text: str = ""
    char_boxes: tuple[tuple[str, float, float, float, float], ...] = ()
    style: str = ""

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width of the patch in pixels."""
        return self.alpha.shape[0], self.alpha.shape[1]


def _luminance(rgb: np.ndarray) -> float:
    """Rec. 601 luma, 0..255."""
    return float(rgb @ np.array([0.299, 0.587, 0.114]))


def _jittered(color: str, rng: np.random.Generator) -> np.ndarray:
    """The named colour with a mild shift of each channel, float64[3] in 0..255."""
    if color not in COLORS:
        raise DataError(f"a colour must be one of {tuple(COLORS)}, got {color!r}; name one")
    return (COLORS[color] + rng.uniform(-_COLOR_JITTER, _COLOR_JITTER, size=3)).clip(0, 255)


def _contrasting(rgb: np.ndarray, strength: float) -> np.ndarray:
    """The colour moved towards black if it is light, towards white if it is dark."""
    goal = 0.0 if _luminance(rgb) > 90 else 255.0
    return rgb + strength * (goal - rgb)


def _shaded(rgb: np.ndarray, hw: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """The colour with a slight linear shade across the patch, float32[h, w, 3]."""
    dy, dx = rng.uniform(-0.09, 0.09, size=2)
    ramp_y = np.linspace(-dy, dy, hw[0], dtype=np.float32)[:, None]
    ramp_x = np.linspace(-dx, dx, hw[1], dtype=np.float32)[None, :]
    return (1 + ramp_y + ramp_x)[:, :, None] * rgb.astype(np.float32)


def _to_uint8(paint: np.ndarray) -> np.ndarray:
    return (paint + 0.5).clip(0, 255).astype(np.uint8)


def _ring(num: int, radii: tuple[float, ...], phase: float) -> list[tuple[float, float]]:
    """Corners (x, y) on circles whose radii alternate."""
    angles = [phase + 2 * math.pi * k / num for k in range(num)]
    return [
        (radii[k % len(radii)] * math.cos(a), radii[k % len(radii)] * math.sin(a))
        for k, a in enumerate(angles)
    ]


def _outline(label: str) -> np.ndarray:
    """Corners of a shape, float64[N, 2] as (x, y), y down, filling the unit square."""
    if label == "circle":
        points = _ring(72, (1.0,), 0.0)
    elif label == "square":
        points = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    elif label == "triangle":
        points = [(0, -1), (1, 0.75), (-1, 0.75)]
    elif label == "star":
        points = _ring(10, (1.0, 0.42), -math.pi / 2)
    elif label == "cross":
        a = 0.34
        quarter = [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a)]
        points = quarter + [(-x, -y) for x, y in quarter]
    elif label == "heart":
        # The heart curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t.
        ts = [2 * math.pi * k / 64 for k in range(64)]
        points = [
            (
                16 * math.sin(t) ** 3,
                -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)),
            )
            for t in ts
        ]
    else:
        raise DataError(f"a shape must be one of {SHAPES}, got {label!r}; name one")
    corners = np.array(points, dtype=np.float64)
    low, high = corners.min(axis=0), corners.max(axis=0)
    return (corners - low) / (high - low)


def draw_shape(
    label: str,
    color: str,
    side_px: float,
    rng: np.random.Generator,
    *,
    aspect: float | None = None,
) -> Patch:
    """Draw a filled shape with a thin contrasting edge.

    Args:
        label: one of SHAPES.
        side_px: longer side before rotation, in pixels.
        rng: generator of the rotation (+-15 degrees, none for a circle) and the shade.
        aspect: width over height before rotation; None draws one in 0.85..1.18.

    Returns:
        A patch with one clear pixel around the shape.
    """
    corners = _outline(label) - 0.5
    if aspect is None:
        aspect = math.exp(float(rng.uniform(math.log(0.85), math.log(1.18))))
    corners *= [min(1.0, aspect), min(1.0, 1 / aspect)]
    angle = 0.0 if label == "circle" else math.radians(float(rng.uniform(-15, 15)))
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    corners = corners @ turn
    corners = (corners - corners.min(axis=0)) * (side_px / (1.0 if angle == 0 else 1.08))
    width, height = (math.ceil(v) + 2 for v in corners.max(axis=0))

    fine = [(x, y) for x, y in ((corners + 1) * _SUPERSAMPLE).tolist()]
    fine_wh = (width * _SUPERSAMPLE, height * _SUPERSAMPLE)
    body = Image.new("L", fine_wh)
    ImageDraw.Draw(body).polygon(fine, fill=255)
    edge = Image.new("L", fine_wh)
    edge_px = 1.2 + side_px / 50
    # Only concave corners need a joint: the gap at a convex corner lies outside the body.
    joint = "curve" if label in ("star", "cross") else None
    edge_width = round(2 * edge_px * _SUPERSAMPLE)
    ImageDraw.Draw(edge).line([*fine, fine[0], fine[1]], fill=255, width=edge_width, joint=joint)
    alpha = np.asarray(body.reduce(_SUPERSAMPLE))
    edge_share = np.asarray(edge.reduce(_SUPERSAMPLE))[:, :, None].astype(np.float32) / 255

    rgb = _jittered(color, rng)
    paint = _shaded(rgb, (height, width), rng)
    paint += edge_share * (_contrasting(rgb, 0.42).astype(np.float32) - paint)
    return Patch(paint=_to_uint8(paint), alpha=alpha, mask=alpha >= _HALF, label=label, color=color)


@lru_cache(maxsize=2048)
def _smooth_ink(index: int) -> Image.Image:
    """Handwriting with one empty cell around it, upscaled by 12 and sharpened, grey, full ink 240.

    Sharpening over the width of a stroke reopens the loops of 6, 8 and 9 that 8 x 8 cells blur.
    """
    padded = np.pad(digits()[0][index], 1) * np.uint8(15)
    side = padded.shape[0] * _DIGIT_ZOOM
    smooth = Image.fromarray(padded).resize((side, side), Image.Resampling.BICUBIC)
    return smooth.filter(ImageFilter.UnsharpMask(radius=_DIGIT_ZOOM, percent=220, threshold=0))


def draw_digit(index: int, color: str, height_px: float, rng: np.random.Generator) -> Patch:
    """Draw a real handwritten digit, upscaled smoothly, with a thin contrasting halo.

    Args:
        index: index of the handwriting, 0..1796; its value is the object's text.
        height_px: height of the written digit in pixels, before slant.

    Returns:
        A patch whose mask is the ink without the halo.
    """
    images, labels = digits()
    ink = images[index]
    rows = np.flatnonzero(ink.max(axis=1) >= 16 * _DIGIT_THRESHOLD)
    cell_px = height_px / float(rows[-1] - rows[0] + 1)
    smooth = _smooth_ink(index)
    side = smooth.width
    x_scale = cell_px * float(rng.uniform(0.85, 1.1)) / _DIGIT_ZOOM
    y_scale = cell_px / _DIGIT_ZOOM
    slant, angle = float(rng.uniform(-0.15, 0.15)), math.radians(float(rng.uniform(-8, 8)))
    forward = (
        np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        @ np.array([[1.0, slant], [0.0, 1.0]])
        @ np.diag([x_scale, y_scale])
    )
    out_px = math.ceil(side * max(x_scale, y_scale) * 1.25)
    inverse = np.linalg.inv(forward)
    shift = side / 2 - inverse @ np.array([out_px / 2, out_px / 2])
    affine = (*inverse[0], shift[0], *inverse[1], shift[1])
    grey = smooth.transform(
        (out_px, out_px),
        Image.Transform.AFFINE,
        tuple(float(v) for v in affine),
        Image.Resampling.BILINEAR,
    )
    level = np.asarray(grey).astype(np.float32) / 240.0
    # The ramp of a stroke's side is about one cell wide: this slope makes it about one pixel.
    cover = ((level - _DIGIT_THRESHOLD) * (cell_px * 1.2) + 0.5).clip(0, 1)
    ys, xs = np.flatnonzero(cover.any(axis=1)), np.flatnonzero(cover.any(axis=0))
    halo_px = 2 + int(height_px // 100)
    cover = np.pad(cover[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1], halo_px + 1)

    fill = np.rint(255 * cover).astype(np.uint8)
    halo = np.asarray(Image.fromarray(fill).filter(ImageFilter.MaxFilter(2 * halo_px + 1)))
    rgb = _jittered(color, rng)
    paint = _shaded(rgb, fill.shape, rng)
    rim = _contrasting(rgb, 0.75).astype(np.float32)
    paint = rim + cover[:, :, None] * (paint - rim)
    alpha = np.maximum(fill, (halo.astype(np.uint16) * 4 // 5).astype(np.uint8))
    return Patch(
        paint=_to_uint8(paint),
        alpha=alpha,
        mask=fill >= _HALF,
        label="digit",
        color=color,
        text=str(int(labels[index])),
    )


def draw_sign(
    text: str, color: str, cap_px: float, rng: np.random.Generator, *, face: str
) -> Patch:
    """Draw a rounded plate with a word or number in white or black ink.

    Args:
        text: printable ASCII, 1..12 characters.
        cap_px: height of the capitals in pixels.

    Returns:
        A patch whose mask is the whole plate, with a box for each character.
    """
    if not 1 <= len(text) <= 12 or not text.isascii() or not text.isprintable():
        raise DataError(
            f"the text of a sign must be 1..12 printable ASCII characters, got {text!r}; change it"
        )
    writing = font(face, max(6, round(cap_px / CAP_HEIGHT_EM)))
    left, top, right, bottom = writing.getbbox(text, anchor="ls")
    pad_y, pad_x = cap_px * float(rng.uniform(0.4, 0.7)), cap_px * float(rng.uniform(0.45, 0.8))
    margin = 1
    height = math.ceil(bottom - top + 2 * pad_y) + 2 * margin
    width = math.ceil(right - left + 2 * pad_x) + 2 * margin
    base_x, base_y = round(margin + pad_x - left), round(margin + pad_y - top)

    fine = _SUPERSAMPLE
    rim_px, radius_px = 1.2 + cap_px / 16, cap_px * 0.35
    frame = (
        margin * fine,
        margin * fine,
        (width - margin) * fine - 1,
        (height - margin) * fine - 1,
    )
    inset = rim_px * fine
    inner = (frame[0] + inset, frame[1] + inset, frame[2] - inset, frame[3] - inset)
    plate = Image.new("L", (width * fine, height * fine))
    ImageDraw.Draw(plate).rounded_rectangle(frame, radius_px * fine, fill=255)
    field = Image.new("L", plate.size)
    ImageDraw.Draw(field).rounded_rectangle(inner, (radius_px - rim_px / 2) * fine, fill=255)
    ink = Image.new("L", (width, height))
    ImageDraw.Draw(ink).text((base_x, base_y), text, fill=255, font=writing, anchor="ls")

    rgb = _jittered(color, rng)
    ink_rgb = np.float32(20.0 if _luminance(rgb) > 125 else 248.0)
    alpha = np.asarray(plate.reduce(fine))
    field_share = np.asarray(field.reduce(fine))[:, :, None].astype(np.float32) / 255
    ink_share = np.asarray(ink)[:, :, None].astype(np.float32) / 255
    rim = _contrasting(rgb, 0.6).astype(np.float32)
    paint = rim + field_share * (_shaded(rgb, (height, width), rng) - rim)
    paint += ink_share * (ink_rgb - paint)

    boxes = []
    for k, char in enumerate(text):
        # The pen's position before this character, spacing of the pair included.
        pen = base_x + writing.getlength(text[: k + 1]) - writing.getlength(char)
        x0, y0, x1, y1 = writing.getbbox(char, anchor="ls")
        boxes.append((char, float(base_y + y0), pen + x0, float(base_y + y1), pen + x1))
    return Patch(
        paint=_to_uint8(paint),
        alpha=alpha,
        mask=alpha >= _HALF,
        label="sign",
        color=color,
        text=text,
        char_boxes=tuple(boxes),
    )
