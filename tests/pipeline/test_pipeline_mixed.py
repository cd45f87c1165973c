"""Mixed precision: bfloat16 products in the tower and the decoder, wherever an answer is made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from paligemma import PaliGemma

PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.mark.parametrize(("mode", "expected"), [("exact", False), ("mixed", True)])
def test_products_are_narrow_in_mixed_mode_alone(tiny_dir: Path, mode: str, expected: bool) -> None:
    pg = PaliGemma.from_pretrained(tiny_dir, mode=mode)
    seen = set()

    def watch(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        seen.add((torch.is_autocast_enabled("cpu"), output.dtype == torch.bfloat16))

    for part in (pg.model.vision.patch_embed.proj, pg.model.text.blocks[0].mlp.down):
        part.register_forward_hook(watch)
    pg.generate(PICTURE, "caption en", max_new_tokens=2)
    assert list(pg.stream(PICTURE, "caption en", max_new_tokens=2)) is not None
    assert seen == {(expected, expected)}
    assert not torch.is_autocast_enabled("cpu")
