"""Colours of labels: always the same for a label, and different ones within a picture.

The colours are those of Okabe and Ito, which colour-blind readers can tell apart, with a lighter
and a darker shade of each. A label's place among them is a hash of its letters, so that it has its
colour in every picture and every run.
"""

from __future__ import annotations

from collections.abc import Iterable

Colour = tuple[int, int, int]

OKABE_ITO: tuple[Colour, ...] = (
    (213, 94, 0),  # vermillion
    (86, 180, 233),  # sky blue
    (240, 228, 66),  # yellow
    (0, 158, 115),  # bluish green
    (204, 121, 167),  # reddish purple
    (0, 114, 178),  # blue
    (230, 159, 0),  # orange
)
# Toward white or black, and by how much.
_SHADES = ((0, 0.0), (255, 0.5), (0, 0.45))
PALETTE: tuple[Colour, ...] = tuple(
    (
        round(r + (toward - r) * share),
        round(g + (toward - g) * share),
        round(b + (toward - b) * share),
    )
    for toward, share in _SHADES
    for r, g, b in OKABE_ITO
)


def label_colours(labels: Iterable[str]) -> dict[str, Colour]:
    """A colour for each label.

    Where the places of two labels collide, which is one pair in 21, the later one in the order of
    code points takes the next free colour.
    """
    taken: dict[int, str] = {}
    found = {}
    for label in sorted(set(labels)):
        place = _hash(label) % len(PALETTE)
        if len(taken) < len(PALETTE):
            while place in taken:
                place = (place + 1) % len(PALETTE)
        taken[place] = label
        found[label] = PALETTE[place]
    return found


def contrasting(colour: Colour) -> Colour:
    """Black or white, whichever stands out from a colour."""
    return (0, 0, 0) if luminance(colour) > 0.2 else (255, 255, 255)


def luminance(colour: Colour) -> float:
    """Relative luminance in [0, 1] (WCAG 2.2)."""
    linear = [((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 255 / 12.92 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _hash(text: str) -> int:
    """FNV-1a in 32 bits over UTF-8, which `serve/page/colours.js` computes too."""
    value = 0x811C9DC5
    for byte in text.encode(errors="surrogatepass"):
        value = (value ^ byte) * 0x01000193 % 2**32
    return value
