"""The real architecture at tiny size: cache, batching and image reuse change no answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fake_models import text_batch
from torch import Tensor

from paligemma.batch import Batch
from paligemma.config import PaliGemmaConfig, TextConfig, VisionConfig
from paligemma.errors import PromptError
from paligemma.generate import BeamOptions, DecodeOptions, beam_search, generate
from paligemma.model import PaliGemmaModel
from paligemma.vocab import Vocab

GEMMA_1 = TextConfig(
    width=32,
    depth=2,
    mlp_dim=48,
    num_heads=4,
    num_kv_heads=1,
    head_dim=8,
    query_scale=8**-0.5,
    attn_softcap=None,
    final_softcap=None,
    post_norms=False,
    sliding_window=None,
    norm_eps=1e-6,
    rope_theta=10_000.0,
)
GEMMA_2 = replace(GEMMA_1, num_kv_heads=2, attn_softcap=8.0, final_softcap=6.0, post_norms=True)
PROMPTS = ((2, 17, 30, 31, 3), (2, 3), (2, 40, 3))
LONG = DecodeOptions(max_new_tokens=12, kv_cache_dtype="float32", banned_ids=(1,))

generations = pytest.mark.parametrize("text", [GEMMA_1, GEMMA_2], ids=["gemma", "gemma2"])


def tiny(text: TextConfig) -> PaliGemmaModel:
    """Random weights large enough that the answers depend on image and prompt."""
    model = PaliGemmaModel(
        PaliGemmaConfig(
            vision=VisionConfig(
                image_size_px=28, patch_size_px=14, width=24, depth=1, mlp_dim=32, num_heads=2
            ),
            text=text,
            vocab=Vocab(size=64, pad=0, eos=1, bos=2, sep=3, loc0=-1, seg0=-1),
        )
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 16
            parameter.normal_(std=1.5 * fan_in**-0.5, generator=generator)
        # Small embeddings leave the residual stream to image and attention; a large final norm
        # makes up for it, so that the first logits exceed the cap that later ones must obey.
        model.text.embed.weight.mul_(0.1)
        model.text.norm.scale.fill_(15.0)
    return model.eval()


def images(num: int, *frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(num, *frames, 28, 28, 3, generator=generator) * 2 - 1


def batch_of(pictures: Tensor | None, *prompts: tuple[int, ...]) -> Batch:
    return replace(text_batch(*prompts), images=pictures)


def uncached_logits(model: PaliGemmaModel, batch: Batch, row: int, answer: Tensor) -> Tensor:
    """float32[T, V] before each answer token, from one complete forward without a cache."""
    prompt = batch.tokens[row][batch.mask_input[row]]
    tokens = torch.cat((prompt, answer))[None, :-1]
    mask_ar = torch.zeros_like(tokens)
    mask_ar[:, len(prompt) :] = 1
    assert batch.images is not None
    with torch.no_grad():
        soft = model.encode_image(batch.images[row : row + 1])
        free = model(soft, tokens, mask_ar, torch.ones_like(tokens).bool())[0]
        capped = model(soft, tokens, mask_ar, torch.ones_like(tokens).bool(), final_softcap=True)[0]
    # The first token comes from prefill, whose logits are never capped.
    return torch.cat((free[len(prompt) - 1 :][:1], capped[len(prompt) :]))


@generations
def test_every_step_of_a_batch_equals_the_forward_of_its_row_without_a_cache(
    text: TextConfig,
) -> None:
    model = tiny(text)
    batch = batch_of(images(3), *PROMPTS)
    ours = generate(model, batch, LONG)
    for row in range(3):
        logits = uncached_logits(model, batch, row, ours.ids[row])
        logits[:, 1] = -torch.inf
        assert ours.ids[row].tolist() == logits.argmax(dim=-1).tolist()
        logits = uncached_logits(model, batch, row, ours.ids[row])
        expected = logits.log_softmax(dim=-1).gather(1, ours.ids[row][:, None])[:, 0]
        assert (ours.logprobs[row] - expected).abs().max().item() <= 1e-5 * logits.abs().max()
    # The answers differ and are not one token repeated, or the test would show little.
    assert len({tuple(ids) for ids in ours.ids.tolist()}) == 3
    assert min(len(set(ids)) for ids in ours.ids.tolist()) > 2


@pytest.mark.parametrize("cache", ["float32", "int8"])
@generations
def test_a_batch_of_unequal_prompts_answers_as_each_prompt_alone(
    text: TextConfig, cache: str
) -> None:
    model, pictures = tiny(text), images(3)
    long = replace(LONG, kv_cache_dtype=cache)
    # A last bit of float32 may tip a rounding to int8.
    bound = 1e-5 if cache == "float32" else 0.05
    together = generate(model, batch_of(pictures, *PROMPTS), long)
    beams = BeamOptions(num_beams=3, max_new_tokens=6, kv_cache_dtype=cache)
    searched = beam_search(model, batch_of(pictures, *PROMPTS), beams)
    for row, prompt in enumerate(PROMPTS):
        single = batch_of(pictures[row : row + 1], prompt)
        alone = generate(model, single, long)
        assert alone.ids[0].tolist() == together.ids[row].tolist()
        assert (alone.logprobs[0] - together.logprobs[row]).abs().max().item() <= bound
        found = beam_search(model, single, beams)
        length = int(found.lengths)
        assert int(searched.lengths[row]) == length
        assert found.ids[0, :length].tolist() == searched.ids[row, :length].tolist()


@pytest.mark.parametrize("frames", [(), (2,)], ids=["image", "two frames"])
def test_an_encoded_image_answers_many_prompts_as_a_fresh_one(frames: tuple[int, ...]) -> None:
    model, picture = tiny(GEMMA_2), images(1, *frames)
    fresh = generate(model, batch_of(picture.expand(3, *picture.shape[1:]), *PROMPTS), LONG)
    with torch.no_grad():
        soft = model.encode_image(picture)
    model.encode_image = None  # type: ignore[assignment,method-assign]
    for reused in (soft, soft.expand(3, -1, -1)):
        again = generate(model, batch_of(None, *PROMPTS), LONG, soft_tokens=reused)
        assert torch.equal(again.ids, fresh.ids)
        assert (again.logprobs - fresh.logprobs).abs().max().item() <= 1e-5
    without = generate(model, batch_of(None, *PROMPTS), LONG)
    assert not torch.equal(without.ids, fresh.ids)


def test_soft_tokens_of_another_number_of_rows_are_refused() -> None:
    model = tiny(GEMMA_1)
    with pytest.raises(PromptError, match=r"\[1 or 3, tokens, width\] for 3 prompts, got \[2, 4"):
        generate(model, batch_of(None, *PROMPTS), LONG, soft_tokens=torch.zeros(2, 4, 32))


def test_the_cache_is_bfloat16_unless_asked_otherwise() -> None:
    model, batch = tiny(GEMMA_2), batch_of(images(3), *PROMPTS)
    default = generate(model, batch, DecodeOptions(max_new_tokens=3))
    rounded = generate(model, batch, DecodeOptions(max_new_tokens=3, kv_cache_dtype="bfloat16"))
    exact = generate(model, batch, DecodeOptions(max_new_tokens=3, kv_cache_dtype="float32"))
    assert torch.equal(default.logprobs, rounded.logprobs)
    # Prefill reads the rounded keys too, so the first token differs already.
    assert 1e-4 < (rounded.logprobs - exact.logprobs)[:, 0].abs().max().item() < 0.5
