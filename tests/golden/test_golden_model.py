"""The model against the original's own numbers (tests/golden/data/README.md).

No tolerance is written here: float64 says how far the original's own float32 strays.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_set import (
    Decoding,
    GoldenModel,
    assert_within_rounding,
    compare_choices,
    load_arrays,
    top_margins,
)
from reference import resized_position_table, round_to_bfloat16
from torch import Tensor

from paligemma.model import PaliGemmaModel
from paligemma.model.attention import prefix_lm_mask
from paligemma.model.siglip import resize_position_table


@dataclass
class Forward:
    """One batch through the model, beside the original's arrays and float64.

    Attributes:
        model: ours.
        original: arrays of the file.
        exact: name of an array -> its float64.
    """

    model: PaliGemmaModel
    original: dict[str, np.ndarray]
    exact: dict[str, np.ndarray]

    def tensor(self, key: str) -> Tensor:
        tensor = torch.from_numpy(self.original[key])
        return tensor.long() if tensor.dtype == torch.int32 else tensor

    def compare(self, ours: Tensor, key: str) -> None:
        assert_within_rounding(ours.detach(), self.original[key], self.exact[key], what=key)


@pytest.fixture
def forward(gold: GoldenModel) -> Forward:
    original = gold.arrays("forward")
    oracle = gold.oracle()
    rows = zip(original["image"], original["text"], original["mask_ar"], strict=True)
    steps = []
    for image, text, mask_ar in rows:
        seen = oracle.image_steps(image)
        steps.append(seen | oracle.text_steps(seen["zimg"], text, mask_ar))
    exact = {key: np.array([row[key] for row in steps]) for key in steps[0]}
    cap = gold.settings["llm"]["final_logits_softcap"]
    logits = exact["text_logits"][:, -original["full_logits"].shape[1] :]
    exact["full_logits"] = cap * np.tanh(logits / cap) if cap else logits
    return Forward(gold.model(), original, exact)


@pytest.fixture
def video(gold: GoldenModel) -> Forward:
    original = {
        key.removeprefix("video_"): array
        for key, array in gold.arrays("forward").items()
        if key.startswith("video_")
    }
    oracle = gold.oracle()
    soft = np.array([oracle.soft_tokens(frames) for frames in original["image"]])
    rows = zip(soft, original["text"], original["mask_ar"], strict=True)
    steps = [oracle.text_steps(*row) for row in rows]
    exact = {key: np.array([row[key] for row in steps]) for key in steps[0]}
    return Forward(gold.model(), original, exact | {"zimg": soft})


def mask_over_images(forward: Forward, num_frames: int) -> np.ndarray:
    ar = forward.tensor("mask_ar")
    image = ar.new_zeros(ar.shape[0], num_frames * forward.model.config.num_image_tokens)
    return prefix_lm_mask(torch.cat((image, ar), dim=1)).numpy()


def test_the_mask_over_image_and_text_is_the_original_s(forward: Forward) -> None:
    assert np.array_equal(mask_over_images(forward, 1), forward.original["attn_mask"])


def test_the_mask_of_several_frames_is_the_original_s(video: Forward) -> None:
    mask = mask_over_images(video, video.original["image"].shape[1])
    packed = np.packbits(mask, axis=-1)
    assert np.array_equal(packed, video.original["attn_mask_packed"])


def test_arbitrary_input_and_ar_masks_give_the_original_s_mask(forward: Forward) -> None:
    mask = prefix_lm_mask(forward.tensor("maskcase_ar"), forward.tensor("maskcase_input"))
    assert torch.equal(mask, forward.tensor("maskcase_out"))


def test_the_tower_agrees_step_by_step(forward: Forward) -> None:
    tower, image = forward.model.vision, forward.tensor("image")
    with torch.no_grad():
        x = tower.patch_embed(image) + tower.pos_embedding
        block = tower.blocks[0]
        forward.compare(x, "img_with_posemb")
        forward.compare(block.attn(block.norm1(x)), "img_block0_sa")
        forward.compare(block(x), "img_block0_out")
        forward.compare(tower(image), "img_encoded")
        forward.compare(forward.model.encode_image(image), "zimg")


def test_text_embeddings_are_the_original_s(forward: Forward) -> None:
    forward.compare(forward.model.text.embed_tokens(forward.tensor("text")), "ztxt")


def hidden_states(forward: Forward) -> tuple[Tensor, Tensor]:
    """All positions before and after the final norm: float[B, I+T, D] twice."""
    model, before = forward.model, []
    hook = model.text.norm.register_forward_pre_hook(lambda _, inputs: before.append(inputs[0]))
    with torch.no_grad():
        soft = model.encode_image(forward.tensor("image"))
        x, mask, _ = model._join(soft, forward.tensor("text"), forward.tensor("mask_ar"), None)
        after = model.text(x, torch.arange(x.shape[1]).expand(x.shape[:2]), mask)
    hook.remove()
    return before[0], after


def logits_of(forward: Forward, **options: bool) -> Tensor:
    with torch.no_grad():
        soft = forward.model.encode_image(forward.tensor("image"))
        return forward.model(soft, forward.tensor("text"), forward.tensor("mask_ar"), **options)


def test_the_decoder_agrees_before_and_after_its_final_norm(forward: Forward) -> None:
    before, after = hidden_states(forward)
    forward.compare(before, "llm_encoded")
    forward.compare(after, "pre_logits")


def test_training_logits_agree_and_are_never_capped(forward: Forward) -> None:
    logits = logits_of(forward)
    forward.compare(logits, "text_logits")
    original = forward.original["text_logits"]
    noise = 2 * np.abs(original - forward.exact["text_logits"]).max()
    tokens = forward.original["text_tokens"]
    compare_choices(logits.argmax(-1), tokens, top_margins(original), noise).report()


def test_logits_of_the_complete_forward_are_capped_where_the_model_has_a_cap(
    forward: Forward,
) -> None:
    logits = logits_of(forward, final_softcap=True)
    forward.compare(logits[:, -forward.original["full_logits"].shape[1] :], "full_logits")


def test_several_frames_agree_through_the_whole_model(video: Forward) -> None:
    video.compare(video.model.encode_image(video.tensor("image")), "zimg")
    video.compare(hidden_states(video)[1], "pre_logits")
    video.compare(logits_of(video), "text_logits")


def test_bfloat16_weights_in_float32_agree_when_only_the_embedding_factor_is_rounded(
    gold: GoldenModel,
) -> None:
    if gold.has("params_bf16"):
        model, weights = gold.model("params_bf16"), gold.weights("params_bf16")
    else:
        weights = {key: round_to_bfloat16(array) for key, array in gold.weights().items()}
        model = gold.model()
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16().float()
        model.text.set_embed_scale(torch.bfloat16)
    scale = round_to_bfloat16(np.sqrt(gold.settings["llm"]["width"]))
    oracle = gold.oracle(weights, embed_scale=float(scale))
    inputs = gold.arrays("forward")
    soft = np.array([oracle.soft_tokens(image) for image in inputs["image"]])
    steps = [
        oracle.text_steps(*row) for row in zip(soft, inputs["text"], inputs["mask_ar"], strict=True)
    ]
    exact = {key: np.array([row[key] for row in steps]) for key in ("ztxt", "text_logits")}
    forward = Forward(model, inputs | gold.arrays("forward_bf16"), exact | {"zimg": soft})
    forward.compare(model.text.embed_tokens(forward.tensor("text")), "ztxt")
    forward.compare(model.encode_image(forward.tensor("image")), "zimg")
    forward.compare(logits_of(forward), "text_logits")


def cached_steps(decoding: Decoding) -> np.ndarray:
    """Our logits float32[S, N, V] along the original's greedy ids of the real rows."""
    real = decoding.real()
    ids = torch.from_numpy(decoding.array("greedy_ids")[real]).long()
    batch, model = decoding.batch(), decoding.model()
    tokens, ar, valid = (x[real] for x in (batch.tokens, batch.mask_ar, batch.mask_input))
    num_steps = len(decoding.array("step_logits"))
    with torch.no_grad():
        soft = model.encode_image(batch.images[real])
        capacity = soft.shape[1] + tokens.shape[1] + num_steps
        cache = model.new_cache(len(tokens), capacity, getattr(torch, decoding.kv_cache_dtype))
        logits, positions = model.prefill(soft, tokens, ar, valid, cache)
        every = [logits]
        for step in range(num_steps - 1):
            every.append(model.decode_step(ids[:, step], positions + step, cache))
    return torch.stack(every).numpy()


# Float32 noise in a key or value beside a rounding boundary of bfloat16 becomes a whole step of it,
# in the original and in ours: such a cache has a noise of its own, far above that of float32.
STEP_NOISE = {"float32": 2e-4, "bfloat16": 2e-3}


def test_cached_steps_give_the_original_s_logits(decoding: Decoding) -> None:
    original = decoding.array("step_logits")
    ids = decoding.array("greedy_ids")[decoding.real()]
    exact = decoding.exact_logits(ids)[:, : len(original)].swapaxes(0, 1)
    ours = cached_steps(decoding)
    assert_within_rounding(ours, original, exact, noise=STEP_NOISE[decoding.kv_cache_dtype])


def test_position_tables_are_resized_as_the_original_does(golden_dir: Path) -> None:
    arrays = load_arrays(golden_dir / "posemb.npz")
    for key in arrays:
        if key.startswith("in_"):
            original = arrays[key.replace("in_", "out_")]
            table, num_tokens = arrays[key], original.shape[1]
            ours = resize_position_table(torch.from_numpy(table), num_tokens)
            exact = resized_position_table(table, num_tokens)
            assert_within_rounding(ours, original, exact, what=key)
