"""What training changes in a row at a visit: pictures with their boxes, and absent classes."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from paligemma.batch import Batch
from paligemma.example import Example
from paligemma.outputs.boxes import box_yxyx_to_xyxy_px, decode_boxes
from paligemma.outputs.masks import mask_iou
from paligemma.outputs.parse import parse_objects
from paligemma.outputs.rle import encode_rle
from paligemma.outputs.vqvae import load_mask_codec
from paligemma.pipeline.loading import LoadOptions, find_mask_codec, load_processor
from paligemma.processing.augment import Augmentation
from paligemma.tasks.catalog import find_task
from paligemma.tasks.own.labels import OwnExample
from paligemma.tasks.own.masks import answered
from paligemma.train.data import batches
from paligemma.train.examples import ExampleSource
from paligemma.train.varied import Variety
from paligemma.weights.catalog import resolve

MOVES = ("flip", "crop=0.5", "zoom-out=1.5")


@pytest.fixture(scope="module")
def varied() -> Callable[..., Variety]:
    processor, _ = load_processor("tiny", LoadOptions())
    codec_path = find_mask_codec(resolve("tiny"))
    assert codec_path is not None
    codec = load_mask_codec(codec_path)

    def make(*words: str, **more: Any) -> Variety:
        return Variety(
            seed=more.pop("seed", 0),
            policies=(Augmentation.of(words),),
            asking_of=find_task("own").asks,
            processor=processor,
            codec=codec,
            **more,
        )

    return make


def rows(folder: Path, *lines: dict[str, Any]) -> list[OwnExample]:
    """A blue picture with a red rectangle, asked in several ways."""
    image = np.full((120, 200, 3), (0, 0, 250), np.uint8)
    image[24:84, 50:110] = (250, 0, 0)
    Image.fromarray(image).save(folder / "a.png")
    text = "".join(json.dumps({"image": "a.png", **one}) + "\n" for one in lines)
    (folder / "train.jsonl").write_text(text)
    found = list(find_task("own").rows(folder, "train"))
    assert all(isinstance(one, OwnExample) for one in found)
    return found  # type: ignore[return-value]


BOX = "<loc0205><loc0256><loc0716><loc0563> card"


def test_the_box_of_the_answer_moves_with_the_picture(
    tmp_path: Path, varied: Callable[..., Variety]
) -> None:
    (row,) = rows(tmp_path, {"prefix": "detect card", "suffix": BOX})
    vary = varied(*MOVES, "colour=0.1", "jpeg")
    answers = set()
    for visit in range(60):
        shown = vary(row, visit)
        image = shown.pictures[0].read(10**9)
        (one,) = parse_objects(shown.targets[0]).objects
        box = decode_boxes(one.loc)
        answers.add(shown.targets[0])
        x0, y0, x1, y1 = box_yxyx_to_xyxy_px(tuple(box), (image.shape[1], image.shape[0]))
        red = (image[..., 0].astype(int) - image[..., 2]) > 90
        ys, xs = np.nonzero(red)
        expected = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert np.abs(np.array([x0, y0, x1, y1]) - expected).max() <= 2
    assert len(answers) > 20


def test_run_lengths_move_and_are_encoded_anew(
    tmp_path: Path, varied: Callable[..., Variety]
) -> None:
    mask = np.zeros((120, 200), bool)
    mask[24:84, 50:110] = True
    line = {"prefix": "segment card", "suffix": BOX, "masks": [encode_rle(mask)]}
    (row,) = rows(tmp_path, line)
    vary = varied(*MOVES)
    codec = vary.codec
    row = answered(row, codec)
    before, moved = row.targets[0], 0
    for visit in range(24):
        shown = vary(row, visit)
        assert isinstance(shown, OwnExample)
        image = shown.pictures[0].read(10**9)
        red = image[..., 0] > 200
        assert mask_iou(shown.objects[0].mask(image.shape[:2]), red) >= 0.95
        assert shown.targets[0].count("<seg") == 16
        moved += shown.targets[0] != before
    assert moved > 12


@pytest.mark.parametrize(
    ("prefix", "suffix"),
    [
        ("answer en where is it?", "above"),
        ("segment card", BOX.replace(" ", "<seg001>" * 16 + " ")),
    ],
)
def test_rows_in_words_or_in_codewords_alone_stay_where_they_are(
    tmp_path: Path, varied: Callable[..., Variety], prefix: str, suffix: str
) -> None:
    (row,) = rows(tmp_path, {"prefix": prefix, "suffix": suffix})
    plain = row.pictures[0].read(10**9)
    for visit in range(12):
        shown = varied(*MOVES)(row, visit)
        assert shown.targets == row.targets
        assert (shown.pictures[0].read(10**9) == plain).all()


@pytest.mark.parametrize("label", ["left card", "linke Karte", "carta derecha", "clockwise arrow"])
def test_rows_that_name_a_side_are_never_mirrored(
    tmp_path: Path, varied: Callable[..., Variety], label: str
) -> None:
    suffix = BOX.replace("card", label)
    (row,) = rows(tmp_path, {"prefix": f"detect {label}", "suffix": suffix})
    assert {varied("flip=1")(row, visit).targets for visit in range(8)} == {row.targets}


def test_workers_and_a_later_start_see_the_same_batches(
    tmp_path: Path, varied: Callable[..., Variety]
) -> None:
    found = rows(tmp_path, *[{"prefix": "detect card", "suffix": BOX}] * 3)
    vary = varied(*MOVES, "colour", "jpeg", "resize")
    source = ExampleSource(
        examples=found,
        asking_of=vary.asking_of,
        processor=vary.processor,
        batch_size=2,
        seed=0,
        vary=vary,
    )
    alone = list(batches(source, 0, 4, num_workers=0))
    beside = list(batches(source, 1, 4, num_workers=2))
    assert len({one.tokens.numpy().tobytes() for one in alone}) > 1
    for one, other in zip(alone[1:], beside, strict=True):
        assert isinstance(one, Batch)
        assert isinstance(other, Batch)
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.images, other.images)


def test_a_visit_follows_from_seed_visit_and_id_alone(
    tmp_path: Path, varied: Callable[..., Variety]
) -> None:
    (row,) = rows(tmp_path, {"prefix": "detect card", "suffix": BOX})

    def seen(vary: Variety) -> list[tuple[Any, ...]]:
        shown = [vary(row, visit) for visit in (5, 1, 9)]
        return [(one.targets, one.pictures[0].read(10**9).tobytes()) for one in shown]

    everything = (*MOVES, "colour", "jpeg", "resize")
    copied = pickle.loads(pickle.dumps(varied(*everything)))
    assert seen(varied(*everything)) == seen(copied)
    assert seen(varied(*everything)) != seen(varied(*everything, seed=1))


def test_absent_classes_are_asked_for_in_their_share_of_visits(
    tmp_path: Path, varied: Callable[..., Variety]
) -> None:
    (row,) = rows(tmp_path, {"prefix": "detect card ; cup", "suffix": BOX})
    vary = varied(negatives=0.5, classes=(("card", "cup", "dog", "sun"),))
    shown: list[Example] = [vary(row, visit) for visit in range(400)]
    changed = [one for one in shown if one.prefix != row.prefix]
    assert len(changed) / 400 == pytest.approx(0.5, abs=0.08)
    empty = [one for one in changed if one.targets == ("",)]
    assert len(empty) / len(changed) == pytest.approx(0.5, abs=0.1)
    assert all("card" not in one.prefix for one in empty)
    others = [one for one in changed if one.targets != ("",)]
    assert all("card" in one.prefix and one.targets == row.targets for one in others)
