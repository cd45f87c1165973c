"""The safetensors layout: names, rows, both ways, and its config.json."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paligemma.config import release_config
from paligemma.errors import CheckpointError, ConfigError
from paligemma.model import PaliGemmaModel
from paligemma.weights import catalog
from paligemma.weights.hf import HFReader, bare_name, spell, unspell
from paligemma.weights.hf_config import config_from_hf, hf_config
from paligemma.weights.load import load_model
from paligemma.weights.save import convert, save_model
from paligemma.weights.shapes import parameter_shapes

generations = pytest.mark.parametrize("generation", [1, 2])
spellings = pytest.mark.parametrize("spelling", ["published", "current"])
dtypes = pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])


def same(first: PaliGemmaModel, second: PaliGemmaModel) -> bool:
    """Bit by bit, names and dtypes included."""
    a, b = dict(first.named_parameters()), dict(second.named_parameters())
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype
        and torch.equal(a[n].contiguous().view(torch.uint8), b[n].contiguous().view(torch.uint8))
        for n in a
    )


@generations
@spellings
@dtypes
def test_a_model_survives_safetensors_bit_by_bit(
    make_config, make_model, tmp_path: Path, generation: int, spelling: str, dtype: str
) -> None:
    model = make_model(make_config(generation)).to(getattr(torch, dtype))
    save_model(model, tmp_path / "a", spelling=spelling)
    loaded = load_model(tmp_path / "a")
    assert loaded.config == model.config
    assert same(loaded, model)
    save_model(loaded, tmp_path / "b", spelling=spelling)
    first = (tmp_path / "a" / "model.safetensors").read_bytes()
    assert first == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_published_names_of_both_generations_are_these() -> None:
    layer = "language_model.model.layers.3."
    second = {
        "vision.patch_embed.proj.weight": "vision_tower.vision_model.embeddings.patch_embedding"
        ".weight",
        "vision.pos_embedding": "vision_tower.vision_model.embeddings.position_embedding.weight",
        "vision.blocks.26.norm1.bias": "vision_tower.vision_model.encoder.layers.26.layer_norm1"
        ".bias",
        "vision.blocks.0.attn.out.weight": "vision_tower.vision_model.encoder.layers.0.self_attn"
        ".out_proj.weight",
        "vision.norm.weight": "vision_tower.vision_model.post_layernorm.weight",
        "projector.bias": "multi_modal_projector.linear.bias",
        "text.embed.weight": "language_model.model.embed_tokens.weight",
        "text.blocks.3.attn.out.weight": layer + "self_attn.o_proj.weight",
        "text.blocks.3.mlp.gate.weight": layer + "mlp.gate_proj.weight",
        "text.blocks.3.pre_attn_norm.scale": layer + "input_layernorm.weight",
        "text.blocks.3.post_attn_norm.scale": layer + "post_attention_layernorm.weight",
        "text.blocks.3.pre_ffw_norm.scale": layer + "pre_feedforward_layernorm.weight",
        "text.blocks.3.post_ffw_norm.scale": layer + "post_feedforward_layernorm.weight",
        "text.norm.scale": "language_model.model.norm.weight",
    }
    for ours, published in second.items():
        assert spell(bare_name(ours, 2), "published") == published
    # In the first generation the norm before the feed-forward part bears another's name.
    assert (
        spell(bare_name("text.blocks.3.pre_ffw_norm.scale", 1), "published")
        == layer + "post_attention_layernorm.weight"
    )


def test_the_three_spellings_of_a_name_are_one() -> None:
    for spelt in (
        "language_model.model.layers.0.mlp.up_proj.weight",
        "model.language_model.layers.0.mlp.up_proj.weight",
    ):
        assert unspell(spelt) == "language_model.layers.0.mlp.up_proj.weight"
    for spelt in (
        "vision_tower.vision_model.post_layernorm.bias",
        "model.vision_tower.vision_model.post_layernorm.bias",
        "model.vision_tower.post_layernorm.bias",
    ):
        assert unspell(spelt) == "vision_tower.post_layernorm.bias"
    assert unspell("language_model.lm_head.weight") == unspell("lm_head.weight") == "lm_head.weight"


@generations
def test_every_name_is_spelt_and_read_back(generation: int) -> None:
    config = release_config("gemma_2b" if generation == 1 else "gemma2_2b", 224)
    bare = [bare_name(name, generation) for name in parameter_shapes(config)]
    assert len(set(bare)) == len(bare)
    for spelling in ("published", "current"):
        assert [unspell(spell(name, spelling)) for name in bare] == bare


@generations
def test_npz_to_safetensors_follows_the_published_key_map(
    make_config, make_model, tmp_path: Path, generation: int
) -> None:
    config = make_config(generation)
    save_model(make_model(config), tmp_path / "npz", layout="npz")
    convert(tmp_path / "npz", tmp_path / "hf")
    import numpy as np

    with np.load(tmp_path / "npz" / "model.npz") as file:
        bv = {key.removeprefix("params/"): torch.from_numpy(file[key]) for key in file.files}
    got = load_file(tmp_path / "hf" / "model.safetensors")
    block, attn = "img/Transformer/encoderblock/", "MultiHeadDotProductAttention_0/"
    v, t = "vision_tower.vision_model.", "language_model.model."
    want = {
        v + "embeddings.patch_embedding.weight": bv["img/embedding/kernel"].permute(3, 2, 0, 1),
        v + "embeddings.patch_embedding.bias": bv["img/embedding/bias"],
        v + "embeddings.position_embedding.weight": bv["img/pos_embedding"].reshape(4, 24),
        v + "post_layernorm.weight": bv["img/Transformer/encoder_norm/scale"],
        v + "post_layernorm.bias": bv["img/Transformer/encoder_norm/bias"],
        "multi_modal_projector.linear.weight": bv["img/head/kernel"].T,
        "multi_modal_projector.linear.bias": bv["img/head/bias"],
        t + "embed_tokens.weight": bv["llm/embedder/input_embedding"],
        t + "norm.weight": bv["llm/final_norm/scale"],
    }
    for i in range(2):
        to = f"{v}encoder.layers.{i}."
        for theirs, key in (("layer_norm1", "LayerNorm_0"), ("layer_norm2", "LayerNorm_1")):
            want[f"{to}{theirs}.weight"] = bv[f"{block}{key}/scale"][i]
            want[f"{to}{theirs}.bias"] = bv[f"{block}{key}/bias"][i]
        for theirs, key in (("q", "query"), ("k", "key"), ("v", "value")):
            kernel = bv[f"{block}{attn}{key}/kernel"][i]
            want[f"{to}self_attn.{theirs}_proj.weight"] = kernel.reshape(24, 24).T
            want[f"{to}self_attn.{theirs}_proj.bias"] = bv[f"{block}{attn}{key}/bias"][i].flatten()
        out = bv[f"{block}{attn}out/kernel"][i]
        want[f"{to}self_attn.out_proj.weight"] = out.reshape(24, 24).T
        want[f"{to}self_attn.out_proj.bias"] = bv[f"{block}{attn}out/bias"][i]
        for theirs, key in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
            want[f"{to}mlp.{theirs}.weight"] = bv[f"{block}MlpBlock_0/{key}/kernel"][i].T
            want[f"{to}mlp.{theirs}.bias"] = bv[f"{block}MlpBlock_0/{key}/bias"][i]
    for i in range(3):
        to, llm = f"{t}layers.{i}.", "llm/layers/"
        q, kv = bv[llm + "attn/q_einsum/w"][i], bv[llm + "attn/kv_einsum/w"][i]
        want[to + "self_attn.q_proj.weight"] = q.permute(0, 2, 1).reshape(-1, 32)
        want[to + "self_attn.k_proj.weight"] = kv[0].permute(0, 2, 1).reshape(-1, 32)
        want[to + "self_attn.v_proj.weight"] = kv[1].permute(0, 2, 1).reshape(-1, 32)
        out = bv[llm + "attn/attn_vec_einsum/w"][i]
        want[to + "self_attn.o_proj.weight"] = out.permute(2, 0, 1).reshape(32, -1)
        want[to + "mlp.gate_proj.weight"] = bv[llm + "mlp/gating_einsum"][i, 0].T
        want[to + "mlp.up_proj.weight"] = bv[llm + "mlp/gating_einsum"][i, 1].T
        want[to + "mlp.down_proj.weight"] = bv[llm + "mlp/linear"][i].T
        want[to + "input_layernorm.weight"] = bv[llm + "pre_attention_norm/scale"][i]
        pre_ffw = bv[llm + "pre_ffw_norm/scale"][i]
        if generation == 1:
            want[to + "post_attention_layernorm.weight"] = pre_ffw
        else:
            post = bv[llm + "post_attention_norm/scale"][i]
            want[to + "post_attention_layernorm.weight"] = post
            want[to + "pre_feedforward_layernorm.weight"] = pre_ffw
            post = bv[llm + "post_ffw_norm/scale"][i]
            want[to + "post_feedforward_layernorm.weight"] = post
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], want[key]) for key in want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_converting_there_and_back_gives_the_same_file(
    make_config, make_model, tmp_path: Path, dtype: str
) -> None:
    model = make_model(make_config(2))
    save_model(model, tmp_path / "npz", layout="npz", dtype=dtype)
    convert(tmp_path / "npz", tmp_path / "hf", max_shard_bytes=20_000)
    convert(tmp_path / "hf", tmp_path / "again", layout="npz")
    convert(tmp_path / "again", tmp_path / "copy", layout="npz")
    first = (tmp_path / "npz" / "model.npz").read_bytes()
    assert first == (tmp_path / "again" / "model.npz").read_bytes()
    assert first == (tmp_path / "copy" / "model.npz").read_bytes()


def test_shards_are_bounded_and_the_safetensors_package_reads_them(
    make_config, make_model, tmp_path: Path
) -> None:
    model = make_model(make_config(2))
    save_model(model, tmp_path / "hf", max_shard_bytes=60_000)
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert all((tmp_path / "hf" / file).stat().st_size < 70_000 for file in files)
    tensors = {}
    for file in files:
        part = load_file(tmp_path / "hf" / file)
        assert all(index["weight_map"][key] == file for key in part)
        tensors |= part
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert same(load_model(tmp_path / "hf"), model)


def test_padding_rows_are_written_on_demand_never_win_and_are_dropped_on_reading(
    make_config, make_model, tmp_path: Path
) -> None:
    model = make_model(make_config(1))
    save_model(model, tmp_path / "hf", pad_rows=True)
    table = load_file(tmp_path / "hf" / "model.safetensors")[
        "language_model.model.embed_tokens.weight"
    ]
    assert table.shape == (192, 32)
    logits = torch.randn(100, 32, generator=torch.Generator().manual_seed(0)) @ table.T
    assert int(logits.argmax(-1).max()) < 130
    loaded = load_model(tmp_path / "hf")
    assert loaded.config == model.config
    assert same(loaded, model)


def rewrite(folder: Path, change) -> None:
    """Apply `change` to the tensors of a folder's only file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({k: t.contiguous() for k, t in tensors.items()}, folder / "model.safetensors")


def test_a_published_table_of_more_rows_than_padding_explains_is_misshaped(
    make_config, make_model, tmp_path: Path
) -> None:
    save_model(make_model(make_config(1)), tmp_path / "hf")
    key = "language_model.model.embed_tokens.weight"
    rewrite(tmp_path / "hf", lambda t: t.update({key: torch.zeros(130 + 65, 32)}))
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight should be \(130, 32\)"):
        load_model(tmp_path / "hf")


@pytest.mark.parametrize("key", ["language_model.lm_head.weight", "lm_head.weight"])
def test_a_head_is_a_table_of_its_own_only_where_a_token_s_row_differs(
    make_config, make_model, tmp_path: Path, caplog, key: str
) -> None:
    model = make_model(make_config(2))
    save_model(model, tmp_path / "hf", pad_rows=True)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    table = load_file(tmp_path / "hf" / "model.safetensors")[
        "language_model.model.embed_tokens.weight"
    ]
    assert len(table) == 192
    for row, is_own in ((191, False), (130, False), (129, True), (77, True)):
        head = table.clone()
        head[row] += 1
        rewrite(tmp_path / "hf", lambda t, head=head: t.update({key: head}))
        for ties in (True, False):
            caplog.clear()
            body = json.dumps(config | {"tie_word_embeddings": ties})
            (tmp_path / "hf" / "config.json").write_text(body)
            loaded = load_model(tmp_path / "hf")
            assert torch.equal(loaded.text.embed.weight, table[:130])
            assert loaded.config.text.tied_head is not is_own
            assert ("differs from the embedding in 1 rows" in caplog.text) == (is_own and ties)
            if is_own:
                assert torch.equal(loaded.text.embed.head, head[:130])


def test_a_head_of_its_own_answers_and_is_saved(make_config, make_model, tmp_path: Path) -> None:
    model = make_model(make_config(1, tied_head=False))
    x = torch.ones(1, 32)
    assert torch.allclose(model.text.logits(x), model.text.embed.head.sum(dim=1))
    save_model(model, tmp_path / "a", pad_rows=True)
    convert(tmp_path / "a", tmp_path / "b", spelling="current")
    for folder in ("a", "b"):
        loaded = load_model(tmp_path / folder)
        assert loaded.config == model.config
        assert same(loaded, model)
        body = json.loads((tmp_path / folder / "config.json").read_text())
        assert body["tie_word_embeddings"] is body["text_config"]["tie_word_embeddings"] is False
    with pytest.raises(CheckpointError, match="this model's head differs; write the layout hf"):
        convert(tmp_path / "a", tmp_path / "c", layout="npz")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("left", ["language_model.lm_head.weight", "embed_tokens"])
def test_an_untied_head_needs_both_tables(make_config, make_model, tmp_path, left: str) -> None:
    save_model(make_model(make_config(2, tied_head=False)), tmp_path / "hf")
    rewrite(tmp_path / "hf", lambda t: [t.pop(key) for key in list(t) if left in key])
    with pytest.raises(CheckpointError, match=r"does not tie .* lacks lm_head\.weight or the emb"):
        load_model(tmp_path / "hf")


def test_buffers_of_old_files_are_passed_over(make_config, make_model, tmp_path: Path) -> None:
    model = make_model(make_config(1))
    save_model(model, tmp_path / "hf")
    buffers = {
        "vision_tower.vision_model.embeddings.position_ids": torch.arange(4)[None],
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6),
    }
    rewrite(tmp_path / "hf", lambda t: t.update(buffers))
    assert same(load_model(tmp_path / "hf"), model)


def test_one_tensor_in_two_spellings_is_refused(make_config, make_model, tmp_path: Path) -> None:
    save_model(make_model(make_config(1)), tmp_path / "hf")
    key = "model.language_model.norm.weight"
    rewrite(tmp_path / "hf", lambda t: t.update({key: torch.zeros(32)}))
    with pytest.raises(CheckpointError, match="each tensor must appear once"):
        HFReader([tmp_path / "hf" / "model.safetensors"])


def test_quantised_tensors_are_refused_by_name(make_config, make_model, tmp_path: Path) -> None:
    save_model(make_model(make_config(1)), tmp_path / "hf")
    key = "language_model.model.norm.weight"
    rewrite(tmp_path / "hf", lambda t: t.update({key: torch.zeros(32, dtype=torch.int8)}))
    with pytest.raises(CheckpointError, match=r"norm\.weight .* I8; use the unquantised"):
        load_model(tmp_path / "hf")


@pytest.mark.parametrize("text", ["gemma_2b", "gemma2_2b", "gemma2_9b", "gemma2_27b"])
@pytest.mark.parametrize("num_rows", [None, 257216])
def test_the_config_of_every_released_size_survives_json(text: str, num_rows: int | None) -> None:
    config = release_config(text, 448)
    raw = json.loads(json.dumps(hf_config(config, num_rows=num_rows)))
    assert config_from_hf(raw) == config
    assert "paligemma" not in raw
    if text == "gemma2_27b":
        assert raw["text_config"]["query_pre_attn_scalar"] == 144
        assert raw["text_config"]["head_dim"] == 128


def test_a_vocabulary_of_our_own_survives_json(make_config) -> None:
    config = make_config(2)
    vocab = replace(config.vocab, size=1500, pad=3, sep=7, loc0=200, seg0=1300)
    config = replace(config, vocab=vocab)
    assert config_from_hf(json.loads(json.dumps(hf_config(config)))) == config


def test_the_embedded_model_s_config_is_written_as_it_was_read() -> None:
    raw = json.loads((catalog.embedded_folder() / "config.json").read_text())
    assert raw["paligemma"]["weigh_locations"] is True
    assert hf_config(config_from_hf(raw, conventions="transformers"), dtype=torch.float16) == raw


def test_the_base_of_positions_is_read_where_version_5_of_transformers_writes_it() -> None:
    raw = hf_config(release_config("gemma2_2b", 224))
    del raw["text_config"]["rope_theta"]
    raw["text_config"]["rope_parameters"] = {"rope_theta": 5e5, "rope_type": "default"}
    assert config_from_hf(raw).text.rope_theta == 5e5


@pytest.mark.parametrize("layout", ["hf", "npz"])
def test_what_a_model_asks_of_decoding_is_saved_and_converted(
    make_config, make_model, tmp_path: Path, layout: str
) -> None:
    config = replace(make_config(2), weigh_locations=True)
    save_model(make_model(config), tmp_path / "a", layout=layout, dtype="float16")
    convert(tmp_path / "a", tmp_path / "b", layout="npz", dtype="float32")
    convert(tmp_path / "b", tmp_path / "c", dtype="float16")
    save_model(load_model(tmp_path / "c"), tmp_path / "d", layout=layout)
    assert load_model(tmp_path / "d").config == config
    texts = [(tmp_path / name / "config.json").read_text() for name in "acd"]
    assert texts == texts[:1] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llava"}, r'model_type of config\.json must be "paligemma", got .llava'),
        ({"text_config": {"model_type": "llama"}}, r'must be "gemma" or "gemma2", got .llama'),
        ({"text_config": 3}, "must be .* got None|must be an object"),
        ({"vision_config": {"hidden_size": "wide"}}, r"vision_config\.hidden_size .* whole number"),
        ({"vision_config": {"hidden_size": -4}}, r"vision_config\.hidden_size .* got -4"),
        ({"vision_config": {"patch_size": 0}}, "patch_size_px must be positive"),
        ({"text_config": {"num_hidden_layers": 2_000_000}}, "depth must .* at most 256, got 2000"),
        ({"vision_config": {"num_hidden_layers": 2**31 - 1}}, "depth must .* at most 256"),
        ({"text_config": {"hidden_size": 2**31 - 1}}, "width must .* at most 65536, got 21474"),
        ({"text_config": {"intermediate_size": 2**31 - 1}}, "mlp_dim must .* at most 1048576"),
        (
            {"text_config": {"rms_norm_eps": 10**400}},
            r"rms_norm_eps .* positive .* got 1000+\.\.\.0",
        ),
        ({"text_config": {"rms_norm_eps": math.inf}}, "rms_norm_eps .* positive .* got inf"),
        ({"text_config": {"rms_norm_eps": 7.0}}, "norm_eps must be positive and less than 1"),
        ({"text_config": {"rope_parameters": {"rope_theta": -5}}}, "rope_theta .* got -5"),
        ({"text_config": {"rope_parameters": {"rope_theta": math.nan}}}, "rope_theta .* got nan"),
        ({"text_config": {"rope_parameters": [1]}}, r"rope_parameters .* an object, got \[1\]"),
        ({"text_config": {"vocab_size": 2**62}}, r"vocab_size .* whole number, got 46116860"),
        ({"paligemma": {"weigh_locations": "yes"}}, "weigh_locations .* true or false, got 'yes'"),
        (
            {"paligemma": {"sep": 108, "loc0": 10**400, "seg0": 0, "pad": 0}},
            r"paligemma\.loc0 .* must be a token id, got 1000",
        ),
        ({"paligemma": {"sep": "x", "loc0": 0, "seg0": 0, "pad": 0}}, r"paligemma\.sep"),
        ({"paligemma": []}, "paligemma of config.json must be an object"),
        ({"image_token_index": 99}, r"257152 ids or state its own .* got 99 ids; add that object"),
    ],
)
def test_a_config_of_the_wrong_kind_is_refused_by_the_field(change: dict, message: str) -> None:
    raw = hf_config(release_config("gemma_2b", 224)) | change
    with pytest.raises(ConfigError, match=message):
        config_from_hf(raw)
