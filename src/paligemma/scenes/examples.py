"""Prompts about a picture with their true answers.

The prompts are those of PaliGemma's pre-training mixture (arXiv:2407.07726, section 3.2.5).
"""

from collections.abc import Callable, Mapping

import numpy as np

from paligemma.errors import DataError
from paligemma.scenes import questions
from paligemma.scenes.language import (
    colored,
    describe,
    is_are,
    join_list,
    phrase_matches,
    position_of,
    raster_order,
)
from paligemma.scenes.questions import pick
from paligemma.scenes.scene import Scene, SceneExample

Builder = Callable[[Scene, np.random.Generator], SceneExample | None]


def _caption(scene: Scene, rng: np.random.Generator) -> SceneExample | None:
    parts = [describe(scene.objects[k]) for k in raster_order(scene.objects)]
    return SceneExample(
        task="caption", kind="caption", prefix="caption en", suffix=join_list(parts)
    )


def _ocr(scene: Scene, rng: np.random.Generator) -> SceneExample | None:
    texts = [scene.objects[k].text for k in raster_order(scene.objects)]
    suffix = " ".join(text for text in texts if text)
    if not suffix:
        return None
    return SceneExample(task="ocr", kind="ocr", prefix="ocr", suffix=suffix)


def _answer(
    kind: str, ask: Callable[[Scene, np.random.Generator], questions.QuestionAnswer | None]
) -> Builder:
    def build(scene: Scene, rng: np.random.Generator) -> SceneExample | None:
        found = ask(scene, rng)
        if found is None:
            return None
        question, answer = found
        return SceneExample(task="answer", kind=kind, prefix=f"answer en {question}", suffix=answer)

    return build


def _question(scene: Scene, rng: np.random.Generator) -> SceneExample | None:
    """Ask for the question to an answer that only one object of the picture can have."""
    choices: list[tuple[str, str]] = []
    for index, item in enumerate(scene.objects):
        others = [o for o in scene.objects if o is not item]
        place, margin = position_of(item)
        if item.text and all(item.text != o.text for o in others):
            reading = questions.reading_question(scene, index, rng)
            if reading:
                choices.append((item.text.strip(), reading))
        names = questions.references(scene, index)
        if item.color and item.label in names and all(item.color != o.color for o in others):
            choices.append((item.color, f"what color is the {item.label}?"))
        is_alone = all(place != position_of(o)[0] for o in others)
        if names and is_alone and margin >= questions.MIN_POSITION_MARGIN:
            choices.append((place, f"where {is_are(names[0])} the {names[0]}?"))
    if not choices:
        return None
    answer, question = pick(rng, choices)
    return SceneExample(
        task="question", kind="question", prefix=f"question en {answer}", suffix=question
    )


def _find(task: str, scene: Scene, phrases: list[str]) -> SceneExample:
    """Ask for the objects that the phrases name; the answer holds them from top to bottom."""
    found = [
        (k, phrase)
        for k in raster_order(scene.objects)
        for phrase in phrases
        if phrase_matches(phrase, scene.objects[k])
    ]
    return SceneExample(
        task=task,
        kind=task,
        prefix=f"{task} {' ; '.join(phrases)}",
        suffix=None,
        objects=tuple(k for k, _ in found),
        labels=tuple(phrase for _, phrase in found),
    )


def _present_phrases(scene: Scene, rng: np.random.Generator) -> list[str]:
    """One phrase for each label in the picture, in random order: the label, or with its colour."""
    labels = list(dict.fromkeys(o.label for o in scene.objects))
    phrases = []
    for k in rng.permutation(len(labels)):
        named = [colored(o) for o in scene.objects if o.label == labels[k]]
        with_color = rng.random() < 0.3
        phrases.append(pick(rng, named) if with_color else labels[k])
    return phrases


def detect_all(scene: Scene, rng: np.random.Generator) -> SceneExample:
    """Ask for every label of the picture and one or two absent labels, in random order."""
    present = sorted({one.label for one in scene.objects})
    absent = [label for label in questions.labels_asked(scene) if label not in present]
    distractors = rng.permutation(absent)[: int(rng.integers(1, 3))].tolist()
    asked = rng.permutation([*present, *distractors]).tolist()
    return _find("detect", scene, asked)


def _detect(scene: Scene, rng: np.random.Generator) -> SceneExample | None:
    if rng.random() < _SHARE_DETECT_ALL:
        return detect_all(scene, rng)
    num_phrases = int(rng.integers(1, 5))
    present = _present_phrases(scene, rng)
    asked: list[str] = []
    for _ in range(num_phrases):
        phrase = (
            present.pop() if present and rng.random() < 0.8 else questions.absent_phrase(scene, rng)
        )
        # No two phrases may name one object; a near-miss of another phrase is allowed.
        if phrase not in asked:
            asked.append(phrase)
    order = rng.permutation(len(asked))
    return _find("detect", scene, [asked[k] for k in order])


def _segment(scene: Scene, rng: np.random.Generator) -> SceneExample | None:
    phrases = _present_phrases(scene, rng)
    few = [p for p in phrases if sum(phrase_matches(p, o) for o in scene.objects) <= 2]
    return _find("segment", scene, (few or phrases)[:1])


def _caption_region(scene: Scene, rng: np.random.Generator) -> SceneExample | None:
    item = pick(rng, scene.objects)
    return SceneExample(
        task="caption_region",
        kind="caption_region",
        prefix="caption ",
        suffix=describe(item),
        prefix_box=item.box_yxyx,
    )


def _neighbour(scene: Scene, rng: np.random.Generator) -> SceneExample | None:
    found = questions.find_neighbour(scene, rng)
    if found is None:
        return None
    (question, answer), index = found
    return SceneExample(
        task="answer",
        kind="neighbour",
        prefix=f"answer en {question}",
        suffix=answer,
        objects=(index,),
    )


_BUILDERS: dict[str, Builder] = {
    "caption": _caption,
    "ocr": _ocr,
    "color": _answer("color", questions.ask_color),
    "count": _answer("count", questions.ask_count),
    "presence": _answer("presence", questions.ask_presence),
    "position": _answer("position", questions.ask_position),
    "reading": _answer("reading", questions.ask_reading),
    "comparison": _answer("comparison", questions.ask_comparison),
    "question": _question,
    "detect": _detect,
    "segment": _segment,
    "caption_region": _caption_region,
    "neighbour": _neighbour,
}
KINDS: tuple[str, ...] = tuple(_BUILDERS)
DEFAULT_WEIGHTS: Mapping[str, float] = {
    "caption": 2.0,
    "ocr": 2.0,
    "color": 0.7,
    "count": 0.7,
    "presence": 0.7,
    "position": 0.7,
    "reading": 1.0,
    "comparison": 0.9,
    "question": 0.4,
    "detect": 4.0,
    "segment": 3.0,
    "caption_region": 0.8,
    "neighbour": 0.0,
}
# Share of the detect prompts that ask for every label.
_SHARE_DETECT_ALL = 0.5
# Share of the pictures without writing that are asked for it all the same.
_SHARE_EMPTY_OCR = 0.1


def _draw_kind(weights: Mapping[str, float], mark: float) -> str:
    """Find the kind whose share of the cumulated weights holds the mark."""
    for kind, weight in weights.items():
        mark -= weight
        if mark < 0:
            return kind
    return max(weights, key=lambda kind: weights[kind])


def scene_examples(scene: Scene, rng: np.random.Generator) -> list[SceneExample]:
    """Build one example of every kind that applies to the picture, in the order of KINDS."""
    built = (build(scene, rng) for build in _BUILDERS.values())
    return [example for example in built if example is not None]


def sample_example(
    scene: Scene, rng: np.random.Generator, weights: Mapping[str, float] | None = None
) -> SceneExample:
    """Build one example of a random kind.

    Args:
        weights: kind -> relative frequency; kinds that are absent are never drawn. None means
            DEFAULT_WEIGHTS.

    Returns:
        An example of a kind with a positive weight, or a caption where no such kind applies to
        the picture.

    Raises:
        DataError: a kind is unknown, a weight is negative, or all weights are zero.
    """
    left = dict(DEFAULT_WEIGHTS if weights is None else weights)
    if set(left) - set(KINDS) or any(w < 0 for w in left.values()) or not sum(left.values()) > 0:
        raise DataError(
            f"weights must map kinds of {KINDS} to shares >= 0, some of them positive, got {left}; "
            "change them"
        )
    while left and (total := sum(left.values())) > 0:
        kind = _draw_kind(left, float(rng.random()) * total)
        example = _BUILDERS[kind](scene, rng)
        if example is not None:
            return example
        if kind == "ocr" and rng.random() < _SHARE_EMPTY_OCR:
            return SceneExample(task="ocr", kind="ocr", prefix="ocr", suffix="")
        del left[kind]
    caption = _caption(scene, rng)
    assert caption is not None
    return caption
