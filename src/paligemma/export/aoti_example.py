"""Answers a prompt about a picture with the compiled packages of this folder.

    pip install torch safetensors numpy pillow tokenizers
    python example.py photo.jpg "caption en"

The packages hold native code for the kind of CPU that they were compiled on, and loading them runs
it: load only what you compiled yourself or trust.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor


class Compiled:
    """The packages of a folder, with one copy of the weights for both."""

    def __init__(self, folder: Path) -> None:
        # Kept: the packages read this memory and do not own it.
        self._weights = load_file(folder / "weights.safetensors")
        self._prefill = _load(folder / "prefill.pt2", self._weights)
        self._step = _load(folder / "step.pt2", self._weights)

    def prefill(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        """float32[1, 3, R, R] in [-1, 1] and int64[1, T] -> float32[1, V] and the cache."""
        logits, *past = self._prefill(pixels.contiguous(), tokens.contiguous())
        return logits, past

    def step(self, tokens: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """int64[1] and the cache -> float32[1, V] and the cache, one longer."""
        # A package reads memory as its example had it: other strides would give other numbers.
        logits, *longer = self._step(tokens, [one.contiguous() for one in past])
        return logits, longer


def _load(path: Path, weights: dict[str, Tensor]) -> Any:
    from torch._inductor import aoti_load_package

    package = aoti_load_package(str(path))
    # A module of the package names the parts of the model behind a word of its own.
    named = {
        name: weights[name.removeprefix("encoder.").removeprefix("embedding.")]
        for name in package.get_constant_fqns()
    }
    package.load_constants(named, check_full_update=True, user_managed=True)
    return package


def read_picture(path: str, side_px: int) -> Tensor:
    """float32[1, 3, R, R] in [-1, 1]; the picture is stretched to a square, as in training."""
    from PIL import Image

    picture = Image.open(path).convert("RGB")
    square = picture.resize((side_px, side_px), Image.Resampling.BICUBIC)
    pixels = np.asarray(square, np.float32) / 255 * 2 - 1
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]


def main() -> None:
    """Print the answer."""
    from tokenizers import Tokenizer

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture")
    parser.add_argument("prompt")
    asked = parser.parse_args()

    folder = Path(__file__).parent
    config = json.loads((folder / "config.json").read_text())
    settings = json.loads((folder / "generation_config.json").read_text())
    preparing = json.loads((folder / "preprocessor_config.json").read_text())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    compiled = Compiled(folder)

    # Behind the picture's soft tokens: <bos>, the prompt, a line break.
    prompt = tokenizer.encode(asked.prompt, add_special_tokens=False).ids
    end_of_prompt = tokenizer.encode("\n", add_special_tokens=False).ids
    tokens = torch.tensor([[config["bos_token_id"], *prompt, *end_of_prompt]])

    pixels = read_picture(asked.picture, preparing["size"]["height"])
    logits, past = compiled.prefill(pixels, tokens)
    answer: list[int] = []
    while len(answer) < settings["max_new_tokens"]:
        chosen = int(logits[0].argmax())
        if chosen == settings["eos_token_id"]:
            break
        answer.append(chosen)
        logits, past = compiled.step(torch.tensor([chosen]), past)
    sys.stdout.write(tokenizer.decode(answer) + "\n")


if __name__ == "__main__":
    main()
