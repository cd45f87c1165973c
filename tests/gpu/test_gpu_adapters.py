"""Four-bit layers and adapters on a CUDA device answer and learn as on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from paligemma import PaliGemma
from paligemma.adapt.lora import Adapter, LoraConfig, attach
from paligemma.kernels.nf4 import NF4Linear
from paligemma.train.loss import training_loss


@pytest.mark.parametrize(("width", "height"), [(3584, 14336), (14336, 3584), (1152, 4304)])
def test_a_layer_has_the_same_bytes_products_and_gradients(width: int, height: int) -> None:
    weight = torch.randn(height, width, generator=torch.Generator().manual_seed(0)) * 0.02
    seed = torch.randn(5, height, generator=torch.Generator().manual_seed(1))
    found: dict[str, tuple[Tensor, ...]] = {}
    for device in ("cpu", "cuda"):
        layer = NF4Linear(width, height, bias=False, dtype=torch.float32)
        layer.quantise(weight.to(device))
        x = torch.randn(5, width, generator=torch.Generator().manual_seed(2)).to(device)
        x.requires_grad_()
        y = layer(x)
        y.backward(seed.to(device))
        assert x.grad is not None
        found[device] = tuple(one.detach().cpu() for one in (layer.packed, y, x.grad))
    assert (found["cpu"][0] != found["cuda"][0]).float().mean() < 1e-5
    for ours, theirs in zip(found["cpu"][1:], found["cuda"][1:], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(ours.abs().max()))


def test_gradients_of_an_adapter_on_four_bits_are_those_of_the_cpu(
    pictures: list[np.ndarray],
) -> None:
    gradients: dict[str, dict[str, Tensor]] = {}
    for name in ("cpu", "cuda"):
        pg = PaliGemma.from_pretrained("tiny", device=name, mode="exact", quant="nf4")
        pg.model.requires_grad_(False)
        adapter = Adapter.new(pg.model, LoraConfig(rank=4, token_rows=("loc",), dora=True))
        attach(pg.model, adapter)
        batch = pg.processor.training_batch(
            pictures, ["caption en"] * 4, ["a star", "two circles", "", "a digit 3"], text_len=32
        )
        training_loss(pg.model, batch.to(name)).loss.backward()
        gradients[name] = {
            key: one.grad.cpu() for key, one in adapter.named_parameters() if one.grad is not None
        }
    assert gradients["cpu"].keys() == gradients["cuda"].keys()
    for key, ours in gradients["cpu"].items():
        scale = float(ours.abs().max())
        assert torch.allclose(ours, gradients["cuda"][key], rtol=1e-3, atol=1e-3 * scale), key
