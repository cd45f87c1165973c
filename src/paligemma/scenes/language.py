"""Words for objects: articles, plurals, descriptions and positions."""

from collections.abc import Sequence

from paligemma.scenes.scene import SceneObject
from paligemma.scenes.thing_names import PAIRS, UNCOUNTED

_AS_THEY_ARE = (*PAIRS, *UNCOUNTED)
_PLURALS = {
    "cross": "crosses",
    "butterfly": "butterflies",
    "cherry": "cherries",
    "deer": "deer",
    "dice": "dice",
    "knife": "knives",
    "leaf": "leaves",
    "mouse": "mice",
    "strawberry": "strawberries",
    "trophy": "trophies",
    "battery": "batteries",
    "wolf": "wolves",
}
_ENDS_IN_ES = ("s", "x", "ch", "sh", "tomato", "tornado", "volcano")


def plural(label: str) -> str:
    """The plural of a label: "circle" gives "circles", "cross" gives "crosses"."""
    if label in _AS_THEY_ARE:
        return label
    ending = "es" if label.endswith(_ENDS_IN_ES) else "s"
    return _PLURALS.get(label, f"{label}{ending}")


def is_are(phrase: str) -> str:
    """The verb of a phrase: "are" for "scissors", "is" otherwise."""
    return "are" if phrase in PAIRS else "is"


def with_article(phrase: str) -> str:
    """The phrase with "a" or "an" before it; "scissors" and "popcorn" stand alone."""
    if phrase in _AS_THEY_ARE:
        return phrase
    has_vowel = phrase[:1] in "aeiou" and not phrase.startswith("uni")
    return f"{'an' if has_vowel else 'a'} {phrase}"


def describe(item: SceneObject) -> str:
    """An object in a caption: "a red circle", "a green digit 7", "a blue sign saying STOP"."""
    noun = with_article(colored(item))
    if item.label == "digit":
        return f"{noun} {item.text}"
    return f"{noun} saying {item.text}" if item.label == "sign" else noun


def colored(item: SceneObject) -> str:
    """Colour and label; the label alone of a thing, which has no one colour."""
    return f"{item.color} {item.label}".strip()


def join_list(parts: Sequence[str]) -> str:
    """Join as in a sentence: "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def phrase_matches(phrase: str, item: SceneObject) -> bool:
    """Whether "circle" or "red circle" names this object."""
    return phrase in (item.label, colored(item))


def raster_order(objects: Sequence[SceneObject]) -> list[int]:
    """Indices from top to bottom by upper edge, then from left to right."""
    return sorted(range(len(objects)), key=lambda k: objects[k].box_yxyx[:2])


def position_of(item: SceneObject) -> tuple[str, float]:
    """Find the ninth of the picture that holds the centre of an object's box.

    Returns:
        One of "top left", "top", "top right", "left", "center", "right", "bottom left", "bottom"
        and "bottom right"; and the distance of the centre from the nearest border between thirds,
        as a share of the picture's side.
    """
    y0, x0, y1, x1 = item.box_yxyx
    centre_y, centre_x = (y0 + y1) / 2, (x0 + x1) / 2
    margin = min(abs(c - third) for c in (centre_y, centre_x) for third in (1 / 3, 2 / 3))
    row = ("top", "", "bottom")[min(2, int(centre_y * 3))]
    column = ("left", "", "right")[min(2, int(centre_x * 3))]
    return " ".join(part for part in (row, column) if part) or "center", margin
