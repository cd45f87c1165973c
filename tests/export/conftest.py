"""Small random models of both generations, and the program run on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stand_in_hub import StandInHub, stand_in_hub
from tiny_folder import EMBEDDED

from paligemma.model.paligemma import PaliGemmaModel, init_weights
from paligemma.processing.tokenizer import load_tokenizer
from paligemma.tiny.start import tiny_config
from paligemma.weights.save import save_model


def write_small(folder: Path, generation: int, **text_fields: object) -> Path:
    """A model with a narrow decoder of two blocks and the embedded tokenizer; 4 soft tokens.

    Queries and keys are large, so that scores pass the cap of PaliGemma 2 and attention is sharp.
    """
    config = tiny_config(load_tokenizer(EMBEDDED).vocab, image_size_px=224)
    vision = replace(
        config.vision,
        image_size_px=28,
        patch_size_px=14,
        width=32,
        depth=2,
        mlp_dim=48,
        num_heads=2,
    )
    text = replace(
        config.text,
        width=48,
        depth=2,
        mlp_dim=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        query_scale=16**-0.5,
        post_norms=generation == 2,
        attn_softcap=50.0 if generation == 2 else None,
    )
    config = replace(config, vision=vision, text=replace(text, **text_fields))  # type: ignore[arg-type]
    model = PaliGemmaModel(config)
    init_weights(model, seed=generation)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.projector.weight.normal_(std=0.3, generator=generator)
        for block in model.text.blocks:
            for part in (block.attn.q, block.attn.k):  # type: ignore[union-attr]
                part.weight.mul_(6)  # type: ignore[operator]
        for name, parameter in model.named_parameters():
            if name.endswith(("scale", "bias")):
                parameter.normal_(std=0.2, generator=generator)
    return save_model(model, folder, dtype="float32", extra_files=[EMBEDDED / "tokenizer.model"])


@pytest.fixture(scope="session", params=[1, 2], ids=["PaliGemma 1", "PaliGemma 2"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random model of either generation."""
    return write_small(tmp_path_factory.mktemp("small") / f"pg{request.param}", request.param)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def program(capfd: pytest.CaptureFixture[str]) -> Run:
    """program("export", ...) -> exit status, standard output, standard error."""
    from paligemma.cli import main

    def run(*args: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(arg) for arg in args])
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """A hub on this machine, where the program finds the real one."""
    with stand_in_hub(tmp_path / "scratch", monkeypatch) as running:
        yield running
