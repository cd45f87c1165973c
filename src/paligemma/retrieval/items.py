"""A page on its way into an index, and on its way out as a hit."""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from paligemma.errors import ConfigError, DataError, ImageError
from paligemma.processing.image import load_image
from paligemma.retrieval.page_files import Page
from paligemma.retrieval.store import GRID, MAX_VECTORS, THUMBNAIL, Entry, Payload, centres_of
from paligemma.retrieval.vectors import Vectors

if TYPE_CHECKING:
    from PIL import Image

PAGE_ID = re.compile(r"[0-9a-f]{64}:[1-9][0-9]{0,8}")
# Of a payload: the path as a text, and in hexadecimal where no text is that path.
_PATH, _PATH_BYTES = "path", "path_bytes"
_THUMBNAIL_PX = 640  # a page of this size is still readable


@dataclass(frozen=True, kw_only=True, eq=False)
class Item:
    """A page with its vectors, to be kept.

    Attributes:
        id: "sha256:page".
        vectors: of the page.
        payload: what is kept to be shown; JSON.
    """

    id: str
    vectors: Vectors
    payload: Payload = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A page that was found.

    Attributes:
        id: "sha256:page".
        score: MaxSim: of each token of the query the best match, summed.
        path: the file when it was added; "" if unknown.
        page: number in the file, from 1; 0 if unknown.
        size: width and height, in pixels, of the picture that the model read.
        thumbnail: JPEG; empty if none was kept.
        payload: the rest that was kept.
    """

    id: str
    score: float
    path: str
    page: int
    size: tuple[int, int]
    thumbnail: bytes
    payload: Payload


def entry_of(item: Item, dim: int) -> Entry:
    """A page as a store keeps it, checked.

    Args:
        dim: width of the index's vectors.

    Raises:
        ConfigError: an id that is none, vectors that are not of this index, or a payload that no
            store keeps.
    """
    values = item.vectors.values.detach().cpu().float().numpy()
    grid = item.vectors.grid
    if not isinstance(item.id, str) or not PAGE_ID.fullmatch(item.id):
        raise ConfigError(f"the id of a page is sha256:page, got {item.id!r:.200}")
    if values.ndim != 2 or values.shape[1] != dim or not 1 <= len(values) <= MAX_VECTORS:
        raise ConfigError(
            f"a page of this index has 1..{MAX_VECTORS} vectors of width {dim}, {item.id:.100} has "
            f"{list(values.shape)}"
        )
    if not np.isfinite(values).all():
        raise ConfigError(f"vectors are finite, those of {item.id:.100} are not")
    if grid is not None and grid[0] * grid[1] > len(values):
        raise ConfigError(f"{item.id:.100} has fewer vectors than its grid of {grid} has places")
    try:
        json.dumps(dict(item.payload), allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"a payload is JSON, that of {item.id:.100} is not ({str(error)[:200]})"
        ) from error
    return Entry(
        id=item.id,
        values=values.astype(np.float16),
        centres=centres_of(values, grid).astype(np.float16),
        payload={**item.payload, GRID: list(grid) if grid else None},
    )


def payload_of(page: Page) -> dict[str, Any]:
    """What is kept of a page to be shown."""
    return {
        **_path_fields(os.path.abspath(page.path)),
        "page": page.number,
        "num_pages": page.num_pages,
        "size": list(page.size),
        "text": page.text,
        THUMBNAIL: base64.b64encode(_thumbnail(page.picture)).decode(),
    }


def _path_fields(path: str) -> dict[str, str]:
    """A path in a payload; one that is no text in UTF-8 as its bytes too, since stores take texts.

    Bytes are empty where the text is enough.
    """
    data = os.fsencode(path)
    shown = data.decode("utf-8", "backslashreplace")
    return {_PATH: shown, _PATH_BYTES: "" if shown == path else data.hex()}


def with_path(payload: Payload, path: str) -> dict[str, Any]:
    """A payload whose file has moved."""
    return {**payload, **_path_fields(path)}


def path_of(payload: Payload) -> str:
    """The file of a page when it was added; "" if unknown.

    Raises:
        DataError: it is no text.
    """
    path, as_bytes = payload.get(_PATH, ""), payload.get(_PATH_BYTES)
    try:
        found = path if not as_bytes else os.fsdecode(bytes.fromhex(as_bytes))
    except (TypeError, ValueError):
        found = None
    if not isinstance(found, str):
        raise DataError(f"the path of a page is a text, got {path!r:.100} and {as_bytes!r:.100}")
    return found


def _thumbnail(picture: Image.Image) -> bytes:
    small = picture.copy()
    small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    written = io.BytesIO()
    small.save(written, "JPEG", quality=75)
    return written.getvalue()


def hit_of(page_id: str, score: float, payload: Payload) -> Hit:
    """A hit of what is kept, whatever wrote it."""
    rest = dict(payload)
    thumbnail, size = rest.pop(THUMBNAIL, ""), rest.pop("size", None)
    path, page = path_of(rest), rest.pop("page", None)
    number = page_id.rpartition(":")[2]
    if not isinstance(rest.get("text", ""), str):
        del rest["text"]
    rest.pop(_PATH, None)
    rest.pop(_PATH_BYTES, None)
    try:
        small = base64.b64decode(thumbnail) if isinstance(thumbnail, str) else b""
    except (binascii.Error, ValueError):
        small = b""
    if not (isinstance(size, Sequence) and len(size) == 2 and all(type(n) is int for n in size)):
        size = (0, 0)
    return Hit(
        id=page_id,
        score=score,
        path=path,
        page=page if type(page) is int else int(number) if number.isdecimal() else 0,
        size=(int(size[0]), int(size[1])),
        thumbnail=small,
        payload=rest,
    )


def thumbnail_of(hit: Hit) -> Image.Image | None:
    """The small picture of a page, if one was kept that can be read."""
    from PIL import Image

    try:
        return Image.fromarray(load_image(hit.thumbnail)) if hit.thumbnail else None
    except ImageError:
        return None
