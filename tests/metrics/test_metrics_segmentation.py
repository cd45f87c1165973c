"""Referring segmentation: the original evaluator's numbers, from tokens and from stored masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.errors import DataError
from paligemma.metrics.segmentation import ObjectMask, read_object, referring_measures
from paligemma.outputs.boxes import format_loc, format_seg
from paligemma.outputs.rle import encode_rle
from paligemma.outputs.vqvae import mask_codec_from_arrays

VECTORS = [
    v
    for v in json.loads((Path(__file__).parent / "data/metric_vectors.json").read_text())["vectors"]
    if v["metric"] == "referring_segmentation"
]
CODES = format_seg(range(16))


def _ones(codes: np.ndarray) -> np.ndarray:
    return np.ones((64, 64), np.float32)


def _map_of(drawing: dict[str, Any]) -> np.ndarray:
    if "ramp" in drawing:
        return np.tile(np.linspace(*drawing["ramp"], 64, dtype=np.float32), (64, 1))
    out = np.full((64, 64), drawing["background"], np.float32)
    for y0, x0, y1, x1, value in drawing.get("rects", []):
        out[y0:y1, x0:x1] = value
    return out


def _mask_of(drawing: dict[str, Any]) -> np.ndarray:
    out = np.zeros((drawing["height"], drawing["width"]), bool)
    for y0, x0, y1, x1 in drawing.get("rects", []):
        out[y0:y1, x0:x1] = True
    y, x = np.indices(out.shape)
    for cy, cx, radius in drawing.get("disks", []):
        out |= (y - cy) ** 2 + (x - cx) ** 2 <= radius**2
    return out


@pytest.mark.parametrize("is_stored", [False, True], ids=["tokens", "stored masks"])
@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["id"])
def test_figures_are_those_of_big_vision(vector: dict[str, Any], is_stored: bool) -> None:
    found: list[ObjectMask | None] = []
    for row, truth in zip(vector["predictions"], vector["references"], strict=True):
        text = "".join("word" if name == "txt" else f"<{name}>" for name in row["tokens"])
        values = _map_of(row["mask64"])
        size = truth["width"], truth["height"]
        one = read_object(text, size, lambda codes, values=values: values)
        if one is not None and is_stored:
            one = ObjectMask(box_yxyx=one.box_yxyx, mask=one.mask.to_rle())  # type: ignore[union-attr]
        found.append(one)
    true = [ObjectMask(box_yxyx=r["bbox"], mask=_mask_of(r)) for r in vector["references"]]
    measures = {m.name: m for m in referring_measures(found, true)}
    expected = vector["expected"]
    assert measures["miou"].per_example == pytest.approx(expected["iou_per_example"], abs=1e-9)
    for name in ("miou", "ciou", "boxacc_0.5", "boxacc_0.75"):
        assert measures[name].value == pytest.approx(expected[name], abs=1e-9), name
    assert measures["invalid"].value * expected["total"] == pytest.approx(expected["invalid"])


def test_there_are_four_official_numbers() -> None:
    assert len(VECTORS) == 4


def test_a_codec_scores_as_the_original_does(golden_dir: Path) -> None:
    with np.load(golden_dir / "vqvae.npz") as file:
        arrays = {n.removeprefix("param:"): a for n, a in file.items() if n.startswith("param:")}
    codec = mask_codec_from_arrays(arrays, source="vqvae.npz")

    def decode(codes: np.ndarray) -> np.ndarray:
        return codec.decode(torch.from_numpy(codes)[None])[0].numpy()

    with np.load(golden_dir / "segeval.npz") as file:
        data = dict(file)
    loc0, seg0 = int(data["loc0"]), int(data["seg0"])
    found, true = [], []
    for n, ids in enumerate(data["pred_ids"].tolist()):
        words = []
        for token in ids:
            if loc0 <= token < loc0 + 1024:
                words.append(format_loc([token - loc0]))
            else:
                words.append(format_seg([token - seg0]) if token >= seg0 else "word")
        mask = data[f"gt_mask{n}"]
        found.append(read_object("".join(words), mask.shape[::-1], decode))
        true.append(ObjectMask(box_yxyx=tuple(data["gt_box"][n].tolist()), mask=mask))
    measures = {m.name: m for m in referring_measures(found, true)}
    np.testing.assert_array_equal(measures["miou"].per_example, data["iou"])
    np.testing.assert_array_equal(measures["boxacc_0.5"].per_example, data["box50"])
    np.testing.assert_array_equal(measures["boxacc_0.75"].per_example, data["box75"])
    np.testing.assert_array_equal(measures["invalid"].per_example, data["invalid"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        " " + format_loc([0, 0, 9, 9]) + CODES,
        format_loc([0, 0, 900]) + CODES,
        format_loc([0, 0, 900, 900]) + format_seg(range(15)),
        format_loc([0, 0, 900, 900]) + " " + CODES,
        "<loc0000><loc0000><loc1024><loc0900>" + CODES,
        format_loc([0, 0, 900, 900]) + "<seg128>" + CODES,
        format_loc([900, 0, 100, 900]) + CODES,
        format_loc([100, 100, 101, 900]) + CODES,
    ],
)
def test_answers_that_do_not_begin_with_box_and_mask_are_invalid(text: str) -> None:
    assert read_object(text, (20, 30), _ones) is None


def test_text_after_the_twentieth_token_is_ignored_and_only_codewords_reach_the_codec() -> None:
    seen = []

    def decode(codes: np.ndarray) -> np.ndarray:
        seen.append(codes.tolist())
        return np.ones((64, 64), np.float32)

    one = read_object(format_loc([0, 0, 1023, 1023]) + CODES + " cat ; ", (20, 30), decode)
    assert seen == [list(range(16))]
    assert one is not None
    assert one.mask.to_array().all()  # type: ignore[union-attr]


_boxes = st.tuples(*[st.integers(0, 9), st.integers(0, 9), st.integers(1, 9), st.integers(1, 9)])


def _block(box: tuple[int, ...]) -> ObjectMask:
    y, x, height, width = box
    mask = np.zeros((20, 20), bool)
    mask[y : y + height, x : x + width] = True
    edges = (y / 20, x / 20, (y + height) / 20, (x + width) / 20)
    return ObjectMask(box_yxyx=edges, mask=mask)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(_boxes, _boxes), min_size=1, max_size=6), st.randoms())
def test_order_does_not_matter_and_figures_lie_in_bounds(
    pairs: list[tuple[tuple[int, ...], tuple[int, ...]]], random: Any
) -> None:
    def figures(rows: list[Any]) -> list[float]:
        measures = referring_measures([_block(a) for a, _ in rows], [_block(b) for _, b in rows])
        return [m.value for m in measures]

    shuffled = list(pairs)
    random.shuffle(shuffled)
    assert figures(shuffled) == pytest.approx(figures(pairs))
    assert all(0 <= value <= 1 for value in figures(pairs))
    assert figures([(b, b) for _, b in pairs]) == pytest.approx([1, 1, 1, 1, 0])


def test_ciou_pools_pixels_and_miou_does_not() -> None:
    small, large = _block((0, 0, 1, 1)), _block((0, 0, 9, 9))
    measures = {m.name: m.value for m in referring_measures([None, large], [small, large])}
    assert measures["miou"] == 0.5
    assert measures["ciou"] == pytest.approx(81 / 82)
    assert measures["invalid"] == 0.5


def test_masks_that_cannot_be_compared_are_refused() -> None:
    one = _block((0, 0, 2, 2))
    empty = ObjectMask(box_yxyx=one.box_yxyx, mask=np.zeros((20, 20), bool))
    other = ObjectMask(box_yxyx=one.box_yxyx, mask=encode_rle(np.ones((5, 5), bool)))
    numbers = ObjectMask(box_yxyx=one.box_yxyx, mask=np.ones((20, 20)))
    with pytest.raises(DataError, match="reference mask 0 holds no pixel"):
        referring_measures([one], [empty])
    with pytest.raises(DataError, match=r"prediction 0 is \(5, 5\)"):
        referring_measures([other], [one])
    with pytest.raises(DataError, match=r"bool\[H, W\]"):
        referring_measures([numbers], [one])
    with pytest.raises(DataError, match="lists of one length"):
        referring_measures([], [one])
    with pytest.raises(DataError, match="without examples"):
        referring_measures([], [])
