"""Adapters against PEFT over transformers, both ways, and their equivalences."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_hub import hub_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from paligemma.adapt.lora import (
    MAX_DIFFERENCE,
    Adapter,
    LoraConfig,
    attach,
    detach,
    merge,
    merge_difference,
)
from paligemma.adapt.token_rows import TokenRows
from paligemma.adapt.whole_layers import whole_layer
from paligemma.errors import CheckpointError, ConfigError
from paligemma.model import PaliGemmaModel
from paligemma.weights.adapter import adapter_folder, base_notice, load_adapter, save_adapter
from paligemma.weights.hub import ADAPTER_FILES
from paligemma.weights.load import load_model
from paligemma.weights.save import save_model

pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning"),
    pytest.mark.filterwarnings("default::UserWarning"),
]

IMAGE_ID = 130
ALL = ("decoder", "vision", "projector")
KINDS = {
    "plain": LoraConfig(rank=4, alpha=8, parts=ALL),
    "rank-stabilised": LoraConfig(rank=4, alpha=8, parts=("decoder.mlp",), rank_stabilised=True),
    "dora": LoraConfig(rank=3, alpha=6, parts=ALL, dora=True),
}
generations = pytest.mark.parametrize("generation", [1, 2])
kinds = pytest.mark.parametrize("kind", list(KINDS))


@pytest.fixture
def base(make_config: Any, make_model: Any, tmp_path: Path) -> Any:
    """A function from a generation to our model, and the folder of its file."""

    def make(generation: int) -> tuple[PaliGemmaModel, Path]:
        folder = tmp_path / "base"
        save_model(make_model(make_config(generation)), folder)
        return load_model(folder), folder

    return make


def theirs(folder: Path) -> Any:
    from transformers import PaliGemmaForConditionalGeneration
    from transformers.utils import logging

    logging.disable_progress_bar()
    return PaliGemmaForConditionalGeneration.from_pretrained(
        folder, attn_implementation="eager"
    ).eval()


def example() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 28, 28, 3, generator=generator) * 2 - 1
    tokens = torch.randint(3, 128, (2, 9), generator=generator)
    return image, tokens, torch.zeros_like(tokens)


@torch.no_grad()
def our_logits(model: PaliGemmaModel) -> Tensor:
    image, tokens, mask_ar = example()
    return model(model.encode_image(image), tokens, mask_ar)


@torch.no_grad()
def their_logits(model: Any, num_image: int) -> Tensor:
    image, tokens, _ = example()
    ids = torch.cat([torch.full((len(tokens), num_image), IMAGE_ID), tokens], dim=1)
    out = model(
        input_ids=ids,
        pixel_values=image.permute(0, 3, 1, 2),
        token_type_ids=torch.zeros_like(ids),
        attention_mask=torch.ones_like(ids),
    )
    return out.logits[:, num_image:, :130]


def filled(adapter: Adapter, seed: int = 1) -> Adapter:
    """The adapter with random matrices, so that it changes every layer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if name.endswith("up"):
                parameter.normal_(std=0.2, generator=generator)
            if name.endswith("magnitude"):
                parameter.mul_(1 + 0.1 * torch.rand(parameter.shape, generator=generator))
    return adapter


@generations
@kinds
def test_peft_answers_like_us_with_an_adapter_that_we_wrote(
    generation: int, kind: str, base: Any, tmp_path: Path
) -> None:
    from peft import PeftModel

    model, folder = base(generation)
    before = our_logits(model)
    adapter = filled(Adapter.new(model, KINDS[kind]))
    save_adapter(adapter, model, tmp_path / "adapter", base=str(folder))
    attach(model, adapter)
    ours = our_logits(model)
    peft_model = PeftModel.from_pretrained(theirs(folder), tmp_path / "adapter").eval()
    names = [name for name, _ in peft_model.named_parameters() if "lora_A" in name]
    assert len(names) == len(adapter.updates)
    num_image = model.config.num_image_tokens
    assert (ours - before).abs().max() > 1
    assert torch.allclose(ours, their_logits(peft_model, num_image), atol=2e-4, rtol=0)


@generations
@kinds
def test_we_answer_like_peft_with_an_adapter_that_peft_wrote(
    generation: int, kind: str, base: Any, tmp_path: Path
) -> None:
    import peft

    model, folder = base(generation)
    config = KINDS[kind]
    torch.manual_seed(0)
    peft_model = peft.get_peft_model(
        theirs(folder),
        peft.LoraConfig(
            r=config.rank,
            lora_alpha=5,
            # By suffix: decoder, tower and the pooling head that PaliGemma does not use.
            target_modules=["q_proj", "out_proj", "down_proj"],
            rank_pattern={"down_proj": 2},
            alpha_pattern={r"layers\.0\.self_attn\.q_proj": 7},
            use_rslora=config.rank_stabilised,
            use_dora=config.dora,
            init_lora_weights=False,
        ),
    ).eval()
    peft_model.save_pretrained(tmp_path / "adapter")
    adapter = load_adapter(tmp_path / "adapter", model)
    attach(model, adapter)
    theirs_logits = their_logits(peft_model, model.config.num_image_tokens)
    assert torch.allclose(our_logits(model), theirs_logits, atol=2e-4, rtol=0)


@generations
@kinds
def test_a_merged_adapter_answers_like_the_attached_one(
    generation: int, kind: str, base: Any
) -> None:
    model, _ = base(generation)
    for name, parameter in model.named_parameters():
        if name.endswith("q.weight"):
            # Attention scores of 67 would enlarge every rounding.
            parameter.detach().mul_(0.1)
    before = our_logits(model)
    attach(model, filled(Adapter.new(model, KINDS[kind])))
    live = our_logits(model)
    merge(model)
    assert (our_logits(model) - live).abs().max() <= 1e-5
    assert (live - before).abs().max() > 1


def test_a_detached_adapter_leaves_no_trace_and_a_new_one_changes_nothing(base: Any) -> None:
    model, _ = base(2)
    before, names = our_logits(model), [name for name, _ in model.named_parameters()]
    adapter = Adapter.new(model, LoraConfig(rank=4))
    attach(model, adapter)
    assert torch.equal(our_logits(model), before)
    assert not adapter.is_active
    attach(model, filled(Adapter.new(model, LoraConfig(rank=2, parts=("vision",)))))
    assert not torch.equal(our_logits(model), before)
    detach(model)
    assert torch.equal(our_logits(model), before)
    assert [name for name, _ in model.named_parameters()] == names


def test_an_adapter_that_is_read_back_is_the_one_that_was_written(
    base: Any, tmp_path: Path
) -> None:
    model, _ = base(1)
    adapter = filled(Adapter.new(model, KINDS["dora"]))
    save_adapter(adapter, model, tmp_path / "adapter", base="some/base")
    again = load_adapter(tmp_path / "adapter", model)
    assert again.config == LoraConfig(
        rank=3, alpha=6, dora=True,
        parts=("decoder.attention", "decoder.mlp", "vision.attention", "vision.mlp", "projector"),
    )  # fmt: skip
    written, read = dict(adapter.named_parameters()), dict(again.named_parameters())
    assert written.keys() == read.keys()
    assert all(torch.equal(written[name], read[name]) for name in written)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"use_dora": True}, "magnitude"),
    ],
)
def test_a_setting_that_is_not_computed_is_refused_by_name(
    change: dict[str, Any], words: str, base: Any, tmp_path: Path
) -> None:
    model, _ = base(1)
    folder = save_adapter(
        filled(Adapter.new(model, LoraConfig(rank=2))), model, tmp_path / "adapter", base="x"
    )
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=words):
        load_adapter(folder, model)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("lora_alpha", None, "no number"),
        ("lora_alpha", [], "no number"),
        ("lora_alpha", "8", "no number"),
        ("lora_alpha", True, "no number"),
        ("lora_dropout", "much", "no number"),
        ("alpha_pattern", {"q_proj": "x"}, "no number"),
        ("alpha_pattern", ["q_proj"], "alpha_pattern is no object"),
        ("alpha_pattern", "q_proj", "alpha_pattern is no object"),
        ("alpha_pattern", {"(": 3}, r"alpha_pattern has '\('"),
        ("alpha_pattern", {"(a+)+$": 3}, "alpha_pattern has"),
        ("alpha_pattern", {"a" * 1000: 3}, "alpha_pattern has"),
        ("r", 8, "has 4, r is 8"),
        ("r", "x" * 1000, "has 4, r is 'x"),
    ],
)
def test_a_damaged_setting_is_a_short_sentence(
    base: Any, tmp_path: Path, field: str, value: Any, words: str
) -> None:
    model, _ = base(2)
    save_adapter(Adapter.new(model, KINDS["plain"]), model, tmp_path / "a", base="x")
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(CheckpointError, match=words) as error:
        load_adapter(tmp_path / "a", model)
    assert len(str(error.value)) < 700


def test_an_adapter_of_another_model_names_its_base(
    base: Any, make_config: Any, make_model: Any, tmp_path: Path
) -> None:
    model, _ = base(1)
    folder = save_adapter(
        Adapter.new(model, LoraConfig(rank=2)), model, tmp_path / "adapter", base="the/base"
    )
    config = make_config(1)
    wider = replace(config, text=replace(config.text, mlp_dim=config.text.mlp_dim * 2))
    with pytest.raises(CheckpointError, match="the/base"):
        load_adapter(folder, make_model(wider))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 0}, "1..4096"),
        ({"alpha": float("nan")}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"parts": ("decoder.atention",)}, "did you mean decoder.attention"),
        ({"parts": ()}, "at least one part"),
    ],
)
def test_a_bad_setting_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LoraConfig(**options)


TOKENS = [3, 17, 44, 100]


def with_rows(model: PaliGemmaModel, config: LoraConfig, ids: list[int] = TOKENS) -> Adapter:
    """A filled adapter with random token rows."""
    rows = 0.3 * torch.randn(len(ids), 32, generator=torch.Generator().manual_seed(2))
    return replace(
        filled(Adapter.new(model, config)), token_rows=TokenRows(torch.tensor(ids), rows)
    )


@generations
def test_peft_answers_like_us_with_token_rows_that_we_wrote(
    generation: int, base: Any, tmp_path: Path
) -> None:
    from peft import PeftModel

    model, folder = base(generation)
    adapter = with_rows(model, KINDS["plain"])
    attach(model, adapter)
    save_adapter(adapter, model, tmp_path / "adapter", base=str(folder))
    peft_model = PeftModel.from_pretrained(theirs(folder), tmp_path / "adapter").eval()
    ours, others = our_logits(model), their_logits(peft_model, model.config.num_image_tokens)
    assert torch.allclose(ours, others, atol=2e-4, rtol=0)
    again = load_adapter(tmp_path / "adapter", model)
    assert again.token_rows is not None
    assert adapter.token_rows is not None
    assert torch.equal(again.token_rows.rows, adapter.token_rows.rows)
    assert again.token_rows.is_active


@pytest.mark.parametrize("stated", [TOKENS, {"embed_tokens": TOKENS}])
@pytest.mark.parametrize("is_tied", [True, False])
def test_we_answer_like_peft_with_token_rows_that_peft_wrote(
    stated: Any, is_tied: bool, make_config: Any, make_model: Any, tmp_path: Path
) -> None:
    import peft

    save_model(make_model(make_config(2, tied_head=is_tied)), tmp_path / "base")
    model = load_model(tmp_path / "base")
    before = our_logits(model)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["v_proj"], trainable_token_indices=stated)
    peft_model = peft.get_peft_model(theirs(tmp_path / "base"), config).eval()
    for name, parameter in peft_model.named_parameters():
        if "trainable_tokens_delta" in name:
            parameter.data.add_(0.2 * torch.randn(parameter.shape))
    peft_model.save_pretrained(tmp_path / "adapter")
    attach(model, load_adapter(tmp_path / "adapter", model))
    ours, others = our_logits(model), their_logits(peft_model, model.config.num_image_tokens)
    assert (ours - before).abs().max() > 0.1
    assert torch.allclose(ours, others, atol=2e-4, rtol=0)
    merge(model)
    assert torch.allclose(our_logits(model), ours, atol=1e-5, rtol=0)


def peft_with_projector(model: PaliGemmaModel, place: Path, named: list[str]) -> Any:
    """A model of PEFT with a LoRA, and a projector of its own, saved beside its base."""
    import peft

    for name, parameter in model.named_parameters():
        if name.endswith("q.weight"):
            # Attention scores of 67 would enlarge every rounding.
            parameter.detach().mul_(0.1)
    save_model(model, place / "tame")
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=2, target_modules=["v_proj"], modules_to_save=named, init_lora_weights=False
    )
    peft_model = peft.get_peft_model(theirs(place / "tame"), config).eval()
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    peft_model.save_pretrained(place / "adapter")
    return peft_model


@generations
@pytest.mark.parametrize("named", ["multi_modal_projector", "linear"])
def test_we_answer_like_peft_with_a_projector_that_peft_saved_whole(
    generation: int, named: str, base: Any, tmp_path: Path
) -> None:
    from peft import PeftModel

    model, _ = base(generation)
    peft_model = peft_with_projector(model, tmp_path, [named])
    plain = our_logits(model)
    adapter = load_adapter(tmp_path / "adapter", model)
    attach(model, adapter)
    live = our_logits(model)
    num_image = model.config.num_image_tokens
    assert (live - their_logits(peft_model, num_image)).abs().max() <= 1e-5
    assert adapter.is_active
    # Without the projector it is another answer; detached, the model is as it was.
    attach(model, replace(adapter, layers={}))
    assert (our_logits(model) - live).abs().max() > 1e-2
    detach(model)
    assert torch.equal(our_logits(model), plain)
    # PEFT reads what we write of it, and so do we.
    save_adapter(adapter, model, tmp_path / "ours", base="x")
    again = PeftModel.from_pretrained(theirs(tmp_path / "tame"), tmp_path / "ours").eval()
    assert (live - their_logits(again, num_image)).abs().max() <= 1e-5
    attach(model, load_adapter(tmp_path / "ours", model))
    assert torch.equal(our_logits(model), live)
    assert merge_difference(model) <= MAX_DIFFERENCE
    merge(model)
    assert (our_logits(model) - live).abs().max() <= 1e-5
    save_model(model, tmp_path / "merged")
    assert (our_logits(load_model(tmp_path / "merged")) - live).abs().max() <= 1e-5


def test_a_whole_projector_takes_the_dtype_of_the_model(base: Any, tmp_path: Path) -> None:
    model, _ = base(2)
    peft_with_projector(model, tmp_path, ["linear"])
    half = load_model(tmp_path / "tame", dtype="bfloat16")
    attach(half, load_adapter(tmp_path / "adapter", half))
    assert half.projector.dtype == torch.bfloat16
    assert half.encode_image(example()[0]).dtype == torch.bfloat16


_PROJECTOR_KEY = "base_model.model.model.multi_modal_projector.linear"


@pytest.mark.parametrize(
    ("named", "change", "words"),
    [
        (["lm_head"], lambda t: t, r"may hold the projector whole, in .*\['lm_head'\]; merge it"),
        (["linear", "embed_tokens"], lambda t: t, "embed_tokens"),
        ("linear", lambda t: t, "modules_to_save is 'linear'"),
        ([["linear"]], lambda t: t, "modules_to_save is"),
        (None, lambda t: t, "holds updates of linear layers"),
        (
            ["linear"],
            lambda t: {key: one for key, one in t.items() if key != f"{_PROJECTOR_KEY}.bias"},
            "holds the projector of its model",
        ),
        (["linear"], lambda t: {**t, f"{_PROJECTOR_KEY}.weight": torch.ones(2, 3)}, r"\(2, 3\)"),
        (
            ["linear"],
            lambda t: {key: one for key, one in t.items() if "projector" not in key},
            "has none",
        ),
        (
            ["linear"],
            lambda t: {
                **t,
                f"{_PROJECTOR_KEY}.lora_A.weight": torch.ones(2, 24),
                f"{_PROJECTOR_KEY}.lora_B.weight": torch.ones(32, 2),
            },
            "an update of it too",
        ),
    ],
)
def test_whole_layers_that_are_not_the_projector_are_refused_by_name(
    named: Any, change: Any, words: str, base: Any, tmp_path: Path
) -> None:
    model, _ = base(2)
    own = whole_layer(torch.ones(32, 24), torch.ones(32))
    adapter = replace(Adapter.new(model, LoraConfig(rank=2)), layers={"projector": own})
    folder = save_adapter(adapter, model, tmp_path / "adapter", base="x")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "modules_to_save": named}))
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(change(tensors), folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=words) as error:
        load_adapter(folder, model)
    assert len(str(error.value)) < 700


def test_token_rows_get_the_gradient_of_the_whole_table_of_both_its_uses(base: Any) -> None:
    model, _ = base(2)
    _, tokens, mask_ar = example()
    tokens[0, :4] = torch.tensor(TOKENS)

    def loss() -> Tensor:
        return model(None, tokens, mask_ar).log_softmax(-1)[..., TOKENS].sum()

    loss().backward()
    whole = model.text.embed.weight.grad[TOKENS].clone()
    adapter = Adapter.new(model, LoraConfig(rank=1))
    rows = model.text.embed(torch.tensor(TOKENS)).detach().clone()
    attach(model, replace(adapter, token_rows=TokenRows(torch.tensor(TOKENS), rows, rows.clone())))
    model.text.embed.base.requires_grad_(False)
    loss().backward()
    assert torch.allclose(model.text.embed.update.rows.grad, whole, rtol=1e-4, atol=1e-5)
    assert model.text.embed.base.weight.grad is not None  # of the first pass, untouched since


@pytest.mark.parametrize(
    "stated", [None, [], [3, 3, 17, 44], [3, 17, 44, 130], ["a"], [3, 17], {"lm_head": TOKENS}, 5]
)
def test_token_rows_without_fitting_ids_are_refused(stated: Any, base: Any, tmp_path: Path) -> None:
    model, _ = base(1)
    save_adapter(with_rows(model, KINDS["plain"]), model, tmp_path / "a", base="x")
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "trainable_token_indices": stated}))
    with pytest.raises(CheckpointError, match="token rows"):
        load_adapter(tmp_path / "a", model)


def test_rows_of_locations_need_a_vocabulary_that_has_them(base: Any) -> None:
    with pytest.raises(ConfigError, match="neither"):
        Adapter.new(base(1)[0], LoraConfig(rank=1, token_rows=("loc",)))
    with pytest.raises(ConfigError, match="loc or seg"):
        LoraConfig(token_rows=("locs",))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_adapter_in_half_precision_is_read_exactly(
    dtype: torch.dtype, base: Any, tmp_path: Path
) -> None:
    model, _ = base(2)
    folder = save_adapter(with_rows(model, KINDS["dora"]), model, tmp_path / "a", base="x")
    path = folder / "adapter_model.safetensors"
    save_file({name: one.to(dtype) for name, one in load_file(path).items()}, path)
    attach(model, load_adapter(folder, model))
    live = our_logits(model)
    merge(model)
    # Merging rounds every weight once more, and scores at the cap carry that on, to 1.1e-5.
    # Rounding the update itself to half precision moves them by 2e-2.
    assert torch.allclose(our_logits(model), live, rtol=0, atol=2e-5 * float(live.abs().max()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {**t, next(iter(t)): next(iter(t.values())) * float("nan")}, "must be finite"),
        (
            lambda t: {name.replace("mlp.up_proj", "mlp.upp_proj"): one for name, one in t.items()},
            r"the nearest layer is language_model.layers.\d.mlp.up_proj",
        ),
        (lambda t: {**t, "base_model.model.lm_head.weight": torch.ones(130, 32)}, "lm_head"),
    ],
)
def test_damaged_or_unknown_tensors_are_named(
    change: Any, words: str, base: Any, tmp_path: Path
) -> None:
    model, _ = base(1)
    folder = save_adapter(
        filled(Adapter.new(model, KINDS["plain"])), model, tmp_path / "a", base="x"
    )
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(CheckpointError, match=words) as error:
        load_adapter(folder, model)
    assert len(str(error.value)) < 1000


@kinds
def test_merging_moves_no_layer_beyond_rounding_and_a_broken_update_is_seen(
    kind: str, base: Any
) -> None:
    model, _ = base(2)
    adapter = filled(Adapter.new(model, KINDS[kind]))
    attach(model, adapter)
    assert 0 < merge_difference(model) <= MAX_DIFFERENCE
    next(iter(adapter.updates.values())).up.data[0, 0] = float("inf")
    assert not merge_difference(model) <= MAX_DIFFERENCE


def test_an_adapter_of_the_hub_is_loaded_by_its_name_and_revision(
    base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, _ = base(1)
    adapter = filled(Adapter.new(model, KINDS["plain"]))
    save_adapter(adapter, model, tmp_path / "a", base="owner/base-224")
    (tmp_path / "a" / "adapter_model.bin").write_bytes(b"pickled")
    monkeypatch.chdir(tmp_path)
    with hub_of(tmp_path / "a", tmp_path, monkeypatch) as hub:
        found = adapter_folder("owner/model@main")
        hub.fault = lambda kind, name: 500
        again = adapter_folder("owner/model@main")
    assert found == again
    assert sorted(path.name for path in found.iterdir()) == list(ADAPTER_FILES)
    read = dict(load_adapter(found, model).named_parameters())
    assert all(torch.equal(read[name], one) for name, one in adapter.named_parameters())
    assert "owner/base-224" in str(base_notice(found, "other/model"))
    assert base_notice(found, "elsewhere/Base-224") is None
    with pytest.raises(CheckpointError, match="check the path"):
        adapter_folder("a/no-such-run")
