"""Everyday things as sprites in several art styles, read once on first use.

A file of sprites is a zip archive of WebP pictures with transparency, named STYLE/NAME.webp. The
file of the package is made by `examples/make_things.py`; see data/SOURCES.md.
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from paligemma.errors import DataError
from paligemma.scenes.objects import Patch
from paligemma.scenes.thing_names import THINGS

_log = logging.getLogger(__name__)

# The file of sprites that lies in the package.
KNOWN = "known"
_MAX_FILE_BYTES = 64 << 20
_MAX_SPRITE_BYTES = 1 << 20
_MAX_SPRITE_PX = 512
_SUFFIX = ".webp"
# Pillow's other formats are not needed, and some run programs.
_FORMATS = ("WEBP", "PNG")
# Of the ways in which archives are packed those whose output is bounded while it is read.
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HALF = 128


@dataclass(frozen=True)
class Jitter:
    """How much a sprite is changed each time it is drawn; 0 leaves it as it is.

    Attributes:
        degrees: largest rotation to either side.
        light: largest relative change of brightness, of contrast and of saturation.
        hue: largest turn of the colours, as a share of the whole circle.
    """

    degrees: float = 12.0
    light: float = 0.12
    hue: float = 0.015


class SpriteFile:
    """Sprites by style and name.

    Args:
        path: the archive.

    Attributes:
        names: the things that it shows, sorted.
        sha256: of all names and pictures.

    Raises:
        DataError: it cannot be read, or holds no sprite of `THINGS`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        found: dict[str, dict[str, bytes]] = {}
        others: list[str] = []
        try:
            # Nothing but a file: to open a pipe would wait for its other end.
            if not path.is_file():
                raise DataError(
                    f"a file of sprites must be a zip archive, {path} is no file; check the path"
                )
            with zipfile.ZipFile(path) as archive:
                entries = [one for one in archive.infolist() if not one.is_dir()]
                _require_room(path, entries)
                for entry in entries:
                    stem = entry.filename.removesuffix(_SUFFIX)
                    style, _, name = stem.rpartition("/")
                    if stem == entry.filename or not style or name not in THINGS:
                        others.append(entry.filename)
                    elif style in found.setdefault(name, {}):
                        raise DataError(
                            f"{path} holds {entry.filename} twice; leave one of them out"
                        )
                    else:
                        found[name][style] = archive.read(entry)
        except DataError:
            raise
        except Exception as error:  # damaged archives raise whatever a decoder stumbles over
            raise DataError(
                f"{path} must be a zip archive of STYLE/NAME.webp without a password: "
                f"{str(error)[:200]}"
            ) from error
        if not found:
            raise DataError(
                f"{path} holds no sprite of a known thing; name its pictures STYLE/NAME.webp with "
                "names of paligemma.scenes.THINGS"
            )
        if others:
            _log.warning(
                "%s: %d of %d files are not named STYLE/NAME.webp after a known thing and are left "
                "out, such as %r",
                path,
                len(others),
                len(entries),
                others[0][:100],
            )
        self._bytes = found
        digest = hashlib.sha256()
        for name in sorted(found):
            for style in sorted(found[name]):
                digest.update(f"{style}/{name} {len(found[name][style])}\n".encode())
                digest.update(found[name][style])
        self.sha256 = digest.hexdigest()
        self._sprites: dict[tuple[str, str], Image.Image] = {}
        self.names: tuple[str, ...] = tuple(sorted(found))

    def styles(self, name: str) -> tuple[str, ...]:
        """Styles that show a thing, sorted."""
        return tuple(sorted(self._bytes[name]))

    def sprite(self, name: str, style: str) -> Image.Image:
        """The picture of a thing in a style, RGBA, cut to what is visible."""
        if (name, style) not in self._sprites:
            self._sprites[name, style] = self._read(name, style)
        return self._sprites[name, style]

    def _read(self, name: str, style: str) -> Image.Image:
        where = f"{style}/{name} of {self.path}"
        try:
            with Image.open(BytesIO(self._bytes[name][style]), formats=_FORMATS) as stored:
                if max(stored.size) > _MAX_SPRITE_PX:
                    raise DataError(
                        f"a sprite may have {_MAX_SPRITE_PX} px a side, {where} has "
                        f"{stored.size}; make it smaller"
                    )
                picture = stored.convert("RGBA")
        except DataError:
            raise
        except Exception as error:  # damaged pictures raise whatever a decoder stumbles over
            reason = "no WebP" if isinstance(error, UnidentifiedImageError) else str(error)[:200]
            raise DataError(f"{where} cannot be read: {reason}; store it as WebP") from error
        box = picture.getchannel("A").point(lambda a: 255 if a >= _HALF else 0).getbbox()
        if box is None:
            raise DataError(f"{where} is transparent; leave it out")
        return picture.crop(box)


def _require_room(path: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    """Check what an archive would unpack to, and how.

    Raises:
        DataError: a picture or all together are too large, or packed in an unusual way.
    """
    total = sum(entry.file_size for entry in entries)
    if max(path.stat().st_size, total) > _MAX_FILE_BYTES:
        raise DataError(
            f"a file of sprites may have {_MAX_FILE_BYTES:,} bytes, packed and unpacked, {path} "
            f"has {total:,}; leave some out"
        )
    for entry in entries:
        if entry.file_size > _MAX_SPRITE_BYTES:
            raise DataError(
                f"a sprite may have {_MAX_SPRITE_BYTES:,} bytes, {entry.filename} of {path} has "
                f"{entry.file_size:,}; make it smaller"
            )
        if entry.compress_type not in _PACKINGS:
            raise DataError(
                f"a file of sprites must be stored or deflated, {entry.filename} of {path} is "
                "packed in another way; pack it again"
            )


@lru_cache(maxsize=8)
def sprite_file(source: str = KNOWN) -> SpriteFile:
    """The file of the package, or another one by its path."""
    if not source:
        raise DataError(f'a file of sprites needs a name, got ""; name a zip file, or {KNOWN}')
    if source != KNOWN:
        return SpriteFile(Path(source))
    with resources.as_file(resources.files("paligemma.scenes") / "data" / "things.zip") as path:
        return SpriteFile(path)


def draw_thing(
    name: str,
    style: str,
    side_px: float,
    rng: np.random.Generator,
    *,
    source: str = KNOWN,
    jitter: Jitter | None = None,
) -> Patch:
    """Draw a thing: turned, perhaps mirrored, a little stretched and recoloured.

    Args:
        name: one of THINGS.
        style: one of the file's styles of that thing.
        side_px: longer side before rotation, in pixels.

    Returns:
        A patch whose mask is what the drawing covers by at least half.

    Raises:
        DataError: at this size it covers no pixel by half.
    """
    jitter = jitter or Jitter()
    picture = sprite_file(source).sprite(name, style)
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    aspect = float(np.exp(rng.uniform(np.log(0.87), np.log(1.15))))
    width, height = picture.width * aspect**0.5, picture.height / aspect**0.5
    scale = side_px / max(width, height)
    size = (max(4, round(width * scale)), max(4, round(height * scale)))
    picture = picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    angle = float(rng.uniform(-jitter.degrees, jitter.degrees))
    picture = picture.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    rgba = np.asarray(picture)
    alpha = rgba[..., 3]
    solid = alpha >= _HALF
    if not solid.any():
        raise DataError(
            f"{style}/{name} of {source} is too thin to be seen at {side_px:.0f} px; leave it out "
            "or draw it with broader lines"
        )
    ys, xs = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    window = (
        slice(max(0, int(ys[0]) - 1), int(ys[-1]) + 2),
        slice(max(0, int(xs[0]) - 1), int(xs[-1]) + 2),
    )
    paint = _recoloured(rgba[window][..., :3].astype(np.float32), rng, jitter)
    return Patch(
        paint=(paint + 0.5).clip(0, 255).astype(np.uint8),
        alpha=np.ascontiguousarray(alpha[window]),
        mask=solid[window],
        label=name,
        color="",
        style=style,
    )


def _recoloured(rgb: np.ndarray, rng: np.random.Generator, jitter: Jitter) -> np.ndarray:
    """Turn the hue about the grey axis, then change saturation, contrast and brightness."""
    turn = float(rng.uniform(-jitter.hue, jitter.hue)) * 2 * np.pi
    saturation, contrast, light = 1 + rng.uniform(-jitter.light, jitter.light, size=3)
    third, root = (1 - np.cos(turn)) / 3, np.sin(turn) / np.sqrt(3)
    # Rotation of colour space about (1, 1, 1).
    matrix = np.full((3, 3), third) + np.eye(3) * np.cos(turn)
    matrix += root * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    grey = np.full((3, 3), 1 / 3)
    matrix = (saturation * np.eye(3) + (1 - saturation) * grey) @ matrix
    out = rgb @ matrix.T.astype(np.float32)
    return ((out - 127.5) * contrast + 127.5) * light
