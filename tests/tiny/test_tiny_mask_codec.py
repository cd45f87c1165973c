import json
from pathlib import Path

import numpy as np
import pytest
import torch

from paligemma.errors import ConfigError
from paligemma.outputs.vqvae import load_mask_codec
from paligemma.scenes import LABELS, SceneOptions, draw_scene
from paligemma.tiny.mask_codec import (
    MaskCodecProgress,
    MaskCodecTraining,
    MaskSet,
    collect_masks,
    measure_mask_codec,
    train_codec_file,
    train_mask_codec,
)

EMBEDDED = Path(__file__).parents[2] / "src/paligemma/models/tiny/mask_codec.safetensors"
TINY = MaskCodecTraining(
    steps=80,
    batch_size=8,
    num_masks=48,
    channels=(8, 8, 16),
    hidden=16,
    code_dim=8,
    num_codes=16,
    learning_rate=1e-2,
    warmup_steps=2,
    decay=0.8,
    report_every=40,
)


@pytest.fixture(scope="module")
def few_masks() -> MaskSet:
    return collect_masks(48, first_scene=7)


@pytest.fixture(scope="module")
def heldout() -> MaskSet:
    return collect_masks(160, split="heldout", first_scene=900)


def test_the_loss_falls_and_every_report_arrives(few_masks: MaskSet) -> None:
    seen: list[MaskCodecProgress] = []
    codec = train_mask_codec(TINY, masks=few_masks, on_step=seen.append)
    assert [p.step for p in seen] == [40, 80]
    assert seen[-1].loss < 0.8 * seen[0].loss
    assert not codec.training


def test_a_seed_decides_the_codec_and_leaves_the_global_generator_alone(
    few_masks: MaskSet,
) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    short = MaskCodecTraining(**{**vars(TINY), "steps": 4})
    first, again = (train_mask_codec(short, masks=few_masks).state_dict() for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = train_mask_codec(MaskCodecTraining(**{**vars(short), "seed": 1}), masks=few_masks)
    assert not torch.equal(first["encoder.0.weight"], other.state_dict()["encoder.0.weight"])


def test_collected_masks_are_what_the_codec_is_shown_later(few_masks: MaskSet) -> None:
    scene = draw_scene(7, SceneOptions(size_px=224))
    from paligemma.outputs.masks import crop_mask

    expected = np.round(crop_mask(scene.mask(0), np.array(scene.objects[0].box_yxyx)) * 255)
    np.testing.assert_array_equal(few_masks.masks[0], expected)
    assert LABELS[few_masks.labels[0]] == scene.objects[0].label


def test_shifted_boxes_show_the_same_objects_otherwise_cut(few_masks: MaskSet) -> None:
    moved = collect_masks(48, first_scene=7, box_shift_px=1)
    np.testing.assert_array_equal(moved.labels, few_masks.labels)
    assert (moved.masks != few_masks.masks).any(axis=(1, 2)).mean() > 0.9


def test_a_trained_codec_is_written_with_its_record_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "codec.safetensors"
    options = MaskCodecTraining(**{**vars(TINY), "steps": 6, "report_every": 4})
    record = train_codec_file(path, options, command="train it", num_heldout=20)
    stored = json.loads(path.with_suffix(".json").read_text())
    assert stored == json.loads(json.dumps(record))
    assert stored["command"] == "train it"
    assert [point["step"] for point in stored["curve"]] == [4, 6]
    assert stored["heldout"]["all"]["num"] == 20
    assert load_mask_codec(path).config.num_codes == 16


def test_figures_of_a_codec_with_one_codeword_say_so(few_masks: MaskSet) -> None:
    codec = train_mask_codec(
        MaskCodecTraining(**{**vars(TINY), "steps": 3, "num_codes": 1}), masks=few_masks
    )
    figures = measure_mask_codec(codec, few_masks, shifted=few_masks)["all"]
    assert figures["perplexity"] == 1.0
    assert figures["perplexity_by_cell"] == 1.0
    assert figures["num_live"] == 1
    assert figures["stable"] == 1.0


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"steps": 0}, "steps"), ({"batch_size": 0}, "batch_size"), ({"warmup_steps": 80}, "warmup")],
)
def test_impossible_options_are_refused_by_name(changes: dict[str, int], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        MaskCodecTraining(**{**vars(TINY), **changes})


def test_the_embedded_codec_rebuilds_masks_of_unseen_handwriting_and_signs(
    heldout: MaskSet,
) -> None:
    codec = load_mask_codec(EMBEDDED)
    figures = measure_mask_codec(codec, heldout)
    assert figures["all"]["iou"] > 0.93
    assert figures["digit"]["iou"] > 0.8
    assert figures["sign"]["iou"] > 0.95


def test_the_embedded_codec_is_the_one_its_record_describes() -> None:
    record = json.loads(EMBEDDED.with_suffix(".json").read_text())
    codec = load_mask_codec(EMBEDDED)
    assert record["options"]["num_codes"] == codec.config.num_codes
    assert record["num_parameters"] == sum(p.numel() for p in codec.parameters())
    assert EMBEDDED.stat().st_size < 1_200_000
