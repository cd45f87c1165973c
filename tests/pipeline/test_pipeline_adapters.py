"""Several adapters on one model, named by each answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_folder import DESK, write_random_tiny

from paligemma import PaliGemma
from paligemma.adapt.lora import Adapter, LoraConfig
from paligemma.adapt.whole_layers import whole_layer
from paligemma.errors import ConfigError, ImageError
from paligemma.outputs.detections import Detections
from paligemma.pipeline.engine import Request
from paligemma.pipeline.options import AnswerOptions
from paligemma.weights.adapter import load_adapter, save_adapter
from paligemma.weights.load import load_model

PARTS = {"words": ("decoder",), "other": ("decoder.mlp",), "eyes": ("vision", "decoder")}
PROMPT = "caption en"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_tiny(tmp_path_factory.mktemp("base") / "model", dtype="float32")


@pytest.fixture(scope="module")
def folders(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters by name; that called "eyes" changes the tower too."""
    model, place = load_model(base), tmp_path_factory.mktemp("adapters")
    for seed, (name, parts) in enumerate(PARTS.items()):
        # Other rows of the table, so that every adapter writes other locations.
        config = LoraConfig(rank=2, parts=parts, token_rows=("loc",))
        adapter = Adapter.new(model, config, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, parameter in adapter.named_parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        save_adapter(adapter, model, place / name, base=str(base))
    return {name: place / name for name in PARTS}


@pytest.fixture(scope="module")
def pg(base: Path, folders: dict[str, Path]) -> PaliGemma:
    return PaliGemma.from_pretrained(base, adapters=folders)


@pytest.fixture(scope="module")
def alone(base: Path, folders: dict[str, Path]) -> dict[str | None, str]:
    """The answer of a model that has one adapter, or none."""
    models = {name: PaliGemma.from_pretrained(base, adapter=folders[name]) for name in folders}
    found = {
        name: one.generate(DESK, PROMPT, max_new_tokens=8).text for name, one in models.items()
    }
    plain = PaliGemma.from_pretrained(base).generate(DESK, PROMPT, max_new_tokens=8).text
    return {None: plain, **found}


def test_every_answer_is_that_of_its_own_adapter_in_whatever_order(
    pg: PaliGemma, alone: dict[str | None, str]
) -> None:
    assert len(set(alone.values())) == 4
    for name in ("words", None, "eyes", "other", "words", "eyes", None):
        how: Any = {"adapter": name, "max_new_tokens": 8}
        assert pg.generate(DESK, PROMPT, **how).text == alone[name]
        assert "".join(pg.stream(DESK, PROMPT, **how)) == alone[name]


def test_a_picture_is_encoded_once_for_adapters_that_leave_the_tower_alone(
    pg: PaliGemma, alone: dict[str | None, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = pg.encode_image(DESK)
    with monkeypatch.context() as patched:
        patched.delattr(type(pg.model), "encode_image")
        for name in ("words", "other", None):
            answer = pg.generate(encoded, PROMPT, adapter=name, max_new_tokens=8)
            assert answer.text == alone[name]
        assert isinstance(encoded.ask(PROMPT, adapter="words", max_new_tokens=8), Detections)
    with pytest.raises(ImageError, match="tower under the adapter eyes"):
        pg.ask(encoded, PROMPT, adapter="eyes")
    seen = pg.encode_image(DESK, adapter="eyes")
    assert not torch.allclose(seen.soft_tokens, encoded.soft_tokens)
    assert torch.equal(pg.encode_image(DESK).soft_tokens, encoded.soft_tokens)
    assert pg.generate(seen, PROMPT, adapter="eyes", max_new_tokens=8).text == alone["eyes"]
    with pytest.raises(ImageError, match="for the model's own tower"):
        pg.ask(seen, PROMPT)


def test_a_projector_of_an_adapter_is_switched_with_it(
    base: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    model = load_model(base)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(model.projector.dense().shape, generator=generator)
    own = whole_layer(weight, torch.zeros(len(weight)))
    adapter = replace(load_adapter(folders["words"], model), layers={"projector": own})
    folder = save_adapter(adapter, model, tmp_path / "whole", base=str(base))
    pg = PaliGemma.from_pretrained(base, adapters={"words": folders["words"], "whole": folder})
    plain, seen = pg.encode_image(DESK), pg.encode_image(DESK, adapter="whole")
    assert not torch.allclose(seen.soft_tokens, plain.soft_tokens)
    assert torch.equal(pg.encode_image(DESK, adapter="words").soft_tokens, plain.soft_tokens)
    assert torch.equal(pg.encode_image(DESK).soft_tokens, plain.soft_tokens)
    with pytest.raises(ImageError, match="tower under the adapter whole"):
        pg.ask(plain, PROMPT, adapter="whole")


def test_rows_of_several_adapters_in_one_list_are_answered_each_by_its_own(
    pg: PaliGemma, alone: dict[str | None, str]
) -> None:
    decoder = AnswerOptions(max_new_tokens=8).decoder(pg.settings, pg.vocab, 8)
    row = pg.processor.prompt_row(PROMPT)
    names = ["words", "other", None, "words", "other"]
    soft = pg.encode_image(DESK).soft_tokens
    requests = [
        replace(Request(row=row, soft_tokens=soft, decoder=decoder), adapter=name) for name in names
    ]
    for name, written in zip(names, pg.engine.answer(requests), strict=True):
        text = pg.processor.tokenizer.decode(written.record.ids.tolist())
        assert text.startswith(alone[name]) or alone[name].startswith(text)


def test_two_streams_under_two_adapters_may_be_read_in_turn(
    pg: PaliGemma, alone: dict[str | None, str]
) -> None:
    names = ("words", "eyes")
    streams = [pg.stream(DESK, PROMPT, adapter=name, max_new_tokens=8) for name in names]
    texts = ["", ""]
    for _ in range(20):
        for place, stream in enumerate(streams):
            texts[place] += next(stream, "")
    assert texts == [alone[name] for name in names]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"adapter": "word"}, "did you mean words"),
        ({"adapter": 3}, "adapter must be a name"),
    ],
)
def test_an_unknown_adapter_is_named_before_any_picture_is_read(
    pg: PaliGemma, options: Any, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        pg.ask("no-such-picture.png", PROMPT, **options)
    with pytest.raises(ConfigError, match="one of words"):
        pg.encode_image(DESK, adapter="hands")


def test_adapters_by_name_are_checked_as_they_are_stated(base: Path, folders: Any) -> None:
    with pytest.raises(ConfigError, match="by name"):
        PaliGemma.from_pretrained(base, adapters=[folders["words"]])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="leave either out"):
        PaliGemma.from_pretrained(base, adapters=folders, adapter=folders["words"])
    with pytest.raises(ConfigError, match="loaded with adapters"):
        PaliGemma.from_pretrained(base).ask(DESK, PROMPT, adapter="words")
