"""A model compiled ahead of time by AOTInductor: two packages, and the weights that both share.

`prefill.pt2` reads a picture and a prompt, `step.pt2` one more token; each is native code without
weights, which lie once in `weights.safetensors` under the names of `PaliGemmaModel`.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from paligemma.errors import ConfigError
from paligemma.export import aoti_example
from paligemma.export.aoti_example import Compiled
from paligemma.export.card import write_card
from paligemma.export.graphs import Prefill, Step, empty_cache
from paligemma.export.new_folder import new_folder
from paligemma.export.onnx_check import NUM_STEPS, Difference
from paligemma.export.opening import open_for_export, require_close
from paligemma.export.side_files import model_config
from paligemma.model import PaliGemmaModel
from paligemma.whole_file import write_json

_COMPILERS = ("c++", "g++", "clang++")
_LENGTHS = (3, 8)


def export_aoti(
    source: str,
    folder: Path,
    *,
    revision: str | None = None,
    image_size_px: int | None = None,
    on_step: Callable[[str], None] = lambda words: None,
) -> list[Difference]:
    """Write a model as compiled packages for this kind of CPU, in float32, a row at a time.

    Args:
        source: a model, as `paligemma.weights.catalog.resolve` finds it.
        folder: must not exist.
        revision: branch of the hub.
        image_size_px: another resolution than the file's.
        on_step: called with a few words before each step.

    Returns:
        What was measured of the packages that were loaded again.

    Raises:
        RunError: logits differ by more than `opening.MAX_DIFFERENCE`; no folder is left.
        ConfigError: the folder exists, or no C++ compiler is installed.
    """
    if not any(map(shutil.which, _COMPILERS)):
        raise ConfigError(
            f"AOTInductor writes C++ and needs a compiler, none of {', '.join(_COMPILERS)} is "
            "installed; install g++"
        )
    with new_folder(folder) as staging:
        model, name = open_for_export(
            source, staging, revision=revision, image_size_px=image_size_px, on_step=on_step
        )
        _write_weights(model, staging)
        for stem, module, inputs, shapes in _modules(model):
            on_step(f"compiling {stem}")
            _compile(module, inputs, shapes, staging / f"{stem}.pt2")
        body = model_config(model.config)
        (staging / "config.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
        on_step("comparing the packages with the model")
        found = _compare(model, staging)
        require_close(max(one.largest for one in found), source, "the compiler")
        write_json(staging / "check.json", [asdict(one) for one in found])
        shutil.copyfile(aoti_example.__file__, staging / "example.py")
        measured = [f"- {one.situation}: {one.largest:.1e}" for one in found]
        measured = ["Largest difference of a logit from the model's, in float32:", "", *measured]
        write_card(staging, name=name, config=model.config, kind="aoti", measured=measured)
    return found


def _write_weights(model: PaliGemmaModel, folder: Path) -> None:
    from safetensors.torch import save_file

    tensors = {name: one.detach().contiguous() for name, one in model.named_parameters()}
    save_file(tensors, folder / "weights.safetensors")


def _modules(model: PaliGemmaModel) -> list[tuple[str, nn.Module, tuple[Any, ...], Any]]:
    """Name, module, example of its inputs, and which axes vary, of each package."""
    side = model.config.vision.image_size_px
    past = empty_cache(model.config.text, 1, 9)
    varies = {1: Dim.DYNAMIC}
    prompt = (torch.zeros(1, 3, side, side), torch.zeros(1, 6, dtype=torch.long))
    token = (torch.zeros(1, dtype=torch.long), past)
    return [
        ("prefill", Prefill(model).eval(), prompt, (None, varies)),
        ("step", Step(model).eval(), token, (None, [{2: Dim.DYNAMIC}] * len(past))),
    ]


@torch.no_grad()
def _compile(module: nn.Module, inputs: tuple[Any, ...], shapes: Any, path: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    with warnings.catch_warnings():  # about torch's own parts
        warnings.simplefilter("ignore")
        traced = torch.export.export(module, inputs, dynamic_shapes=shapes)
        aoti_compile_and_package(
            traced,
            package_path=str(path),
            inductor_configs={
                "aot_inductor.package_constants_in_so": False,
            },
        )


@torch.no_grad()
def _compare(model: PaliGemmaModel, folder: Path) -> list[Difference]:
    """Prompts of two lengths, each followed by steps, beside the model without a cache."""
    compiled = Compiled(folder)
    side = model.config.vision.image_size_px
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, side, side, 3, generator=generator) * 2 - 1
    soft = model.encode_image(pixels)
    last = model.config.vocab.image or model.config.vocab.size
    found = []
    for length in _LENGTHS:
        tokens = torch.randint(last, (1, length + NUM_STEPS), generator=generator)
        mask_ar = (torch.arange(tokens.shape[1]) >= length).long()[None]
        ours = model(soft, tokens, mask_ar)[0, length - 1 :]
        logits, past = compiled.prefill(pixels.permute(0, 3, 1, 2), tokens[:, :length])
        theirs = [logits[0]]
        for step in range(NUM_STEPS):
            logits, past = compiled.step(tokens[:, length + step], past)
            theirs.append(logits[0])
        both = list(zip(theirs, ours, strict=True))
        found.append(
            Difference(
                situation=f"a picture, {length} tokens and {NUM_STEPS} steps",
                largest=max(float((a - b).abs().max()) for a, b in both),
                same_choice=sum(bool(a.argmax() == b.argmax()) for a, b in both) / len(both),
            )
        )
    return found
