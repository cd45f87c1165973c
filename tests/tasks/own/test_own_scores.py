"""A user's own rows, scored by the metrics of the benchmarks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from task_files import write_json_lines, write_picture

from paligemma import PaliGemma
from paligemma.cli import main
from paligemma.errors import DataError
from paligemma.example import Example, FoundObject, Prediction
from paligemma.outputs.boxes import format_detections
from paligemma.outputs.rle import encode_rle
from paligemma.tasks.own.masks import with_masks
from paligemma.tasks.own.rows import TASKS
from paligemma.tasks.own.scores import BY_PROMPT, score_own

(OWN,) = TASKS
WORDS: list[dict[str, Any]] = [
    {"image": "a.png", "prefix": "answer en what?", "suffix": ["two cats", "2 cats"]},
    {"image": "a.png", "prefix": "answer en how many?", "suffix": "12"},
    {"image": "a.png", "prefix": "caption en", "suffix": ["A cat on a mat.", "a cat and a mat"]},
]
OBJECTS = {
    "image": "a.png",
    "prefix": "detect cat",
    "suffix": "<loc0000><loc0000><loc0512><loc0512> cat",
}


def examples(tmp_path: Path, *rows: dict[str, Any]) -> list[Example]:
    write_picture(tmp_path / "a.png")
    write_json_lines(tmp_path / "test.jsonl", rows)
    return list(OWN.read(tmp_path, "test"))


def figures(found: list[Example], *texts: str, metric: str) -> dict[str, float]:
    said = [Prediction(id=one.id, text=text) for one, text in zip(found, texts, strict=True)]
    return {one.name: one.value for one in score_own(found, said, metric=metric)}


@pytest.mark.parametrize(
    ("metric", "texts", "expected"),
    [
        ("accuracy", ("2 cats", "twelve", "a cat and a mat"), 2 / 3),
        ("accuracy_lower", ("2 CATS", "13", "a cat on a MAT."), 2 / 3),
        ("count_accuracy", ("2 cats", "twelve", ""), 2 / 3),
        ("relaxed_accuracy", ("2 cats", "12.5", ""), 2 / 3),
        ("anls", ("2 cats", "12", "a cat and a hat"), (1 + 1 + 14 / 15) / 3),
        ("cer", ("2 cots", "12", "a cat and a mat"), 1 / (6 + 2 + 15)),
        ("soft_accuracy", ("2 cats", "12", ""), 2 / 9),
    ],
)
def test_answers_in_words_are_scored_by_a_metric_of_choice(
    tmp_path: Path, metric: str, texts: tuple[str, ...], expected: float
) -> None:
    scores = figures(examples(tmp_path, *WORDS), *texts, metric=metric)
    assert next(iter(scores)) == metric.replace("soft_", "")
    assert next(iter(scores.values())) == pytest.approx(expected)


def test_captions_have_their_figures_with_the_chosen_one_first(tmp_path: Path) -> None:
    found = examples(tmp_path, WORDS[2], {**WORDS[2], "suffix": ["a dog", "one dog runs"]})
    for name in ("cider", "bleu_4", "rouge_l"):
        right = figures(found, "A cat on a mat.", "one dog runs", metric=name)
        wrong = figures(found, "one dog runs", "A cat on a mat.", metric=name)
        assert next(iter(right)) == name
        assert right[name] > wrong[name]


def test_tables_are_compared_as_trees(tmp_path: Path) -> None:
    pytest.importorskip("rapidfuzz")
    table = "<table><tr><td>a</td><td>b</td></tr></table>"
    (one,) = examples(tmp_path, {"image": "a.png", "prefix": "table", "suffix": table})
    assert figures([one], table, metric="teds")["teds"] == 1
    assert figures([one], table.replace("<td>b</td>", ""), metric="teds")["teds"] < 1


def test_boxes_keep_their_figures_beside_a_metric_of_words(tmp_path: Path) -> None:
    found = examples(tmp_path, WORDS[1], OBJECTS)
    box = FoundObject(label="cat", box_yxyx=(0, 0, 0.5, 0.5), score=0.9)
    said = [
        Prediction(id=found[0].id, text="12"),
        Prediction(id=found[1].id, text="", objects=(box,)),
    ]
    measures = score_own(found, said, metric="anls")
    assert [one.name for one in measures[:2]] == ["anls", "detect_ap50"]
    assert [one.value for one in measures[:2]] == pytest.approx([1, 1])
    assert {one.num for one in measures} == {2}
    with pytest.raises(DataError, match="anls compares answers in words, but every row asks"):
        score_own(found[1:], said[1:], metric="anls")


def test_by_prompt_any_of_several_answers_is_right(tmp_path: Path) -> None:
    found = examples(tmp_path, *WORDS)
    scores = figures(found, "2 cats", "12", "a cat and a mat", metric=BY_PROMPT)
    assert scores["answer_accuracy"] == scores["caption_exact_match"] == 1


def test_a_list_without_an_answer_is_a_bad_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="suffix must hold an answer, got none"):
        examples(tmp_path, {**WORDS[0], "suffix": []})


def masks(*boxes: tuple[str, tuple[int, int, int, int]]) -> dict[str, Any]:
    """A row of a picture of 12 x 8 pixels, its objects (label, (top, left, bottom, right))."""
    sides = (8, 12, 8, 12)
    normal = [[c / side for c, side in zip(box, sides, strict=True)] for _, box in boxes]
    suffix = format_detections(np.array(normal), [label for label, _ in boxes])
    rle = [encode_rle(block(box)) for _, box in boxes]
    return {"image": "a.png", "prefix": "segment cat ; dog", "suffix": suffix, "masks": rle}


def block(box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((8, 12), bool)
    mask[box[0] : box[2], box[1] : box[3]] = True
    return mask


def outlined(label: str, box: tuple[int, int, int, int] | None) -> FoundObject:
    rle = None if box is None else encode_rle(block(box))
    return FoundObject(label=label, box_yxyx=(0.0, 0.0, 0.5, 0.5), score=0.9, mask=rle)


def test_masks_count_by_label_and_picture_all_masks_of_a_label_together(tmp_path: Path) -> None:
    rows = [
        masks(("cat", (0, 0, 4, 4)), ("cat", (4, 4, 8, 8)), ("dog", (0, 8, 4, 12))),
        masks(("cat", (0, 0, 2, 6))),
        masks(),
    ]
    read = examples(tmp_path, *rows, WORDS[1])
    found = [with_masks(one, None) for one in read]
    said = [
        # Both cats in one mask, with 16 pixels more; the dog without a mask.
        (outlined("cat", (0, 0, 8, 6)), outlined("dog", None)),
        (outlined("cat", (0, 0, 2, 3)), outlined("cat", (0, 3, 2, 6))),
        (outlined("dog", (0, 0, 1, 1)),),
        (),
    ]
    answers = [
        Prediction(id=one.id, text="12", objects=objects)
        for one, objects in zip(found, said, strict=True)
    ]
    scores = {one.name: one.value for one in score_own(found, answers)}
    assert list(scores)[:3] == ["detect_ap50", "segment_miou", "answer_accuracy"]
    first = 24 / 56  # of 48 found pixels 24 lie in the 32 of the cats
    assert scores["segment_miou"] == pytest.approx((first + 0 + 1 + 0) / 4)
    assert scores["segment_ciou"] == pytest.approx((24 + 12) / (56 + 16 + 12 + 1))
    assert scores["segment_miou/cat"] == pytest.approx((first + 1) / 2)
    assert scores["segment_miou/dog"] == 0
    assert scores["answer_accuracy"] == 1
    assert "detect_ap50" in scores
    without = {one.name for one in score_own(read, answers)}
    assert not [name for name in without if name.startswith("segment")]
    chosen = {one.name: one.value for one in score_own(found, answers, metric="accuracy")}
    assert chosen["segment_miou"] == scores["segment_miou"]


def test_masks_of_codewords_are_decoded_by_the_model_that_is_measured(tmp_path: Path) -> None:
    """A fine-tuner's own rows: the answer of the embedded model, taken for the truth, is found."""
    model = PaliGemma.from_pretrained("tiny")
    desk = Path(__file__).parents[3] / "examples" / "desk.png"
    shutil.copy(desk, tmp_path / "desk.png")
    truth = model.generate(desk, "segment heart").text
    assert "<seg" in truth
    row = {"image": "desk.png", "prefix": "segment heart", "suffix": truth}
    bad = {**row, "masks": [{"size": [1, 1], "counts": "~~"}]}
    write_json_lines(tmp_path / "valid.jsonl", [row, bad])
    words = ("eval", "own", "--data", str(tmp_path), "--model", "tiny", "--no-html", "--json")
    done = CliRunner().invoke(main, [*words, "--output", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    scores = {one["measure"]: one["value"] for one in json.loads(done.stdout)["figures"]}
    assert scores["segment_miou"] > 95
    said = "1 of 2 rows with segment prompts lack a mask that can be read, and are measured by"
    assert said in done.stderr
    again = CliRunner().invoke(main, ["eval", "report", str(tmp_path / "run"), "--json"])
    assert json.loads(again.stdout)["figures"] == json.loads(done.stdout)["figures"]
