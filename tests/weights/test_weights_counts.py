"""Parameter counts and npz arrays of the published architecture, on the meta device."""

from __future__ import annotations

import math

import pytest

from paligemma.config import PaliGemmaConfig, release_config
from paligemma.weights.big_vision import big_vision_name, rows
from paligemma.weights.shapes import parameter_shapes

# Source: keras-hub's presets, as collected in the reference document, section 1.
TOTALS = {
    ("gemma_2b", 224): 2_923_335_408,
    ("gemma_2b", 448): 2_924_220_144,
    ("gemma_2b", 896): 2_927_759_088,
    ("gemma2_2b", 224): 3_032_094_960,
    ("gemma2_2b", 448): 3_032_979_696,
    ("gemma2_2b", 896): 3_036_518_640,
    ("gemma2_9b", 224): 9_662_409_456,
    ("gemma2_9b", 448): 9_663_294_192,
    ("gemma2_9b", 896): 9_666_833_136,
    ("gemma2_27b", 224): 27_650_192_112,
    ("gemma2_27b", 448): 27_651_076_848,
    ("gemma2_27b", 896): 27_654_615_792,
}
TOWERS = {224: 412_442_352, 448: 413_327_088, 896: 416_866_032}
DECODERS = {
    "gemma_2b": 2_508_531_712,
    "gemma2_2b": 2_616_996_096,
    "gemma2_9b": 9_245_834_752,
    "gemma2_27b": 27_232_436_736,
}
# L, N, K, W, H, M
CONCRETE = {
    "gemma_2b": (18, 8, 1, 2048, 256, 16384),
    "gemma2_2b": (26, 8, 4, 2304, 256, 9216),
    "gemma2_9b": (42, 16, 8, 3584, 256, 14336),
    "gemma2_27b": (46, 32, 16, 4608, 128, 36864),
}


def count(config: PaliGemmaConfig, prefix: str = "") -> int:
    shapes = parameter_shapes(config)
    return sum(math.prod(s) for name, s in shapes.items() if name.startswith(prefix))


@pytest.mark.parametrize(("text", "size_px"), TOTALS)
def test_every_published_size_and_resolution_has_its_number_of_parameters(
    text: str, size_px: int
) -> None:
    assert count(release_config(text, size_px)) == TOTALS[text, size_px]


@pytest.mark.parametrize("size_px", TOWERS)
def test_the_tower_alone_grows_only_by_its_position_table(size_px: int) -> None:
    assert count(release_config("gemma_2b", size_px), "vision.") == TOWERS[size_px]


@pytest.mark.parametrize("text", DECODERS)
def test_the_decoder_and_the_projector_alone_have_their_numbers_of_parameters(text: str) -> None:
    config = release_config(text, 224)
    assert count(config, "text.") == DECODERS[text]
    assert count(config, "projector.") == 1152 * config.text.width + config.text.width


@pytest.mark.parametrize("text", CONCRETE)
def test_the_arrays_of_an_npz_are_those_of_the_original(text: str) -> None:
    layers, n, k, w, h, m = CONCRETE[text]
    block = "img/Transformer/encoderblock/"
    attn = block + "MultiHeadDotProductAttention_0/"
    expected = {
        "img/embedding/kernel": (14, 14, 3, 1152),
        "img/embedding/bias": (1152,),
        "img/pos_embedding": (1, 1024, 1152),
        block + "LayerNorm_0/scale": (27, 1152),
        block + "LayerNorm_0/bias": (27, 1152),
        block + "LayerNorm_1/scale": (27, 1152),
        block + "LayerNorm_1/bias": (27, 1152),
        attn + "query/kernel": (27, 1152, 16, 72),
        attn + "query/bias": (27, 16, 72),
        attn + "key/kernel": (27, 1152, 16, 72),
        attn + "key/bias": (27, 16, 72),
        attn + "value/kernel": (27, 1152, 16, 72),
        attn + "value/bias": (27, 16, 72),
        attn + "out/kernel": (27, 16, 72, 1152),
        attn + "out/bias": (27, 1152),
        block + "MlpBlock_0/Dense_0/kernel": (27, 1152, 4304),
        block + "MlpBlock_0/Dense_0/bias": (27, 4304),
        block + "MlpBlock_0/Dense_1/kernel": (27, 4304, 1152),
        block + "MlpBlock_0/Dense_1/bias": (27, 1152),
        "img/Transformer/encoder_norm/scale": (1152,),
        "img/Transformer/encoder_norm/bias": (1152,),
        "img/head/kernel": (1152, w),
        "img/head/bias": (w,),
        "llm/embedder/input_embedding": (257152, w),
        "llm/layers/attn/q_einsum/w": (layers, n, w, h),
        "llm/layers/attn/kv_einsum/w": (layers, 2, k, w, h),
        "llm/layers/attn/attn_vec_einsum/w": (layers, n, h, w),
        "llm/layers/mlp/gating_einsum": (layers, 2, w, m),
        "llm/layers/mlp/linear": (layers, m, w),
        "llm/layers/pre_attention_norm/scale": (layers, w),
        "llm/layers/pre_ffw_norm/scale": (layers, w),
        "llm/final_norm/scale": (w,),
    }
    if text != "gemma_2b":
        expected["llm/layers/post_attention_norm/scale"] = (layers, w)
        expected["llm/layers/post_ffw_norm/scale"] = (layers, w)
    config = release_config(text, 448)
    assert {row.key: row.shape(config) for row in rows(config)} == expected


def test_every_parameter_has_the_original_s_name() -> None:
    config = release_config("gemma2_2b", 224)
    named = {big_vision_name(name) for name in parameter_shapes(config)}
    assert named == {row.key for row in rows(config)}
    assert big_vision_name("text.blocks.25.attn.v.weight") == "llm/layers/attn/kv_einsum/w"
    assert (
        big_vision_name("vision.blocks.3.mlp.fc1.weight")
        == "img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel"
    )
    with pytest.raises(KeyError):
        big_vision_name("text.blocks.0.attn.q.lora_a")
