"""`paligemma serve` offers the models and adapters that it was given, each by a name of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner

pytest.importorskip("fastapi", reason="needs the extra serve")

from starlette.testclient import TestClient

from paligemma import PaliGemma
from paligemma.adapt.lora import Adapter, LoraConfig
from paligemma.cli.serve_models import models_options
from paligemma.serve.app import create_app
from paligemma.serve.asking import Service
from paligemma.serve.models import Models
from paligemma.serve.offered import Offered
from paligemma.serve.options import ServerOptions
from paligemma.weights.adapter import save_adapter


def offered(*args: str) -> Offered:
    found: list[Offered] = []

    @click.command()
    @models_options
    def command(offered: Offered) -> None:
        found.append(offered)

    done = CliRunner().invoke(command, list(args), env={"PALIGEMMA_MODEL": ""})
    if done.exit_code:
        raise click.UsageError(done.output)
    return found[0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "tiny", "--model", "tiny"], "named once"),
        (["--adapter", "cards@other=x"], "which is not served"),
        (["--adapter", "a=x", "--adapter", "a=y"], "a name of its own"),
        (["--adapter", "tiny=x"], "a name of its own"),
        (["--adapter", "=x"], "NAME=DIR"),
        (["--max-model-bytes", "lots"], "12GB"),
        (["--max-model-bytes", "0"], "12GB"),
        (["--picture-cache", "-1"], "12GB"),
    ],
)
def test_what_does_not_fit_is_a_sentence(args: list[str], message: str) -> None:
    with pytest.raises(click.UsageError, match=message):
        offered(*args)


def test_names_say_which_model_adapter_and_bits() -> None:
    found = offered(
        *("--model", "a/b", "--model", "a/b:int4,head=bf16", "--quant", "int8"),
        *("--adapter", "runs/cards", "--adapter", "x@a/b:int4,head=bf16=runs/y"),
        *("--max-model-bytes", "1.5GB"),
    )
    assert [(name, one.name, one.options["quant"]) for name, one in found.models.items()] == [
        ("a/b", "a/b", "int8"),
        ("a/b:int4,head=bf16", "a/b", "int4,head=bf16"),
    ]
    assert found.adapters["a/b:int4,head=bf16"] == {"x": "runs/y"}
    assert found.adapters["a/b"] == {"cards": "runs/cards"}
    assert found.bounds == {"max_model_bytes": 1_500_000_000}
    assert all("picture_cache_bytes" not in one.options for one in found.models.values())


@pytest.mark.parametrize(("size", "num_bytes"), [("256MB", 256_000_000), ("0", 0)])
def test_the_bound_of_encoded_pictures_is_an_option(size: str, num_bytes: int) -> None:
    found = offered("--model", "a", "--model", "b:int8", "--picture-cache", size)
    bounds = [one.options["picture_cache_bytes"] for one in found.models.values()]
    assert bounds == [num_bytes, num_bytes]


def test_models_and_adapters_answer_by_their_names_once_they_are_asked(tmp_path: Path) -> None:
    plain = PaliGemma.from_pretrained("tiny")
    adapter = Adapter.new(plain.model, LoraConfig(rank=2), seed=0)
    with torch.no_grad():
        for number, (_, parameter) in enumerate(adapter.named_parameters()):
            parameter.add_(
                0.3 * torch.sin(torch.arange(parameter.numel()) + number).view_as(parameter)
            )
    folder = save_adapter(adapter, plain.model, tmp_path / "cards", base="tiny")
    found = offered("--model", "tiny", "--model", "tiny:int8", "--adapter", f"cards={folder}")
    options = ServerOptions()
    service = Service.of(Models(found.specs(), options), options)
    asked: dict[str, Any] = {"prompt": "caption en", "max_new_tokens": 12}
    with TestClient(create_app(service), base_url="http://localhost") as client:
        listed = {one["id"]: one["paligemma"] for one in client.get("/v1/models").json()["data"]}
        assert list(listed) == ["tiny", "cards", "tiny:int8"]
        assert [one["loaded"] for one in listed.values()] == [True, True, False]
        assert (listed["cards"]["adapter"], listed["tiny:int8"]["quant"]) == ("cards", "int8")
        texts = {
            name: client.post("/v1/ask", json={**asked, "model": name}).json()["text"]
            for name in (*listed, "cards", "tiny")
        }
        listed = {one["id"]: one["paligemma"] for one in client.get("/v1/models").json()["data"]}
        assert listed["tiny:int8"]["loaded"]
        count = listed["tiny"]["num_parameters"]
        assert abs(listed["tiny:int8"]["num_parameters"] - count) < 0.02 * count
    with_adapters = PaliGemma.from_pretrained("tiny", adapters={"cards": folder})
    assert texts["tiny"] == plain.ask(None, "caption en", max_new_tokens=12).text
    expected = with_adapters.ask(None, "caption en", max_new_tokens=12, adapter="cards").text
    assert texts["cards"] == expected != texts["tiny"]
