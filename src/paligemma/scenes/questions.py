"""Questions about a picture, each with one true short answer."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from paligemma.scenes.language import (
    colored,
    is_are,
    phrase_matches,
    plural,
    position_of,
    with_article,
)
from paligemma.scenes.scene import COLORS, LABELS, Scene
from paligemma.scenes.thing_names import PAIRS, THINGS, UNCOUNTED

# Questions about near-ties are left out.
MIN_OFFSET_PX = 8.0
MIN_AREA_RATIO = 1.25
MIN_POSITION_MARGIN = 0.03
# "How many scissors" has no one answer.
NEVER_COUNTED = (*PAIRS, *UNCOUNTED)

T = TypeVar("T")
QuestionAnswer = tuple[str, str]


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """Draw one of the items uniformly."""
    return items[int(rng.integers(len(items)))]


def labels_asked(scene: Scene) -> tuple[str, ...]:
    """Labels that prompts about a picture may name: things only where it shows things."""
    has_things = any(item.style for item in scene.objects)
    return (*LABELS, *THINGS) if has_things else LABELS


def references(scene: Scene, index: int) -> list[str]:
    """List the phrases that name objects[index] alone: its label, or its colour and label."""
    item = scene.objects[index]
    phrases = dict.fromkeys((item.label, colored(item)))
    return [p for p in phrases if sum(phrase_matches(p, o) for o in scene.objects) == 1]


def _named(scene: Scene, rng: np.random.Generator) -> list[tuple[int, str]]:
    """Every object that a phrase can name, with one such phrase, mostly the shortest."""
    named = []
    for index in range(len(scene.objects)):
        phrases = references(scene, index)
        if phrases:
            named.append((index, phrases[0] if rng.random() < 0.7 else phrases[-1]))
    return named


def ask_color(scene: Scene, rng: np.random.Generator) -> QuestionAnswer | None:
    """Ask for a colour: "what color is the circle?"."""
    unique = [o for k, o in enumerate(scene.objects) if o.color and o.label in references(scene, k)]
    if not unique:
        return None
    item = pick(rng, unique)
    return f"what color is the {item.label}?", item.color


def ask_count(scene: Scene, rng: np.random.Generator) -> QuestionAnswer | None:
    """Ask for a number: "how many circles are there?", and sometimes of all objects."""
    if rng.random() < 0.2:
        return "how many objects are there?", str(len(scene.objects))
    present = sorted({o.label for o in scene.objects} - set(NEVER_COUNTED))
    is_present = bool(present) and rng.random() < 0.8
    absent = [name for name in labels_asked(scene) if name not in NEVER_COUNTED]
    label = pick(rng, present if is_present else absent)
    count = sum(o.label == label for o in scene.objects)
    return f"how many {plural(label)} are there?", str(count)


def _present_phrase(scene: Scene, rng: np.random.Generator) -> str:
    item = pick(rng, scene.objects)
    return item.label if rng.random() < 0.5 else colored(item)


def absent_phrase(scene: Scene, rng: np.random.Generator) -> str:
    """Draw a label, or colour and label, that names no object; half of them are near-misses."""
    # A picture has at most 12 objects but there are 64 colour and label pairs: this ends.
    labels = labels_asked(scene)
    while True:
        item = pick(rng, scene.objects)
        if item.style:
            phrase = pick(rng, THINGS)
        elif rng.random() < 0.5:
            swap_color = rng.random() < 0.5
            color = pick(rng, tuple(COLORS)) if swap_color else item.color
            phrase = f"{color} {item.label if swap_color else pick(rng, LABELS)}"
        else:
            label = pick(rng, labels)
            has_color = label in LABELS and rng.random() >= 0.6
            phrase = f"{pick(rng, tuple(COLORS))} {label}" if has_color else label
        if not any(phrase_matches(phrase, o) for o in scene.objects):
            return phrase


def ask_presence(scene: Scene, rng: np.random.Generator) -> QuestionAnswer | None:
    """Ask for presence: "is there a red star?"; yes and no are equally frequent."""
    is_present = rng.random() < 0.5
    phrase = (_present_phrase if is_present else absent_phrase)(scene, rng)
    return f"{is_are(phrase)} there {with_article(phrase)}?", _yes_no(is_present)


def ask_position(scene: Scene, rng: np.random.Generator) -> QuestionAnswer | None:
    """Ask for one of nine places: "where is the heart?"."""
    choices = [
        (phrase, position_of(scene.objects[k])[0])
        for k, phrase in _named(scene, rng)
        if position_of(scene.objects[k])[1] >= MIN_POSITION_MARGIN
    ]
    if not choices:
        return None
    phrase, answer = pick(rng, choices)
    return f"where {is_are(phrase)} the {phrase}?", answer


def reading_question(scene: Scene, index: int, rng: np.random.Generator) -> str | None:
    """Return the question whose answer is the writing of objects[index]; None if ambiguous."""
    item = scene.objects[index]
    phrases = references(scene, index)
    if not item.text or not phrases:
        return None
    phrase = phrases[0] if rng.random() < 0.7 else phrases[-1]
    if item.label == "sign":
        return f"what does the {phrase} say?"
    if phrase != "digit":
        return f"what is the {phrase}?"
    # A sign that shows a single figure would be a second answer to "what digit is it?".
    other = any(o.label == "sign" and len(o.text) == 1 for o in scene.objects)
    return None if other else "what digit is it?"


def ask_reading(scene: Scene, rng: np.random.Generator) -> QuestionAnswer | None:
    """Ask for writing: "what does the sign say?", "what is the blue digit?"."""
    choices = [
        (question, scene.objects[k].text)
        for k in range(len(scene.objects))
        if (question := reading_question(scene, k, rng))
    ]
    return pick(rng, choices) if choices else None


def _two_named(
    scene: Scene, rng: np.random.Generator
) -> tuple[tuple[int, str], tuple[int, str]] | None:
    """Two different objects with a phrase for each; None where there are none."""
    named = _named(scene, rng)
    if len(named) < 2:
        return None
    first, second = rng.permutation(len(named))[:2]
    return named[first], named[second]


def _compare_places(scene: Scene, rng: np.random.Generator) -> QuestionAnswer | None:
    pair = _two_named(scene, rng)
    if pair is None:
        return None
    (a, phrase_a), (b, phrase_b) = pair
    axis = int(rng.integers(2))
    offset_px = _centre_px(scene, b, axis) - _centre_px(scene, a, axis)
    if abs(offset_px) < MIN_OFFSET_PX:
        return None
    before, after = (("above", "below"), ("left of", "right of"))[axis]
    asks_before = rng.random() < 0.5
    relation = before if asks_before else after
    question = f"{is_are(phrase_a)} the {phrase_a} {relation} the {phrase_b}?"
    return question, _yes_no(asks_before == (offset_px > 0))


def _compare_sizes(scene: Scene, rng: np.random.Generator) -> QuestionAnswer | None:
    pair = _two_named(scene, rng)
    if pair is None:
        return None
    (a, phrase_a), (b, phrase_b) = pair

    def area(index: int) -> float:
        y0, x0, y1, x1 = scene.objects[index].box_yxyx
        return (y1 - y0) * (x1 - x0)

    ratio = area(a) / area(b)
    if max(ratio, 1 / ratio) < MIN_AREA_RATIO:
        return None
    asks_bigger = rng.random() < 0.5
    relation = "bigger" if asks_bigger else "smaller"
    question = f"{is_are(phrase_a)} the {phrase_a} {relation} than the {phrase_b}?"
    return question, _yes_no(asks_bigger == (ratio > 1))


def _compare_counts(scene: Scene, rng: np.random.Generator) -> QuestionAnswer | None:
    labels = [label for label in labels_asked(scene) if label not in NEVER_COUNTED]
    counts = {label: sum(o.label == label for o in scene.objects) for label in labels}
    shown = [label for label in labels if counts[label]]
    if not shown:
        return None
    first = pick(rng, shown)
    others = [label for label in shown if counts[label] != counts[first]]
    if not others:
        return None
    second = pick(rng, others)
    if rng.random() < 0.5:
        first, second = second, first
    question = f"are there more {plural(first)} than {plural(second)}?"
    return question, _yes_no(counts[first] > counts[second])


def find_neighbour(scene: Scene, rng: np.random.Generator) -> tuple[QuestionAnswer, int] | None:
    """Ask what lies beside an object: "what is left of the pizza?", with the index of the answer.

    Exactly one object lies on that side, and no other is nearly on it.
    """
    choices = []
    for index, phrase in _named(scene, rng):
        for axis, (before, after) in enumerate((("above", "below"), ("left of", "right of"))):
            offsets = [
                _centre_px(scene, k, axis) - _centre_px(scene, index, axis)
                for k in range(len(scene.objects))
            ]
            others = [k for k in range(len(offsets)) if k != index]
            if any(abs(offsets[k]) < MIN_OFFSET_PX for k in others):
                continue
            for relation, side in ((before, -1), (after, 1)):
                there = [k for k in others if offsets[k] * side > 0]
                if len(there) == 1:
                    choices.append((f"{relation} the {phrase}", there[0]))
    if not choices:
        return None
    place, answer = pick(rng, choices)
    return (f"what is {place}?", scene.objects[answer].label), answer


def _centre_px(scene: Scene, index: int, axis: int) -> float:
    """Centre of a box along an axis, 0 down and 1 across, in pixels."""
    box = scene.objects[index].box_yxyx
    return (box[axis] + box[axis + 2]) / 2 * scene.object_map.shape[axis]


def _yes_no(truth: bool) -> str:
    return "yes" if truth else "no"


def ask_comparison(scene: Scene, rng: np.random.Generator) -> QuestionAnswer | None:
    """Compare places, sizes or counts: "is the circle left of the star?"."""
    draw = rng.random()
    if draw < 0.6:
        order = (_compare_places, _compare_sizes, _compare_counts)
    elif draw < 0.8:
        order = (_compare_sizes, _compare_places, _compare_counts)
    else:
        order = (_compare_counts, _compare_places, _compare_sizes)
    for ask in order:
        found = ask(scene, rng)
        if found:
            return found
    return None
