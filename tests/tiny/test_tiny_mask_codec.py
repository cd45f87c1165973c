import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paligemma.errors import CheckpointError, ConfigError
from paligemma.outputs.vqvae import MaskCodec, MaskCodecConfig, load_mask_codec
from paligemma.scenes import LABELS, SceneOptions, draw_scene
from paligemma.tiny.mask_codec import (
    MaskCodecTraining,
    MaskSource,
    train_codec_file,
    train_mask_codec,
)
from paligemma.tiny.mask_codec_scores import measure_mask_codec
from paligemma.tiny.mask_set import MaskSet, collect_masks

EMBEDDED = Path(__file__).parents[2] / "src/paligemma/models/tiny/mask_codec.safetensors"
TINY = MaskCodecTraining(
    steps=40,
    batch_size=8,
    num_masks=48,
    channels=(8, 8, 16),
    hidden=16,
    code_dim=8,
    num_codes=16,
    learning_rate=1e-2,
    warmup_steps=2,
    decay=0.8,
)


@pytest.fixture(scope="module")
def few_masks() -> MaskSet:
    return collect_masks(48, first_scene=7)


def curve(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_loss_falls_and_metrics_say_what_was_learnt(few_masks: MaskSet, tmp_path: Path) -> None:
    codec = train_mask_codec(TINY, tmp_path, masks=few_masks)
    lines = curve(tmp_path)
    assert [line["step"] for line in lines] == list(range(2, 41, 2))
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert lines[-1]["iou"] > lines[0]["iou"]
    assert 1 < lines[-1]["codes"] <= 16
    assert not codec.training


def test_a_seed_decides_the_codec_and_leaves_the_global_generator_alone(
    few_masks: MaskSet, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    short = replace(TINY, steps=4)
    first, again = (
        train_mask_codec(short, tmp_path / name, masks=few_masks).state_dict() for name in "ab"
    )
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = train_mask_codec(replace(short, seed=1), tmp_path / "c", masks=few_masks).state_dict()
    assert not torch.equal(first["encoder.0.weight"], other["encoder.0.weight"])


def test_the_loop_makes_the_updates_of_the_recipe_written_out(
    few_masks: MaskSet, tmp_path: Path
) -> None:
    # No codeword is moved, which alone would draw.
    options = replace(TINY, steps=6, reseed_below=0.0)
    found = train_mask_codec(options, tmp_path, masks=few_masks).state_dict()
    torch.manual_seed(options.seed)
    codec = MaskCodec(
        MaskCodecConfig(channels=options.channels, hidden=16, code_dim=8, num_codes=16)
    )
    optimizer = torch.optim.AdamW(codec.parameters(), weight_decay=0.0)
    for step in range(6):
        masks = MaskSource(options, few_masks).batch(step).masks.float() / 255
        out = codec.train()(masks)
        loss = (out.reconstruction - 2 * masks + 1).square().mean() + 0.25 * out.commitment_loss
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            cosine = 0.5 + 0.5 * np.cos(np.pi * max(step - 2, 0) / 4)
            group["lr"] = 1e-2 * cosine * min(1.0, step / 2)
        optimizer.step()
        codec.update_codebook(out.latents, out.codes, decay=0.8)
    for name, expected in codec.state_dict().items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5)


def test_a_pass_shows_every_mask_once_and_codewords_are_moved_in_the_first_half(
    few_masks: MaskSet,
) -> None:
    source = MaskSource(TINY, few_masks)
    first, second = ([source.batch(6 * k + step).masks for step in range(6)] for k in (0, 1))
    shown = torch.cat(first).flatten(1).numpy()
    whole = few_masks.masks.reshape(48, -1)
    np.testing.assert_array_equal(np.unique(shown, axis=0), np.unique(whole, axis=0))
    assert not torch.equal(torch.cat(first), torch.cat(second))
    assert [source.batch(step).reseed_below for step in (0, 19, 20, 39)] == [0.5, 0.5, 0, 0]


def test_what_is_moved_is_drawn_by_the_step_alone(few_masks: MaskSet, tmp_path: Path) -> None:
    """A run that is cut at any checkpoint ends as the whole one: weights, codebook, metrics."""
    options = replace(TINY, steps=20, reseed_below=4.0)
    whole = train_mask_codec(options, tmp_path / "whole", masks=few_masks).state_dict()
    unmoved = replace(options, reseed_below=0.0)
    other = train_mask_codec(unmoved, tmp_path / "unmoved", masks=few_masks).state_dict()
    assert not torch.equal(whole["_vq_vae._embedding"], other["_vq_vae._embedding"])
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "step_0000020")
    torch.manual_seed(99)
    cut = train_mask_codec(options, tmp_path / "cut", masks=few_masks).state_dict()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    learnt = ("step", "loss", "iou", "codes", "grad_norm")
    found, expected = (
        [[line[name] for name in learnt] for line in curve(tmp_path / which)]
        for which in ("cut", "whole")
    )
    assert found == expected


def test_other_masks_or_options_make_it_another_training(
    few_masks: MaskSet, tmp_path: Path
) -> None:
    options = replace(TINY, steps=2, warmup_steps=1)
    train_mask_codec(options, tmp_path, masks=few_masks)
    masks = replace(few_masks, masks=few_masks.masks[::-1].copy())
    with pytest.raises(CheckpointError, match="but masks changed"):
        train_mask_codec(options, tmp_path, masks=masks)
    with pytest.raises(CheckpointError, match="but learning_rate, optim changed"):
        train_mask_codec(replace(options, learning_rate=1e-4), tmp_path, masks=few_masks)


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
    options = replace(TINY, steps=6)
    record = train_codec_file(path, options, command="train it", num_heldout=20)
    stored = json.loads(path.with_suffix(".json").read_text())
    assert stored == json.loads(json.dumps(record))
    assert stored["command"] == "train it"
    assert [point["step"] for point in stored["curve"]] == [1, 2, 3, 4, 5, 6]
    assert stored["curve"][-1].keys() == {"step", "loss", "iou", "codes"}
    assert stored["heldout"]["all"]["num"] == 20
    assert load_mask_codec(path).config.num_codes == 16


def test_figures_of_a_codec_with_one_codeword_say_so(few_masks: MaskSet, tmp_path: Path) -> None:
    codec = train_mask_codec(replace(TINY, steps=3, num_codes=1), tmp_path, masks=few_masks)
    figures = measure_mask_codec(codec, few_masks, shifted=few_masks)["all"]
    assert figures["perplexity"] == 1.0
    assert figures["perplexity_by_cell"] == 1.0
    assert figures["num_live"] == 1
    assert figures["stable"] == 1.0


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"steps": 0}, "steps"), ({"batch_size": 0}, "batch_size"), ({"warmup_steps": 40}, "warmup")],
)
def test_impossible_options_are_refused_by_name(changes: dict[str, int], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        replace(TINY, **changes)


def test_the_embedded_codec_rebuilds_masks_of_unseen_handwriting_signs_and_things() -> None:
    seen = collect_masks(160, split="heldout", first_scene=900, thing_share=0.5)
    figures = measure_mask_codec(load_mask_codec(EMBEDDED), seen)
    least = {
        "all": 0.915,
        "digit": 0.89,
        "thing": 0.885,
        "sign": 0.99,
        "star": 0.91,
        "circle": 0.97,
    }
    assert {name: figures[name]["iou"] >= bound for name, bound in least.items()} == dict.fromkeys(
        least, True
    )


def test_the_embedded_codec_is_the_one_its_record_describes() -> None:
    record = json.loads(EMBEDDED.with_suffix(".json").read_text())
    codec = load_mask_codec(EMBEDDED)
    assert record["options"]["num_codes"] == codec.config.num_codes
    assert record["heldout"]["thing"]["num"] > 500
    assert record["num_parameters"] == sum(p.numel() for p in codec.parameters())
    assert EMBEDDED.stat().st_size < 1_200_000
