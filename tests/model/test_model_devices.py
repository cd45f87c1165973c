"""A decoder whose blocks lie on several devices; those on the meta device compute shapes alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_model_oracle import VOCAB

from paligemma.model import PaliGemmaModel
from paligemma.model.gemma import Block
from paligemma.tiny.start import tiny_config

FIRST, SECOND = torch.device("cpu"), torch.device("meta")


@pytest.mark.parametrize("window", [None, 8])
def test_states_tables_masks_and_caches_lie_with_their_blocks(window: int | None) -> None:
    config = tiny_config(VOCAB, image_size_px=64)
    config = replace(
        config, text=replace(config.text, depth=3, sliding_window=window, attn_softcap=None)
    )
    with torch.inference_mode():
        model = PaliGemmaModel(config)
        with SECOND:
            for layer in (1, 2):
                model.text.blocks[layer] = Block(config.text, layer)
        assert model.text.block_devices == [FIRST, SECOND, SECOND]
        cache = model.new_cache(2, 40, torch.bfloat16)
        assert [one.device for one in cache.keys] == model.text.block_devices
        tokens = torch.zeros(2, 6, dtype=torch.long)
        valid = torch.ones_like(tokens, dtype=torch.bool)
        valid[1, 4:] = False
        soft = model.encode_image(torch.zeros(2, 64, 64, 3))
        # Only the way back to the first device needs values, behind the last block.
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
            model.prefill(soft, tokens, torch.zeros_like(tokens), valid, cache)
        assert cache.ends.tolist() == [22, 20]
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
            model.decode_step(tokens[:, 0], torch.tensor([22, 20]), cache)
        assert cache.ends.tolist() == [23, 21]
        rows = torch.tensor([1, 0, 1])
        assert [one.device for one in cache.select(rows).values] == model.text.block_devices
        cache.reorder(rows[:2])
