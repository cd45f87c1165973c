"""A run with its figures: what is amiss with the answers is said beside them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paligemma.errors import ConfigError, DataError
from paligemma.eval.options import chosen_rules
from paligemma.eval.scored import only, score_matched
from paligemma.example import ALL_CLASSES, Example, FoundObject, Prediction
from paligemma.jobs.run_folder import RunConfig
from paligemma.tasks.catalog import find_task

TASK = find_task("coco-detection")
EXAMPLE = Example(
    id="7",
    prefix="detect cat",
    pictures=(),
    references={
        "size_hw": [40, 60],
        "classes": ["cat"],
        "objects": [{"label": "cat", "bbox": [0, 0, 30, 20], "area": 600, "iscrowd": 0}],
    },
)


def _notices(prediction: Prediction) -> tuple[str, ...]:
    config = RunConfig(task=TASK.name, split="val", model="m", data=".")
    return score_matched(TASK, config, [EXAMPLE], [prediction]).notices


def test_boxes_that_are_only_spelt_in_the_text_are_told() -> None:
    text = "<loc0000><loc0000><loc0512><loc0512> cat"
    assert _notices(Prediction(id="7", text=text)) == (
        "1 answers spell boxes in their text, such as 7, but none holds objects, and only these "
        "count; write objects with confidences",
    )
    found = FoundObject(label="cat", box_yxyx=(0, 0, 0.5, 0.5), score=0.9)
    assert _notices(Prediction(id="7", text=text, objects=(found,))) == ()
    assert _notices(Prediction(id="7", text="")) == ()


def test_cider_of_a_single_picture_is_0_and_says_why() -> None:
    task = find_task("coco-captions")
    config = RunConfig(task=task.name, split="val", model="m", data=".")
    examples = [
        Example(id=str(k), prefix="caption en", pictures=(), references=[f"a {animal} runs"])
        for k, animal in enumerate(("cat", "dog"))
    ]
    said = [Prediction(id=one.id, text=one.references[0]) for one in examples]
    one = score_matched(task, config, examples[:1], said[:1])
    assert one.headline.value == 0
    assert "CIDEr of a single picture is 0 by construction" in one.notices[0]
    two = score_matched(task, config, examples, said)
    assert (two.headline.value > 0, two.notices) == (True, ())


def test_pictures_that_are_not_those_of_the_annotation_are_named() -> None:
    note = "it is 40x30 pixels, its annotation says 40x50"
    assert _notices(Prediction(id="7", text="", note=note)) == (
        f"1 pictures are not those that were annotated, such as that of 7: {note}; take the "
        "official files",
    )


@pytest.mark.parametrize(("noise_id", "is_told"), [(None, True), (257100, False)])
def test_a_noise_piece_that_is_no_single_token_is_told(noise_id: int | None, is_told: bool) -> None:
    assert TASK.asking.answer == ALL_CLASSES
    settings = {"noise_piece": "<pad me>", "noise_id": noise_id}
    config = RunConfig(task=TASK.name, split="val", model="m", data=".", settings=settings)
    found = FoundObject(label="cat", box_yxyx=(0, 0, 0.5, 0.5), score=0.9)
    answers = [Prediction(id="7", text="", objects=(found,))]
    notices = score_matched(TASK, config, [EXAMPLE], answers).notices
    said = (
        "the noise piece '<pad me>' is no single token of this model, so only the end token was "
        "barred; name the model's own with --noise-piece",
    )
    assert notices == (said if is_told else ())


MMVP = find_task("mmvp")
PAIR = [
    Example(
        id=f"{k}",
        prefix="answer en Open?",
        pictures=(),
        references={"options": "(a) Open (b) Closed", "correct": "(a)"},
        unit="pair 1",
    )
    for k in (1, 2)
]


def test_a_rule_of_scoring_changes_the_figures_and_is_told() -> None:
    letters = [Prediction(id=one.id, text="(a)") for one in PAIR]
    config = RunConfig(task="mmvp", split="all", model="m")
    assert score_matched(MMVP, config, PAIR, letters).headline.value == 0.0
    by_letter = replace(config, rules={"options": "letter"})
    found = score_matched(MMVP, by_letter, PAIR, letters)
    assert found.headline.value == only(found, ["1", "2"]).headline.value == 1.0
    assert found.notices == ("scored by the rule options=letter instead of options=text",)
    assert by_letter.key == config.key
    assert RunConfig.from_json(by_letter.to_json(), "run.json") == by_letter


def test_a_rule_that_the_benchmark_does_not_offer_is_refused() -> None:
    assert chosen_rules(MMVP, ["options=either", "options=text"]) == {}
    with pytest.raises(ConfigError, match=r"must be one of options=text, .*, got 'ties=entailed'"):
        chosen_rules(MMVP, ["ties=entailed"])
    with pytest.raises(ConfigError, match=f"{TASK.name} offers no rule of scoring, got 'options'"):
        chosen_rules(TASK, ["options"])


def test_references_that_somebody_edited_are_a_sentence_and_no_traceback() -> None:
    config = RunConfig(task=TASK.name, split="val", model="m", data=".")
    edited = replace(EXAMPLE, references={"size": [40, 60]})
    with pytest.raises(DataError, match=f"must be as {TASK.name} wrote them.*in a new folder"):
        score_matched(TASK, config, [edited], [Prediction(id="7", text="")])
