"""Outputs against numbers of the original implementation (tests/golden/data/README.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from paligemma.outputs.assemble import to_detections
from paligemma.outputs.boxes import box_iou, encode_boxes, format_loc, format_seg
from paligemma.outputs.masks import mask_iou
from paligemma.outputs.parse import parse_tokens
from paligemma.outputs.types import Detection, TokenRecord
from paligemma.outputs.vqvae import MaskCodec, mask_codec_from_arrays, mask_to_codes
from paligemma.vocab import Vocab


@pytest.fixture(scope="module")
def vqvae(golden_dir: Path) -> dict[str, np.ndarray]:
    with np.load(golden_dir / "vqvae.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def codec(vqvae: dict[str, np.ndarray]) -> MaskCodec:
    arrays = {n.removeprefix("param:"): a for n, a in vqvae.items() if n.startswith("param:")}
    return mask_codec_from_arrays(arrays, source="vqvae.npz")


def test_decoded_masks_are_the_originals(vqvae: dict[str, np.ndarray], codec: MaskCodec) -> None:
    ours = codec.decode(torch.from_numpy(vqvae["codes"])).numpy()
    np.testing.assert_allclose(ours, vqvae["decoded"][..., 0], atol=2e-5, rtol=0)


def test_encoded_masks_are_the_originals(vqvae: dict[str, np.ndarray], codec: MaskCodec) -> None:
    masks = torch.from_numpy(vqvae["masks"][..., 0])
    assert np.array_equal(codec.encode(masks).numpy(), vqvae["indices"])
    with torch.no_grad():
        latents = codec.latents(masks[:3]).numpy()
    np.testing.assert_allclose(latents, vqvae["encoder_out"], atol=1e-4, rtol=0)


def test_an_objects_suffix_is_the_originals(vqvae: dict[str, np.ndarray], codec: MaskCodec) -> None:
    for i, box in enumerate(vqvae["op_box"]):
        codes = mask_to_codes(codec, vqvae[f"op_mask{i}"], box)
        assert format_loc(encode_boxes(box)) + format_seg(codes) == vqvae["op_suffix"][i]


def test_location_tokens_of_all_boxes_are_the_originals(golden_dir: Path) -> None:
    with np.load(golden_dir / "preprocess.npz") as file:
        boxes, strings = file["boxes"], file["loc_strings"]
    assert [format_loc(row) for row in encode_boxes(boxes)] == strings.tolist()


def segmented(ids: np.ndarray, vocab: Vocab, codec: MaskCodec, wh: tuple[int, int]) -> Detection:
    """The object a segmentation answer begins with; an empty one where the answer is malformed."""
    record = TokenRecord(ids=ids, logprobs=np.zeros(len(ids), np.float32))
    parsed = parse_tokens(record, vocab, lambda ids: "?" * len(ids))
    first = to_detections(parsed, wh, codec=codec)[:1]
    if first and first[0].region is not None:
        return first[0]
    return Detection(label=None, box_yxyx=(0, 0, 0, 0), image_wh=wh)


def test_segmentation_scores_are_the_originals(golden_dir: Path, codec: MaskCodec) -> None:
    with np.load(golden_dir / "segeval.npz") as file:
        data = dict(file)
    loc0, seg0 = int(data["loc0"]), int(data["seg0"])
    vocab = Vocab(size=seg0 + 128, pad=0, eos=1, bos=2, sep=108, loc0=loc0, seg0=seg0)
    for i, ids in enumerate(data["pred_ids"]):
        truth = data[f"gt_mask{i}"]
        item = segmented(ids, vocab, codec, (truth.shape[1], truth.shape[0]))
        iou = 0.0 if item.mask is None else mask_iou(item.mask, truth)
        assert iou == data["iou"][i], f"example {i}"
        assert (item.mask is None) == data["invalid"][i], f"example {i}"
        overlap = box_iou(item.box_yxyx, data["gt_box"][i])
        assert (overlap >= 0.5, overlap >= 0.75) == (data["box50"][i], data["box75"][i])
