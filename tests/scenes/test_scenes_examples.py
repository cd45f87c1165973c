"""Prompts and answers: recomputed here from the masks and facts of the scene, by other means."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from paligemma.errors import DataError
from paligemma.scenes import (
    COLORS,
    DEFAULT_WEIGHTS,
    KINDS,
    LABELS,
    Scene,
    SceneExample,
    SceneOptions,
    draw_scene,
    plural,
    sample_example,
    scene_examples,
)

NUM_SEEDS = 200
Pairs = list[tuple[Scene, SceneExample]]

SINGULAR = {
    "circles": "circle",
    "squares": "square",
    "triangles": "triangle",
    "stars": "star",
    "crosses": "cross",
    "hearts": "heart",
    "digits": "digit",
    "signs": "sign",
}


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    found: Pairs = []
    for seed in range(NUM_SEEDS):
        scene = draw_scene(seed, SceneOptions(split="heldout"))
        rng = np.random.default_rng(seed)
        for _ in range(3):
            found += [(scene, example) for example in scene_examples(scene, rng)]
    return found


def of_kind(pairs: Pairs, kind: str) -> Pairs:
    chosen = [(scene, example) for scene, example in pairs if example.kind == kind]
    assert len(chosen) >= 100
    return chosen


def named(scene: Scene, phrase: str) -> list[int]:
    """Objects that "circle", "red circle" mean, by word, without the room's own matching."""
    words = phrase.split()
    color, label = (words[0], words[1]) if len(words) == 2 else (None, words[0])
    return [k for k, o in enumerate(scene.objects) if o.label == label and color in (None, o.color)]


def the(scene: Scene, phrase: str) -> int:
    found = named(scene, phrase)
    assert len(found) == 1, f"{phrase!r} is ambiguous or absent"
    return found[0]


def extent(scene: Scene, index: int) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(scene.object_map == index + 1)
    return rows.min(), columns.min(), rows.max() + 1, columns.max() + 1


def centre(scene: Scene, index: int) -> tuple[float, float]:
    y0, x0, y1, x1 = extent(scene, index)
    return (y0 + y1) / 2, (x0 + x1) / 2


def in_raster_order(scene: Scene, indices: list[int]) -> list[int]:
    return sorted(indices, key=lambda k: extent(scene, k)[:2])


def question(example: SceneExample) -> str:
    assert example.task == "answer"
    assert example.prefix.startswith("answer en ")
    return example.prefix.removeprefix("answer en ")


def match(pattern: str, text: str) -> tuple[str, ...]:
    found = re.fullmatch(pattern, text)
    assert found, text
    return found.groups()


def test_captions_list_all_objects_from_top_to_bottom(pairs):
    for scene, example in of_kind(pairs, "caption"):
        assert example.prefix == "caption en"
        parts = re.split(r", | and ", example.suffix)
        order = in_raster_order(scene, list(range(len(scene.objects))))
        assert len(parts) == len(order)
        for part, k in zip(parts, order, strict=True):
            item = scene.objects[k]
            assert part.split()[:3] == [
                "an" if item.color == "orange" else "a",
                item.color,
                item.label,
            ]
            tail = {"digit": [item.text], "sign": ["saying", item.text]}.get(item.label, [])
            assert part.split()[3:] == tail


def test_ocr_reads_signs_and_digits_from_top_to_bottom(pairs):
    for scene, example in of_kind(pairs, "ocr"):
        order = in_raster_order(scene, list(range(len(scene.objects))))
        texts = [
            scene.objects[k].text for k in order if scene.objects[k].label in ("digit", "sign")
        ]
        assert example.prefix == "ocr"
        assert example.suffix.split() == texts
        assert texts


def test_color_answers_are_true_and_the_object_is_unique(pairs):
    for scene, example in of_kind(pairs, "color"):
        (label,) = match(r"what color is the (\w+)\?", question(example))
        assert example.suffix == scene.objects[the(scene, label)].color


def test_count_answers_are_true(pairs):
    answers = Counter()
    for scene, example in of_kind(pairs, "count"):
        (things,) = match(r"how many (\w+) are there\?", question(example))
        count = len(scene.objects) if things == "objects" else len(named(scene, SINGULAR[things]))
        assert example.suffix == str(count)
        answers[count] += 1
    assert {0, 1, 2, 3} <= set(answers)


def test_presence_answers_are_true_and_balanced(pairs):
    answers = Counter()
    for scene, example in of_kind(pairs, "presence"):
        (phrase,) = match(r"is there an? (.+)\?", question(example))
        assert example.suffix == ("yes" if named(scene, phrase) else "no")
        answers[example.suffix] += 1
    assert 0.43 <= answers["yes"] / answers.total() <= 0.57


def test_half_of_the_absent_colored_things_are_near_misses(pairs):
    near = []
    for scene, example in of_kind(pairs, "presence"):
        (phrase,) = match(r"is there an? (.+)\?", question(example))
        if example.suffix == "no" and " " in phrase:
            color, label = phrase.split()
            near.append(any(o.color == color or o.label == label for o in scene.objects))
    assert sum(near) / len(near) >= 0.5


def test_positions_are_the_thirds_of_the_centre_with_a_margin(pairs):
    seen = set()
    for scene, example in of_kind(pairs, "position"):
        (phrase,) = match(r"where is the (.+)\?", question(example))
        height, width = scene.object_map.shape
        y, x = centre(scene, the(scene, phrase))
        row = "top" if y < height / 3 else "bottom" if y > 2 * height / 3 else ""
        column = "left" if x < width / 3 else "right" if x > 2 * width / 3 else ""
        assert example.suffix == (f"{row} {column}".strip() or "center")
        borders = [abs(y / height - b / 3) for b in (1, 2)] + [
            abs(x / width - b / 3) for b in (1, 2)
        ]
        assert min(borders) >= 0.03 - 1e-9
        seen.add(example.suffix)
    assert len(seen) == 9


def test_reading_answers_are_true_and_have_one_answer(pairs):
    for scene, example in of_kind(pairs, "reading"):
        asked = question(example)
        if asked == "what digit is it?":
            index = the(scene, "digit")
            assert not any(o.label == "sign" and len(o.text) == 1 for o in scene.objects)
        elif "say" in asked:
            index = the(scene, match(r"what does the (.*sign) say\?", asked)[0])
        else:
            index = the(scene, match(r"what is the (\w+ digit)\?", asked)[0])
        assert example.suffix == scene.objects[index].text != ""


def test_comparisons_are_true_and_never_near_ties(pairs):
    answers, relations = Counter(), Counter()
    for scene, example in of_kind(pairs, "comparison"):
        asked = question(example)
        if asked.startswith("are there more"):
            first, second = match(r"are there more (\w+) than (\w+)\?", asked)
            counts = [len(named(scene, SINGULAR[things])) for things in (first, second)]
            assert counts[0] != counts[1]
            assert min(counts) > 0
            truth, relation = counts[0] > counts[1], "more"
        else:
            first, relation, second = match(
                r"is the (.+?) (left of|right of|above|below|bigger than|smaller than) the (.+)\?",
                asked,
            )
            a, b = the(scene, first), the(scene, second)
            assert a != b
            truth = _compare(scene, a, b, relation)
        assert example.suffix == ("yes" if truth else "no")
        answers[example.suffix] += 1
        relations[relation] += 1
    assert 0.4 <= answers["yes"] / answers.total() <= 0.6
    assert len(relations) == 7


def _compare(scene: Scene, a: int, b: int, relation: str) -> bool:
    if "than" in relation:
        areas = []
        for k in (a, b):
            y0, x0, y1, x1 = extent(scene, k)
            areas.append((y1 - y0) * (x1 - x0))
        assert max(areas) / min(areas) >= 1.25 - 1e-9
        return areas[0] > areas[1] if relation == "bigger than" else areas[0] < areas[1]
    axis = 1 if relation in ("left of", "right of") else 0
    first, second = centre(scene, a)[axis], centre(scene, b)[axis]
    assert abs(first - second) >= 8 - 1e-9
    return first < second if relation in ("left of", "above") else first > second


def test_a_question_has_the_given_answer_and_no_other_object_gives_it(pairs):
    for scene, example in of_kind(pairs, "question"):
        answer = example.prefix.removeprefix("question en ")
        if (found := re.fullmatch(r"what color is the (\w+)\?", example.suffix)) is not None:
            assert scene.objects[the(scene, found[1])].color == answer
            assert sum(o.color == answer for o in scene.objects) == 1
        elif (found := re.fullmatch(r"where is the (.+)\?", example.suffix)) is not None:
            the(scene, found[1])
            assert answer in {"center", "top", "bottom", "left", "right"} or " " in answer
        else:
            assert sum(o.text == answer for o in scene.objects) == 1


def test_detect_targets_are_all_and_only_the_asked_objects(pairs):
    num_empty, num_phrases = 0, Counter()
    for scene, example in of_kind(pairs, "detect"):
        phrases = example.prefix.removeprefix("detect ").split(" ; ")
        assert len(set(phrases)) == len(phrases)
        expected = {k: phrase for phrase in phrases for k in named(scene, phrase)}
        # No object answers to two phrases.
        assert sum(len(named(scene, phrase)) for phrase in phrases) == len(expected)
        assert list(example.objects) == in_raster_order(scene, list(expected))
        assert list(example.labels) == [expected[k] for k in example.objects]
        assert example.suffix is None
        num_empty += not expected
        num_phrases[len(phrases)] += 1
    assert num_empty > 0
    # One to four phrases, or every label of the picture with one or two that it does not show.
    assert {1, 2, 3, 4, 5, 6} <= set(num_phrases) <= set(range(1, 9))


def test_segment_targets_are_all_objects_of_one_phrase(pairs):
    for scene, example in of_kind(pairs, "segment"):
        phrase = example.prefix.removeprefix("segment ")
        assert list(example.objects) == in_raster_order(scene, named(scene, phrase))
        assert set(example.labels) == {phrase}
        assert len(example.labels) == len(example.objects) >= 1
        assert example.suffix is None


def test_region_captions_describe_the_object_in_the_box(pairs):
    for scene, example in of_kind(pairs, "caption_region"):
        assert example.prefix == "caption "
        (index,) = [k for k, o in enumerate(scene.objects) if o.box_yxyx == example.prefix_box]
        item = scene.objects[index]
        assert f"{item.color} {item.label}" in example.suffix
        assert example.suffix.endswith(item.text)


def test_a_scene_gives_each_kind_at_most_once_and_in_order():
    for seed in range(40):
        kinds = [e.kind for e in scene_examples(draw_scene(seed), np.random.default_rng(seed))]
        assert kinds == [kind for kind in KINDS if kind in kinds]
        assert {"caption", "count", "presence", "detect", "segment", "caption_region"} <= set(kinds)


def test_one_scene_and_one_generator_state_give_the_same_examples():
    scene = draw_scene(9)
    first, second = (scene_examples(scene, np.random.default_rng(2)) for _ in range(2))
    assert first == second
    draws = [sample_example(scene, np.random.default_rng(3)) for _ in range(2)]
    assert draws[0] == draws[1]


def test_sampling_follows_the_weights():
    scenes = [draw_scene(seed, SceneOptions(size_px=112)) for seed in range(60)]
    rng = np.random.default_rng(0)
    kinds = Counter(
        sample_example(scene, rng, {"detect": 3.0, "caption": 1.0}).kind
        for scene in scenes
        for _ in range(20)
    )
    assert set(kinds) == {"detect", "caption"}
    assert kinds["detect"] / kinds.total() == pytest.approx(0.75, abs=0.05)


def test_sampling_by_default_reaches_every_kind():
    rng = np.random.default_rng(0)
    scenes = [draw_scene(seed) for seed in range(40)]
    kinds = {sample_example(scene, rng).kind for scene in scenes for _ in range(40)}
    # Earlier releases had no neighbours, and draw the same prompts still.
    assert kinds == {kind for kind, weight in DEFAULT_WEIGHTS.items() if weight}
    assert set(KINDS) == set(DEFAULT_WEIGHTS) == kinds | {"neighbour"}


def scene_without_writing() -> Scene:
    drawn = (draw_scene(seed) for seed in range(100))
    return next(s for s in drawn if not any(o.text for o in s.objects))


def test_a_picture_without_writing_is_seldom_asked_to_be_read():
    scene, rng = scene_without_writing(), np.random.default_rng(0)
    drawn = [sample_example(scene, rng, {"ocr": 1.0, "caption": 1e-9}) for _ in range(400)]
    empty = [e for e in drawn if e.kind == "ocr"]
    assert all(e.suffix == "" for e in empty)
    assert 0.04 <= len(empty) / len(drawn) <= 0.17
    assert "ocr" not in [e.kind for e in scene_examples(scene, rng)]


def test_where_no_weighted_kind_applies_a_caption_is_given():
    example = sample_example(scene_without_writing(), np.random.default_rng(0), {"reading": 1.0})
    assert example.kind == "caption"


@pytest.mark.parametrize("weights", [{}, {"detect": 0.0}, {"detect": -1.0}, {"sing": 1.0}])
def test_weights_without_meaning_are_refused(weights):
    with pytest.raises(DataError, match="weights must map kinds"):
        sample_example(draw_scene(0), np.random.default_rng(0), weights)


def test_plurals_are_those_of_the_questions():
    assert {plural(label): label for label in LABELS} == SINGULAR


def test_colors_and_labels_are_single_lower_case_words():
    # Phrases are split at spaces and at " ; ": a label of two words would break both.
    assert all(re.fullmatch(r"[a-z]+", word) for word in (*COLORS, *LABELS))
