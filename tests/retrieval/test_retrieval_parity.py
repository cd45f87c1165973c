"""Vectors against transformers' ColPali, float32, through every layout of checkpoints.

The weights make attention scores pass the cap of 50, so that forgetting it would show. transformers
lets the tokens of a query see each other where it is given token types, as its processor gives
them, and is causal without.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_folder import VOCAB
from torch import Tensor

from paligemma import ColPali
from paligemma.batch import Batch
from paligemma.errors import CheckpointError, ConfigError
from paligemma.retrieval.colpali import embed
from paligemma.retrieval.inputs import page_batch, query_batch
from paligemma.retrieval.presets import PRESETS, Preset
from paligemma.weights.catalog import embedded_folder
from tests.retrieval.random_colpali import draw_weights

# Its own deprecations are not ours to mend.
pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning"),
    pytest.mark.filterwarnings("default::UserWarning"),
]
generations = pytest.mark.parametrize("generation", [1, 2])
IMAGE_ID, DIM = VOCAB.size, 16
OBJECTS = {name: getattr(VOCAB, name) for name in ("pad", "sep", "loc0", "seg0")}
# The image tower's rounding, which large weights carry on, is 8e-6.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Theirs:
    """transformers' model and the folder that it wrote, with a tokenizer."""

    model: Any
    folder: Path

    @torch.no_grad()
    def vectors(self, batch: Batch, *, is_causal: bool = False) -> Tensor:
        """float32[B, N, D] as `embed` gives them."""
        tokens, mask = batch.tokens, batch.mask_input.long()
        pixels = None
        if batch.images is not None:
            of_image = tokens.new_full((len(tokens), 4), IMAGE_ID)
            tokens = torch.cat((of_image, tokens), dim=1)
            mask = torch.cat((torch.ones_like(of_image), mask), dim=1)
            pixels = batch.images.permute(0, 3, 1, 2)
        types = {} if is_causal else {"token_type_ids": torch.zeros_like(tokens)}
        return self.model(
            input_ids=tokens, attention_mask=mask, pixel_values=pixels, **types
        ).embeddings


def make(generation: int, folder: Path) -> Theirs:
    from transformers import ColPaliConfig, ColPaliForRetrieval
    from transformers.utils import logging

    logging.disable_progress_bar()
    second = generation == 2
    text = {
        "model_type": "gemma2" if second else "gemma",
        "vocab_size": VOCAB.size + 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2 if second else 1,
        "head_dim": 12,
        **({"query_pre_attn_scalar": 8} if second else {}),
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 28,
        "patch_size": 14,
        "vision_use_head": False,
    }
    vlm = {
        "model_type": "paligemma",
        "text_config": text,
        "vision_config": vision,
        "image_token_index": IMAGE_ID,
        "projection_dim": 32,
    }
    config = ColPaliConfig(vlm_config=vlm, embedding_dim=DIM, attn_implementation="eager")
    model = ColPaliForRetrieval(config).eval()
    draw_weights(model)
    model.save_pretrained(folder)
    raw = json.loads((folder / "config.json").read_text())
    raw["vlm_config"]["paligemma"] = OBJECTS  # ids of the embedded model's tokenizer
    (folder / "config.json").write_text(json.dumps(raw))
    shutil.copy(embedded_folder() / "tokenizer.model", folder)
    return Theirs(model, folder)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Theirs]:
    made: dict[int, Theirs] = {}

    def get(generation: int) -> Theirs:
        if generation not in made:
            made[generation] = make(generation, tmp_path_factory.mktemp(f"hf{generation}"))
        return made[generation]

    return get


def batches(colpali: ColPali) -> tuple[Batch, Batch]:
    """Two pages and three queries of unequal length."""
    draw = np.random.default_rng(0).integers
    pictures = [draw(0, 255, (40, 50, 3), dtype=np.uint8) for _ in range(2)]
    texts = ["red cat", "how many boxes are there in the big picture?", "a"]
    processor = colpali.pg.processor
    return (
        page_batch(colpali.preset, processor, pictures),
        query_batch(colpali.preset, processor, texts),
    )


@torch.no_grad()
def ours(colpali: ColPali, batch: Batch) -> Tensor:
    return embed(colpali.pg.model, colpali.head, batch)[0]


def assert_equal(colpali: ColPali, theirs: Theirs) -> None:
    for batch in batches(colpali):
        expected = theirs.vectors(batch)
        torch.testing.assert_close(ours(colpali, batch), expected, atol=TOLERANCE, rtol=0)


@generations
def test_pages_and_queries_have_the_vectors_of_transformers(
    generation: int, theirs: Callable[[int], Theirs]
) -> None:
    them = theirs(generation)
    colpali = ColPali.from_pretrained(them.folder, device="cpu")
    assert colpali.preset == PRESETS["hf"]
    assert_equal(colpali, them)


@generations
def test_causal_queries_have_the_vectors_of_transformers_and_differ_from_the_others(
    generation: int, theirs: Callable[[int], Theirs]
) -> None:
    them = theirs(generation)
    colpali = ColPali.from_pretrained(them.folder, preset="v1.2", device="cpu")
    _, queries = batches(colpali)
    expected = them.vectors(queries, is_causal=True)
    torch.testing.assert_close(ours(colpali, queries), expected, atol=TOLERANCE, rtol=0)
    assert float((expected - them.vectors(queries)).abs().max()) > 0.1


@generations
def test_the_side_of_padding_makes_no_difference(
    generation: int, theirs: Callable[[int], Theirs]
) -> None:
    them = theirs(generation)
    colpali = ColPali.from_pretrained(them.folder, device="cpu")
    _, queries = batches(colpali)
    on_left = replace(
        queries,
        tokens=queries.tokens.flip(1),
        mask_input=queries.mask_input.flip(1),
    )
    for row, used in enumerate(queries.mask_input.sum(dim=1).tolist()):
        on_left.tokens[row, -used:] = queries.tokens[row, :used]
    left, right = them.vectors(on_left), ours(colpali, queries)
    for row, used in enumerate(queries.mask_input.sum(dim=1).tolist()):
        torch.testing.assert_close(right[row, :used], left[row, -used:], atol=TOLERANCE, rtol=0)


@generations
def test_transformers_reads_what_is_saved_and_gets_the_same_vectors(
    generation: int, theirs: Callable[[int], Theirs], tmp_path: Path
) -> None:
    from transformers import ColPaliForRetrieval

    them = theirs(generation)
    colpali = ColPali.from_pretrained(them.folder, device="cpu")
    folder = colpali.save(tmp_path / "saved")
    model, info = ColPaliForRetrieval.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    assert_equal(colpali, Theirs(model.eval(), folder))


def rewritten(source: Path, folder: Path, rename: Callable[[str], str], config: Any) -> Path:
    """A checkpoint under other names."""
    folder.mkdir()
    tensors = load_file(source / "model.safetensors")
    save_file({rename(key): one for key, one in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(source / "tokenizer.model", folder)
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def as_merged(key: str) -> str:
    """As colpali-engine names it."""
    return key.replace("embedding_proj_layer", "custom_text_proj").replace("vlm.", "model.")


def as_saved_since(key: str) -> str:
    """As transformers names it since 4.52."""
    key = key.replace("vlm.language_model.model.", "vlm.model.language_model.")
    return key.replace("vlm.vision", "vlm.model.vision").replace("vlm.multi", "vlm.model.multi")


def merged(them: Theirs, folder: Path) -> Path:
    return rewritten(them.folder, folder, as_merged, config_of(them.folder)["vlm_config"])


@pytest.mark.parametrize("layout", ["merged", "since 4.52", "in two files"])
@generations
def test_other_names_give_the_same_vectors(
    generation: int, layout: str, theirs: Callable[[int], Theirs], tmp_path: Path
) -> None:
    them, folder = theirs(generation), tmp_path / "colpali-v1.3"
    if layout == "merged":
        merged(them, folder)
    elif layout == "since 4.52":
        rewritten(them.folder, folder, as_saved_since, config_of(them.folder))
    else:
        ColPali.from_pretrained(them.folder, device="cpu").save(folder, max_shard_bytes=150_000)
        assert len(list(folder.glob("*.safetensors"))) > 1
    colpali = ColPali.from_pretrained(folder, preset="hf", device="cpu")
    assert_equal(colpali, them)
    # The same weights, so an index of one is searched by the other.
    first = ColPali.from_pretrained(them.folder, preset="hf", device="cpu")
    assert colpali.identity == first.identity


def test_a_checkpoint_of_no_published_name_needs_its_preset(
    theirs: Callable[[int], Theirs], tmp_path: Path
) -> None:
    folder = merged(theirs(1), tmp_path / "mine")
    with pytest.raises(ConfigError, match="needs the preset it was trained with"):
        ColPali.from_pretrained(folder, device="cpu")
    moved = folder.rename(tmp_path / "colpali-v1.3-merged")
    assert ColPali.from_pretrained(moved, device="cpu").preset == PRESETS["v1.3"]


def test_every_tensor_of_a_file_is_used(theirs: Callable[[int], Theirs], tmp_path: Path) -> None:
    folder = merged(theirs(1), tmp_path / "colpali-v1.3")
    path = folder / "model.safetensors"
    whole = load_file(path)
    save_file(whole | {"model.second_text_proj.weight": torch.ones(2, 2)}, path)
    with pytest.raises(CheckpointError, match=r"unexpected: model\.second_text_proj\.weight"):
        ColPali.from_pretrained(folder, device="cpu")
    save_file({key: one for key, one in whole.items() if "custom_text_proj" not in key}, path)
    with pytest.raises(CheckpointError, match="has none; name a ColPali checkpoint"):
        ColPali.from_pretrained(folder, device="cpu")
    save_file(whole | {"custom_text_proj.weight": torch.full((DIM, 32), float("nan"))}, path)
    with pytest.raises(CheckpointError, match="must be finite"):
        ColPali.from_pretrained(folder, device="cpu")
    save_file(whole | {"custom_text_proj.weight": torch.ones(DIM, 31)}, path)
    with pytest.raises(CheckpointError, match="reads the model's width 32"):
        ColPali.from_pretrained(folder, device="cpu")


class EngineModel(torch.nn.Module):
    """The classes of colpali-engine: PaliGemma as `model`, and the projection beside it."""

    def __init__(self, theirs: Any) -> None:
        from transformers import PaliGemmaForConditionalGeneration

        super().__init__()
        self.model = PaliGemmaForConditionalGeneration(theirs.config.vlm_config)
        self.model.model = theirs.vlm
        self.custom_text_proj = theirs.embedding_proj_layer
        self.config: Mapping[str, Any] = {"model_type": "custom"}


# The pattern of vidore's adapters.
TARGETS = (
    r"(.*(language_model).*(down_proj|gate_proj|up_proj|k_proj|q_proj|v_proj|o_proj).*$"
    r"|.*(custom_text_proj).*$)"
)


@pytest.mark.parametrize("head", ["update", "whole"])
@generations
def test_an_adapter_of_peft_changes_decoder_and_projection(
    generation: int, head: str, tmp_path: Path
) -> None:
    import peft

    them = make(generation, tmp_path / "hf")
    base = merged(them, tmp_path / "base")
    wrapped = peft.get_peft_model(
        EngineModel(them.model),  # type: ignore[arg-type]
        peft.LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=TARGETS if head == "update" else TARGETS.split("|.*(custom")[0] + ")",
            modules_to_save=None if head == "update" else ["custom_text_proj"],
        ),
    )
    changed = [
        (name, one)
        for name, one in wrapped.named_parameters()
        if "lora_" in name or "modules_to_save" in name
    ]
    generator = torch.Generator().manual_seed(1)
    for _, one in changed:
        one.data = torch.randn(one.shape, generator=generator) * 0.1
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    folder = tmp_path / "colpali-v1.3"
    wrapped.save_pretrained(folder)

    colpali = ColPali.from_pretrained(folder, preset="hf", device="cpu")
    them.model.embedding_proj_layer = wrapped.base_model.model.custom_text_proj
    assert_equal(colpali, them)
    plain = ColPali.from_pretrained(base, preset="hf", device="cpu")
    page, _ = batches(colpali)
    assert float((ours(plain, page) - ours(colpali, page)).abs().max()) > 0.05

    # Saved, the adapter is in the weights; the attached model stays as it was.
    before = ours(colpali, page)
    again = ColPali.from_pretrained(colpali.save(tmp_path / "merged"), device="cpu")
    torch.testing.assert_close(ours(again, page), before, atol=TOLERANCE, rtol=0)
    assert torch.equal(ours(colpali, page), before)
    assert ColPali.from_pretrained(folder, device="cpu").preset == PRESETS["v1.3"]
    assert len({one.identity for one in (plain, colpali, again)}) == 3


def test_an_update_of_a_projection_that_the_base_lacks_is_refused(
    theirs: Callable[[int], Theirs], tmp_path: Path
) -> None:
    them = theirs(1)
    base = merged(them, tmp_path / "base")
    path = base / "model.safetensors"
    save_file({k: one for k, one in load_file(path).items() if "custom_text" not in k}, path)
    folder = tmp_path / "colpali-v1.3"
    folder.mkdir()
    described = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(described))
    name = "base_model.model.custom_text_proj.lora"
    tensors = {f"{name}_A.weight": torch.ones(2, 32), f"{name}_B.weight": torch.ones(DIM, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="and its base none"):
        ColPali.from_pretrained(folder, device="cpu")


def test_a_projection_may_lie_in_a_folder_of_sentence_transformers(
    theirs: Callable[[int], Theirs], tmp_path: Path
) -> None:
    them = theirs(2)
    folder = merged(them, tmp_path / "colpali-v1.3")
    path = folder / "model.safetensors"
    whole = load_file(path)
    save_file({key: one for key, one in whole.items() if "custom_text" not in key}, path)
    (folder / "1_Dense").mkdir()
    dense = {f"linear.{leaf}": whole[f"custom_text_proj.{leaf}"] for leaf in ("weight", "bias")}
    save_file(dense, folder / "1_Dense" / "model.safetensors")
    modules = [
        {"idx": 0, "path": "", "type": "sentence_transformers.base.modules.Transformer"},
        {"idx": 1, "path": "1_Dense", "type": "sentence_transformers.base.modules.Dense"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    # As sentence-transformers 6.2 writes it.
    config = {
        "in_features": 32,
        "out_features": DIM,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
        "module_input_name": "token_embeddings",
        "module_output_name": "token_embeddings",
    }
    described = folder / "1_Dense" / "config.json"
    described.write_text(json.dumps(config))
    assert_equal(ColPali.from_pretrained(folder, preset="hf", device="cpu"), them)
    for other, why in (
        ({"activation_function": "torch.nn.modules.activation.Tanh"}, "is linear, .* has Tanh"),
        ({"use_residual": True}, "is linear, .* has a residual"),
    ):
        described.write_text(json.dumps(config | other))
        with pytest.raises(CheckpointError, match=why):
            ColPali.from_pretrained(folder, preset="hf", device="cpu")
    described.write_text(json.dumps(config))
    save_file(dense | {"residual.weight": torch.ones(2)}, described.with_name("model.safetensors"))
    with pytest.raises(CheckpointError, match=r"holds residual\.weight too"):
        ColPali.from_pretrained(folder, preset="hf", device="cpu")
    modules[1]["path"] = "../../elsewhere"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError):
        ColPali.from_pretrained(folder, preset="hf", device="cpu")


def test_weights_in_a_pickle_are_not_read(theirs: Callable[[int], Theirs], tmp_path: Path) -> None:
    folder = merged(theirs(1), tmp_path / "colpali-v1.2")
    (folder / "model.safetensors").rename(folder / "model.pth")
    with pytest.raises(CheckpointError, match="safetensors"):
        ColPali.from_pretrained(folder, device="cpu")


def test_the_processor_of_transformers_writes_the_same_queries(
    theirs: Callable[[int], Theirs],
) -> None:
    # Of ColPaliProcessor.__call__: bos, prefix, query, ten times pad, line feed.
    colpali = ColPali.from_pretrained(theirs(1).folder, device="cpu")
    tokenizer = colpali.pg.processor.tokenizer
    (row,) = query_batch(colpali.preset, colpali.pg.processor, ["red cat"]).tokens.tolist()
    assert row == [2, *tokenizer.encode("Question: red cat"), *[0] * 10, 4]
    assert tokenizer.encode("\n") == [4]
    custom: Preset = replace(PRESETS["hf"], newline=False, num_augmentation=0, query_prefix="")
    (row,) = query_batch(custom, colpali.pg.processor, ["red cat"]).tokens.tolist()
    assert row == [2, *tokenizer.encode("red cat")]
