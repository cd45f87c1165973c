"""Nothing reads weights from outside a layer, so that a layer of another type is a drop-in."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from opaque_layers import make_opaque
from test_model_cache import picture, small_model
from torch import Tensor, nn

from paligemma.model import PaliGemmaModel

TOKENS = torch.tensor([[2, 40, 41, 42, 4], [2, 50, 4, 0, 0]])


@torch.no_grad()
def every_method(model: PaliGemmaModel) -> list[Tensor]:
    """What each public method of the model computes for two prompts."""
    soft = model.encode_image(picture(2).to(model.device))
    valid, mask_ar = TOKENS != 0, torch.zeros_like(TOKENS)
    cache = model.new_cache(2, soft.shape[1] + TOKENS.shape[1] + 1, model.dtype)
    first, positions = model.prefill(soft, TOKENS, mask_ar, valid, cache)
    second = model.decode_step(first.argmax(dim=1), positions, cache)
    hidden = model.hidden(soft, TOKENS, mask_ar, with_image=True)
    whole = model(soft, TOKENS, mask_ar, valid, final_softcap=True)
    return [soft, first, second, hidden, whole, model.text.embedding_rows(300, 7)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("generation", ["gemma", "gemma2"])
def test_layers_of_another_type_give_equal_numbers(generation: str, dtype: torch.dtype) -> None:
    # torch multiplies by another route where a weight requires gradients, under no_grad too.
    model = small_model(generation).to(dtype).requires_grad_(False)
    swapped = deepcopy(model)
    # Patches, six layers a block of the tower, the projector, seven a block of the decoder, and
    # the table of embeddings.
    vision, text = model.config.vision, model.config.text
    assert make_opaque(swapped) == 1 + 6 * vision.depth + 1 + 7 * text.depth + 1
    kept = {type(part).__name__ for part in swapped.modules() if hasattr(part, "weight")}
    assert kept == {"LayerNorm"}
    assert (swapped.dtype, swapped.device) == (dtype, torch.device("cpu"))
    for ours, theirs in zip(every_method(model), every_method(swapped), strict=True):
        assert torch.equal(ours, theirs)


def test_the_table_of_embeddings_is_read_by_name() -> None:
    text = small_model("gemma2").text
    rows = text.embedding_rows(300, 4)
    assert torch.equal(rows, text.embed(torch.arange(300, 304)))
    rows.sum().backward()
    grad = text.embed.weight.grad
    assert isinstance(text.embed.weight, nn.Parameter)
    assert grad is not None
    assert grad.any(dim=1).nonzero().flatten().tolist() == [300, 301, 302, 303]
