"""`quant=` of the façade: what an answer keeps in fewer bits, with the library and without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_folder import DESK, write_random_tiny

from paligemma import PaliGemma
from paligemma.errors import CheckpointError, ConfigError
from paligemma.kernels import native
from paligemma.kernels.narrow_layers import NarrowEmbedding, NarrowLinear
from paligemma.weights.save import save_model

TOLERANCES = {"bf16": 0.02, "int8": 0.1, "fp8": 0.4, "int4": 1.0, "nf4": 1.0}


@pytest.fixture(params=["compiled kernels", "off"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "off":
        monkeypatch.setenv(native.VARIABLE, "off")
    native.library.cache_clear()
    if (native.library() is None) != (request.param == "off"):
        pytest.skip(native.describe())
    yield request.param
    native.library.cache_clear()


@pytest.mark.parametrize("quant", TOLERANCES)
def test_answers_in_fewer_bits_stay_near_those_in_float32(
    tiny_dir: Path, random_tiny: PaliGemma, quant: str, kernels: str
) -> None:
    pg = PaliGemma.from_pretrained(tiny_dir, quant=quant, kv_cache_dtype="float32")
    assert pg.settings.mode == "exact"
    in_c = kernels != "off" and quant != "nf4"
    assert (pg.model.decode_route() == "one call in C a token") is in_c
    wanted = random_tiny.read(DESK, max_new_tokens=2).token_logprobs
    found = pg.read(DESK, max_new_tokens=2).token_logprobs
    np.testing.assert_allclose(found[0], wanted[0], atol=TOLERANCES[quant])
    assert quant == "bf16" or found != wanted


@pytest.mark.parametrize("quant", [None, "int8"])
def test_an_int8_cache_serves_every_way_to_answer(
    tiny_dir: Path, quant: str | None, kernels: str
) -> None:
    exact, pg = (
        PaliGemma.from_pretrained(tiny_dir, quant=quant, kv_cache_dtype=cache)
        for cache in ("float32", "int8")
    )
    assert pg.settings.kv_cache_dtype == "int8"
    ways: list[dict[str, object]] = [
        {},
        {"num_beams": 3},
        {"best_of": 3, "temperature": 1.0, "seed": 4},
        {"choices": ["red", "blue", "two"]},
        {"choices": ["red", "blue", "two"], "probabilities": "allowed"},
    ]
    for way in ways:
        asked = [
            one.answer(DESK, "what color is the star?", max_new_tokens=5, **way)
            for one in (exact, pg)
        ]
        wanted, found = (one.token_logprobs for one in asked)
        np.testing.assert_allclose(found[0], wanted[0], atol=0.1)
        assert found != wanted
    boxes = pg.detect(DESK, ["cat", "star"], constrain=True, max_objects=2, max_new_tokens=20)
    assert len(boxes) <= 2


@pytest.mark.parametrize("quant", ["int8", "nf4"])
def test_another_default_dtype_of_torch_changes_no_answer(
    tiny_dir: Path, quant: str, kernels: str
) -> None:
    def asked() -> list[tuple[float, ...]]:
        pg = PaliGemma.from_pretrained(tiny_dir, quant=quant)
        allowed = {"choices": ["red", "two"], "probabilities": "allowed"}
        ways: list[dict[str, object]] = [{}, {"num_beams": 2}, allowed]
        return [pg.answer(DESK, "?", max_new_tokens=2, **way).token_logprobs for way in ways]

    wanted = asked()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert asked() == wanted
    finally:
        torch.set_default_dtype(torch.float32)


def test_nan_beside_packed_weights_is_not_taken_for_an_overflow_alone(tiny_dir: Path) -> None:
    pg = PaliGemma.from_pretrained(tiny_dir, quant="int8")
    with torch.no_grad():
        pg.model.text.norm.scale[3] = torch.nan
    with pytest.raises(ConfigError, match="doctor names weights that are not numbers, and float16"):
        pg.read(DESK, max_new_tokens=2)


def test_a_bfloat16_file_is_computed_in_float32_once_it_is_packed(tmp_path: Path) -> None:
    pg = PaliGemma.from_pretrained(
        write_random_tiny(tmp_path / "model", dtype="bfloat16"), quant="int8"
    )
    assert pg.settings.mode == "exact"
    assert {p.dtype for p in pg.model.parameters()} == {torch.float32}
    assert pg.read(DESK, max_new_tokens=2).text is not None


@pytest.mark.parametrize("mode", ["bf16", "mixed"])
def test_packed_weights_refuse_another_mode_before_anything_is_read(mode: str) -> None:
    with pytest.raises(ConfigError, match=f"mode exact, got mode {mode}; leave one"):
        PaliGemma.from_pretrained("no/such-model-anywhere", quant="int4", mode=mode)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU takes the layers that a GPU takes."""
    for module in ("paligemma.weights.load", "paligemma.pipeline.loading"):
        monkeypatch.setattr(f"{module}.packs_for", lambda device: False)


@pytest.mark.parametrize("quant", [*TOLERANCES, "int4,head=fp8", "int8:vision.mlp,head=int4"])
def test_the_layers_of_a_gpu_answer_near_float32_in_bfloat16(
    tiny_dir: Path, random_tiny: PaliGemma, as_on_a_gpu: None, quant: str, tmp_path: Path
) -> None:
    mode = "bf16" if quant == "nf4" else None
    pg = PaliGemma.from_pretrained(tiny_dir, quant=quant, kv_cache_dtype="float32", mode=mode)
    assert pg.settings.mode == "bf16"
    assert {one.dtype for one in pg.model.parameters()} == {torch.bfloat16}
    wanted = random_tiny.read(DESK, max_new_tokens=2).token_logprobs
    found = pg.read(DESK, max_new_tokens=2).token_logprobs
    np.testing.assert_allclose(found[0], wanted[0], atol=1.0)
    if quant != "bf16":
        with pytest.raises(CheckpointError, match="plain model"):
            save_model(pg.model, tmp_path / "saved")


def test_the_layers_of_a_gpu_have_the_values_that_a_cpu_packs(
    tiny_dir: Path, as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = PaliGemma.from_pretrained(tiny_dir, quant="int4:vision,head=int8").model
    monkeypatch.undo()
    packed = PaliGemma.from_pretrained(tiny_dir, quant="int4:vision,head=int8").model
    layers = [name for name, one in narrow.named_modules() if isinstance(one, NarrowLinear)]
    assert len(layers) == 12
    for name in layers:
        ours, theirs = narrow.get_submodule(name), packed.get_submodule(name)
        assert torch.equal(ours.dense(), theirs.dense())
    assert isinstance(narrow.text.embed, NarrowEmbedding)
    ours = narrow.text.embed.matrix.take(torch.arange(9))
    assert torch.equal(ours, packed.text.embedding_rows(0, 9))


@pytest.mark.parametrize("mode", ["exact", "mixed"])
def test_weights_in_fewer_bits_on_a_gpu_refuse_another_mode(as_on_a_gpu: None, mode: str) -> None:
    with pytest.raises(ConfigError, match=f"got mode {mode}; leave one of the two out"):
        PaliGemma.from_pretrained("no/such-model-anywhere", quant="int4", mode=mode)
