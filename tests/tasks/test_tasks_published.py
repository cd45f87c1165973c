"""Published figures: found under every spelling, in one unit, servers apart."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from paligemma.errors import ConfigError
from paligemma.tasks.catalog import find_task, tasks
from paligemma.tasks.published import (
    caveats,
    published,
    records_of,
    training_splits,
    transfer_recipe,
)
from paligemma.tasks.task import PublishedKey


def values(name: str, our_split: str | None = None, **wanted: object) -> list[float]:
    return [
        one.value
        for one in published(find_task(name), our_split=our_split)
        if all(getattr(one, field) == value for field, value in wanted.items())
    ]


def test_both_spellings_of_coco_captions_are_found() -> None:
    ours = {"family": "PaliGemma", "resolution": 224}
    assert values("coco-captions", "val", **ours) == [141.9, 141.92, 141.9]
    assert values("coco-captions", "val", family="PaliGemma 2", size="10B", resolution=448) == [
        145.0
    ]


def test_figures_with_a_spread_come_first() -> None:
    first = published(find_task("coco-captions"), our_split="val")[0]
    assert first.std is not None
    assert first.source.startswith("arXiv:2412.03555")


def test_a_test_server_is_never_compared_with_a_split_on_disk() -> None:
    task = find_task("vqav2")
    local = published(task, our_split="minival")
    assert local
    assert {one.split for one in local} == {"minival"}
    assert not any(one.is_test_server for one in local)
    servers = [one for one in published(task) if one.is_test_server]
    assert sorted(one.value for one in servers) == [83.19, 83.2, 85.6, 85.64]
    # Either end of val is comparable with them, and none is told twice.
    assert published(task, our_split="minival-shuffled") == local
    assert len(set(published(task))) == len(published(task))
    # The minival figures are not those of the whole of val.
    assert published(task, our_split="val") == []


def test_server_figures_misprinted_as_val_are_known_for_what_they_are() -> None:
    task = find_task("vizwiz")
    local = published(task, our_split="val")
    assert 73.7 not in [one.value for one in local]
    assert {one.family for one in local} == {"PaliGemma 2"}
    misprinted = [one for one in published(task) if one.split == "val" and one.is_test_server]
    assert [one.value for one in misprinted] == [73.7, 75.5]
    assert all("test-server" in one.note for one in misprinted)


def test_bleu_of_the_model_card_is_brought_to_the_unit_of_the_reports() -> None:
    scores = published(find_task("scicap"), our_split="test")
    bleu = [one.value for one in scores if one.measure == "bleu_4"]
    assert bleu == pytest.approx([19.2, 21.1])
    assert 165.1 in [one.value for one in scores if one.measure == "cider"]


def test_averages_with_and_without_english_stay_apart() -> None:
    small = {"size": "3B", "resolution": 224, "family": "PaliGemma"}
    assert values("coco-35l", "dev", measure="cider/avg35", **small) == [116.4]
    assert values("coco-35l", "dev", measure="cider/avg34", **small) == [113.7, 115.8, 113.7]
    assert values("xgqa", "testdev", measure="accuracy/avg8", **small) == [58.37]
    avg7 = values("xgqa", "testdev", measure="accuracy/avg7", size="28B", resolution=448)
    assert avg7 == [62.1]


def test_studies_of_training_are_left_out() -> None:
    task = find_task("okvqa")
    assert {one.kind for one in published(task)} == {"transfer"}
    every = {one["kind"] for key in task.published for one in records_of(key)}
    assert every == {"transfer", "multi_task_study", "precision_study"}


def test_no_figure_is_read_twice_for_one_measure() -> None:
    for task in tasks().values():
        keys = [
            (key.measure, key.task, key.split, key.metric, key.our_split) for key in task.published
        ]
        assert len(set(keys)) == len(keys), task.name


def test_an_unknown_place_has_no_records() -> None:
    key = PublishedKey(measure="x", task="VQAv2", split="nowhere", metric="x", our_split=None)
    assert records_of(key) == []
    assert published(replace(find_task("vqav2"), published=(key,))) == []
    with pytest.raises(ConfigError, match=r"'nothing'; it is of cococap, "):
        transfer_recipe("nothing")


def test_the_caveats_of_the_collection_are_told() -> None:
    assert len(caveats()) == 7
    assert any("test servers" in one for one in caveats())


# Names of the recipes for what our readers call otherwise; Karpathy's restval is in our train.
OURS = {"validation": "val", "valid": "val", "train_balanced": "train", "val_balanced": "val"}
TRAINED = [one for one in tasks().values() if one.transfer and not one.is_zero_shot]


def final_splits(recipe: dict[str, Any]) -> list[str]:
    """The splits of our readers that a recipe trains its final models on."""
    data = recipe["train_data"]
    if "combined" in data.get("dataset", ""):
        return ["train-combined"]
    (one, *others) = data.get("mixture", [data])
    if "split" in one:  # a sub-set a language
        return ["train"]
    assert all(other["split_final"] == one["split_final"] for other in others)
    theirs = one.get("splits_final") or re.split(r" ?\+ ?", one["split_final"])
    return [OURS.get(name, name) for name in theirs if name != "restval"]


@pytest.mark.parametrize("task", TRAINED, ids=[one.name for one in TRAINED])
def test_a_transfer_learns_from_the_splits_of_its_recipe_but_not_from_what_it_reports(task) -> None:
    reported = task.splits[0]
    whole = "val" if reported == "minival" else reported
    wanted = [
        {whole: "maxival" if reported == "minival" else ""}.get(name, name)
        for name in final_splits(transfer_recipe(task.transfer))
    ]
    assert list(training_splits(task, task.transfer)) == list(filter(None, wanted))
    assert set(training_splits(task, task.transfer)) <= {*task.splits}
    assert training_splits(task, None) == ("train",)
    assert training_splits(find_task("own"), task.transfer) == ("train",)


def test_the_recipes_that_draw_answers_with_replacement_are_docvqa_and_the_video_captions() -> None:
    drawn = {task.name for task in tasks().values() if task.draws_targets}
    assert drawn == {"docvqa", "msrvtt-cap", "activitynet-cap", "vatex"}
