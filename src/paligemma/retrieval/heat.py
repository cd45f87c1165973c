"""Where on a page each word of a query is found: similarities of patches, and pictures of them.

Axes: N query tokens, W words, H and V rows and columns of the page's patches, D width of a vector.
Source: ColPali (arXiv 2407.01449), section 5 and figure 3, there by token; here by word.
"""

from __future__ import annotations

import base64
import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from paligemma.errors import ConfigError

if TYPE_CHECKING:
    from paligemma.retrieval.vectors import Vectors

# Scripts that are written without spaces: each of their pieces is a word of its own.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
# Cool to hot: transparent, then Okabe and Ito's yellow, orange and vermillion.
_RAMP = np.array(
    [
        [0.00, 240, 228, 66, 0.00],
        [0.35, 240, 228, 66, 0.30],
        [0.70, 230, 159, 0, 0.55],
        [1.00, 213, 94, 0, 0.70],
    ]
)


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word of a query.

    Attributes:
        text: as it was written, without the spaces around it.
        tokens: numbers of its tokens among the query's vectors.
    """

    text: str
    tokens: tuple[int, ...]


def words_of(query: Vectors) -> tuple[Word, ...]:
    """The words of a query in order; tokens that the model added belong to none."""
    found: list[tuple[str, list[int]]] = []
    begins = True
    for number, raw in enumerate(query.pieces):
        piece = raw.replace("\u2581", " ")
        text = piece.strip()
        if not text:
            begins = begins or bool(piece)
            continue
        is_own = begins or piece[0].isspace() or _is_unspaced(text[0])
        if is_own or not found:
            found.append((text, [number]))
        else:
            found[-1] = found[-1][0] + text, [*found[-1][1], number]
        begins = piece[-1].isspace() or _is_unspaced(text[-1])
    return tuple(Word(text=text, tokens=tuple(tokens)) for text, tokens in found)


def similarity_maps(query: Vectors, page: Vectors) -> Tensor:
    """How similar each patch of a page is to each word: the mean over the word's tokens.

    Returns:
        float32[W, H, V], cosines in [-1, 1]; W as of `words_of`.

    Raises:
        ConfigError: the page is a query, or is of another width.
    """
    rows, columns = _grid(query, page)
    patches = page.values[: rows * columns].float()
    words = words_of(query)
    if not words:
        return torch.zeros(0, rows, columns)
    similar = query.values.float() @ patches.T  # [N, H V]
    maps = [similar[list(word.tokens)].mean(0) for word in words]
    return torch.stack(maps).view(len(words), rows, columns)


def word_scores(query: Vectors, page: Vectors) -> list[float]:
    """What each word adds to the score of a page: its tokens' largest similarities, summed.

    Together with those of added tokens they are the late-interaction score.

    Raises:
        ConfigError: see `similarity_maps`.
    """
    _grid(query, page)
    best = (query.values.float() @ page.values.float().T).amax(1)
    return [float(best[list(word.tokens)].sum()) for word in words_of(query)]


def contrasts(maps: Sequence[Tensor]) -> list[Tensor]:
    """How far each patch lies above the middle of all patches of these pages, word by word.

    Some words are a little like everything; that much tells nothing of where they are found.

    Args:
        maps: float32[W, H, V] of each page, for the same query.
    """
    if not maps:
        return []
    middle = torch.cat([one.flatten(1) for one in maps], 1).median(1).values
    return [one - middle[:, None, None] for one in maps]


def heat_range(maps: Sequence[Tensor]) -> tuple[float, float]:
    """One scale for the maps of several pages: nine patches in ten stay clear, and the hottest one
    is the end.

    A scale for all shows which words and pages matter; with one for each map, words that are found
    nowhere would look as hot as the others.
    """
    values = torch.cat([one.flatten() for one in maps]) if maps else torch.zeros(0)
    if not values.numel():
        return 0.0, 1.0
    # torch.quantile takes 16 M values at most, which many pages have.
    low, high = float(np.quantile(values.numpy(), 0.9)), float(values.max())
    return low, max(high, low + 1e-6)


def heat_rgba(heat: Tensor, scale: tuple[float, float]) -> NDArray[np.uint8]:
    """A map in colours, to be laid over its page.

    Args:
        heat: float[H, V].
        scale: value that stays clear, and the hottest; see `heat_range`.

    Returns:
        uint8[H, V, 4], RGB and opacity.
    """
    low, high = scale
    share = ((heat.float().numpy() - low) / (high - low)).clip(0.0, 1.0)
    stops = _RAMP[:, 0]
    colours = [np.interp(share, stops, _RAMP[:, 1 + k]) for k in range(3)]
    opacity = 255.0 * np.interp(share, stops, _RAMP[:, 4])
    return np.stack([*colours, opacity], -1).round().astype(np.uint8)


def draw_heat(
    picture: Image.Image, heat: Tensor, *, scale: tuple[float, float] | None = None
) -> Image.Image:
    """The page with a map over it, of the page's size.

    Args:
        picture: the page; the model saw all of it, whatever its shape, as a square.
        heat: float[H, V] of one word, or of a mean of words.
        scale: see `heat_range`; None is that of this map alone.

    Raises:
        ConfigError: the map is no table of numbers.
    """
    if heat.ndim != 2 or not heat.numel() or not bool(torch.isfinite(heat).all()):
        raise ConfigError(
            f"heat is one map, float[rows, columns] of finite values, got {list(heat.shape)}; "
            "choose a word's"
        )
    shown = heat_rgba(heat, scale or heat_range([heat]))
    over = Image.fromarray(shown).resize(picture.size, Image.Resampling.BICUBIC)
    return Image.alpha_composite(picture.convert("RGBA"), over).convert("RGB")


def heat_url(heat: Tensor, scale: tuple[float, float]) -> str:
    """A map as a small picture with transparency, a pixel a patch, to be stretched over its page.

    Args:
        heat: float[H, V].
        scale: see `heat_range`.
    """
    memory = io.BytesIO()
    Image.fromarray(heat_rgba(heat, scale)).save(memory, "PNG", optimize=True)
    return data_url(memory.getvalue())


def data_url(picture: bytes) -> str:
    """The address that holds a PNG, JPEG or WebP itself."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    kind = "webp" if picture[8:12] == b"WEBP" else kind
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _grid(query: Vectors, page: Vectors) -> tuple[int, int]:
    if page.grid is None:
        raise ConfigError("heat lies on a page, got a query in its place; pass the page's vectors")
    if query.values.shape[-1] != page.values.shape[-1]:
        raise ConfigError(
            f"query and page must come from one model, got vectors of {query.values.shape[-1]} "
            f"and {page.values.shape[-1]} numbers; encode both with the same"
        )
    return page.grid


def _is_unspaced(character: str) -> bool:
    return unicodedata.name(character, "").startswith(_UNSPACED)
