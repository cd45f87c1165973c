"""What is not said is done as in the original."""

from __future__ import annotations

import torch

from paligemma.generate import BeamOptions
from paligemma.generate.sampling import Nucleus


def test_beams_keep_a_bfloat16_cache() -> None:
    assert BeamOptions(max_new_tokens=1, num_beams=2).kv_cache_dtype == "bfloat16"


def test_the_nucleus_is_cut_after_the_temperature() -> None:
    # At temperature 1 the best token holds 0.69 of the mass and is alone in a nucleus of 0.65; at
    # 10 the four are nearly even, and three of them are needed.
    logits = torch.tensor([[3.0, 1.5, 1.0, 0.5]]).expand(4000, -1)
    assert 0.65 < float(logits[0].softmax(0)[0]) < 0.7
    generator = torch.Generator().manual_seed(0)
    cold = Nucleus(p=0.65, temperature=1.0)(logits, generator)
    warm = Nucleus(p=0.65, temperature=10.0)(logits, generator)
    assert set(cold.tolist()) == {0}
    assert set(warm.tolist()) == {0, 1, 2}
