"""Outputs against numbers of the original implementation (tests/golden/data/README.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from golden_set import assert_within_rounding, compare_choices, load_arrays
from reference import MaskCodecOracle

from paligemma.outputs.assemble import to_detections
from paligemma.outputs.boxes import box_iou, encode_boxes, format_loc, format_seg
from paligemma.outputs.masks import crop_mask, mask_iou
from paligemma.outputs.parse import parse_tokens
from paligemma.outputs.types import Detection, TokenRecord
from paligemma.outputs.vqvae import MaskCodec, mask_codec_from_arrays, mask_to_codes
from paligemma.vocab import Vocab


@dataclass(frozen=True)
class GoldenCodec:
    """The original's mask codec beside ours and the definition.

    Attributes:
        arrays: all of vqvae.npz.
    """

    arrays: dict[str, np.ndarray]

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        named = self.arrays.items()
        return {name.removeprefix("param:"): x for name, x in named if name.startswith("param:")}

    @cached_property
    def ours(self) -> MaskCodec:
        return mask_codec_from_arrays(self.weights, source="vqvae.npz")

    @cached_property
    def oracle(self) -> MaskCodecOracle:
        return MaskCodecOracle(self.weights)

    @cached_property
    def exact_masks(self) -> np.ndarray:
        return np.array([self.oracle.decode(codes) for codes in self.arrays["codes"]])

    def margins(self, mask: np.ndarray) -> np.ndarray:
        """float64[16]: by how much the nearest codeword is nearer than the next."""
        nearest = np.sort(self.oracle.distances(self.oracle.latents(mask)), axis=1)
        return nearest[:, 1] - nearest[:, 0]

    @cached_property
    def margin_noise(self) -> float:
        """What rounding makes of such a margin: the original's own against float64."""
        exact = np.array([self.margins(mask) for mask in self.arrays["masks"][..., 0]])
        return 2 * np.abs(self.arrays["gap"] - exact).max()


@pytest.fixture(scope="module")
def codec(golden_dir: Path) -> GoldenCodec:
    return GoldenCodec(load_arrays(golden_dir / "vqvae.npz"))


def test_decoded_masks_are_the_originals(codec: GoldenCodec) -> None:
    ours = codec.ours.decode(torch.from_numpy(codec.arrays["codes"]))
    assert_within_rounding(ours, codec.arrays["decoded"][..., 0], codec.exact_masks)


def test_encoded_masks_are_the_originals(codec: GoldenCodec) -> None:
    masks, original = codec.arrays["masks"][..., 0], codec.arrays["encoder_out"]
    with torch.no_grad():
        latents = codec.ours.latents(torch.from_numpy(masks[: len(original)]))
    exact = [codec.oracle.latents(mask) for mask in masks[: len(original)]]
    assert_within_rounding(latents, original, exact)
    codes = codec.ours.encode(torch.from_numpy(masks))
    margins = np.array([codec.margins(mask) for mask in masks])
    compare_choices(codes, codec.arrays["indices"], margins, codec.margin_noise).report()


def test_an_objects_suffix_is_the_originals(codec: GoldenCodec) -> None:
    ours, original, margins = [], [], []
    for i, box in enumerate(codec.arrays["op_box"]):
        mask, suffix = codec.arrays[f"op_mask{i}"], str(codec.arrays["op_suffix"][i])
        seg = [int(number) for number in re.findall(r"<seg(\d+)>", suffix)]
        assert format_loc(encode_boxes(box)) + format_seg(np.array(seg)) == suffix
        ours.append(mask_to_codes(codec.ours, mask, box))
        original.append(seg)
        margins.append(codec.margins(crop_mask(mask, box)))
    compare_choices(ours, original, np.array(margins), codec.margin_noise).report()


def test_location_tokens_of_all_boxes_are_the_originals(golden_dir: Path) -> None:
    arrays = load_arrays(golden_dir / "preprocess.npz")
    ours = [format_loc(row) for row in encode_boxes(arrays["boxes"])]
    assert ours == arrays["loc_strings"].tolist()


def segmented(ids: np.ndarray, vocab: Vocab, codec: MaskCodec, wh: tuple[int, int]) -> Detection:
    """The object a segmentation answer begins with; an empty one where the answer is malformed."""
    record = TokenRecord(ids=ids, logprobs=np.zeros(len(ids), np.float32))
    parsed = parse_tokens(record, vocab, lambda ids: "?" * len(ids))
    first = to_detections(parsed, wh, codec=codec)[:1]
    if first and first[0].region is not None:
        return first[0]
    return Detection(label=None, box_yxyx=(0, 0, 0, 0), image_wh=wh)


def test_segmentation_scores_are_the_originals(golden_dir: Path, codec: GoldenCodec) -> None:
    data = load_arrays(golden_dir / "segeval.npz")
    loc0, seg0 = int(data["loc0"]), int(data["seg0"])
    vocab = Vocab(size=seg0 + 128, pad=0, eos=1, bos=2, sep=108, loc0=loc0, seg0=seg0)
    decode, ours = codec.ours.decode, codec.ours
    # A pixel whose value rounding can carry across 0 is foreground or not by chance.
    noise = 5 * np.abs(codec.arrays["decoded"][..., 0] - codec.exact_masks).max()
    ious, margins = [], []
    for i, ids in enumerate(data["pred_ids"]):
        truth = data[f"gt_mask{i}"]
        wh = (truth.shape[1], truth.shape[0])
        item = segmented(ids, vocab, ours, wh)
        ious.append(0.0 if item.mask is None else mask_iou(item.mask, truth))
        assert (item.mask is None) == data["invalid"][i], f"example {i}"
        overlap = box_iou(item.box_yxyx, data["gt_box"][i])
        assert (overlap >= 0.5, overlap >= 0.75) == (data["box50"][i], data["box75"][i])
        shifted = []
        for shift in (-noise, noise):
            with mock.patch.object(ours, "decode", lambda codes, s=shift: decode(codes) + s):
                shifted.append(segmented(ids, vocab, ours, wh).mask)
        decided = item.mask is None or np.array_equal(*shifted)
        margins.append(np.inf if decided else 0.0)
    compare_choices(ious, data["iou"], np.array(margins), noise).report()
