"""Where padding lies changes nothing, and dropout sits where the original has it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_model_cache import ANSWER, PROMPT, full_logits, picture, small_model

# The second prompt again, padded on the left and in the middle.
PADDED = {
    "left": torch.tensor([0, 0, 0, 2, 50, 4]),
    "between": torch.tensor([2, 0, 50, 0, 0, 4]),
}


@pytest.mark.parametrize("where", sorted(PADDED))
@pytest.mark.parametrize("generation", ["gemma", "gemma2"])
@torch.no_grad()
def test_padding_before_or_between_tokens_changes_no_logit(generation: str, where: str) -> None:
    model = small_model(generation)
    soft = model.encode_image(picture(2))
    tokens = torch.stack((PROMPT[0], PADDED[where]))
    valid = tokens != 0
    cache = model.new_cache(2, soft.shape[1] + 6 + 4, torch.float32)
    logits, positions = model.prefill(soft, tokens, torch.zeros_like(tokens), valid, cache)
    steps = [logits]
    for step in range(4):
        steps.append(model.decode_step(ANSWER[:, step], positions + step, cache))
    for row in range(2):
        full = full_logits(model, soft, row)
        found = torch.stack(steps, dim=1)[row]
        assert (found - full).abs().max().item() <= 1e-5 * full.abs().max().item()


@torch.no_grad()
def test_a_whole_forward_with_padding_on_the_left_is_that_without() -> None:
    model = small_model("gemma2")
    soft = model.encode_image(picture(1))
    tokens = PADDED["left"][None]
    valid = tokens != 0
    found = model(soft, tokens, torch.zeros_like(tokens), valid)[0, 3:]
    bare = tokens[:, 3:]
    expected = model(soft, bare, torch.zeros_like(bare), torch.ones_like(bare).bool())[0]
    assert (found - expected).abs().max().item() <= 1e-5 * expected.abs().max().item()


@pytest.mark.parametrize("generation", ["gemma", "gemma2"])
def test_dropout_follows_the_norm_after_attention_and_precedes_that_after_the_feed_forward(
    generation: str,
) -> None:
    block = small_model(generation).text.blocks[0]
    block.dropout = 0.5
    block.train()
    width = block.pre_attn_norm.scale.shape[0]
    x = torch.randn(1, 3, width, generator=torch.Generator().manual_seed(0))
    # Attention itself has no dropout; any function of the tokens will do.
    block.attn = _Rolled()
    torch.manual_seed(5)
    found = block(x, None, 3)
    torch.manual_seed(5)
    middle = x + F.dropout(block.post_attn_norm(block.attn(block.pre_attn_norm(x), None, 3)), 0.5)
    widened = F.dropout(block.mlp(block.pre_ffw_norm(middle)), 0.5)
    torch.testing.assert_close(found, middle + block.post_ffw_norm(widened))
    block.eval()
    quiet = block(x, None, 3)
    assert torch.equal(quiet, block(x, None, 3))
    assert not torch.equal(quiet, found)


class _Rolled(torch.nn.Module):
    def forward(self, x: torch.Tensor, _context: object, _num: int) -> torch.Tensor:
        return x.roll(1, dims=1)
