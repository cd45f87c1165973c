"""The model as functions that a tracer can follow: no state, tensors in and tensors out.

Axes: B batch, T new tokens, P cached tokens, S = P + T, K key/value heads, H head dim, D width,
I image tokens, R side of the picture, V vocabulary.

Names and axes of inputs and outputs are those that transformers.js feeds a PaliGemma with
(huggingface/transformers.js, packages/transformers/src/models/modeling_utils.js).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paligemma.config import TextConfig
from paligemma.model import PaliGemmaModel
from paligemma.model.gemma import Gemma
from paligemma.model.kv_cache import KVCache
from paligemma.vocab import Vocab


class VisionEncoder(nn.Module):
    """Pictures to soft tokens."""

    def __init__(self, model: PaliGemmaModel) -> None:
        super().__init__()
        self.vision, self.projector = model.vision, model.projector

    def forward(self, pixel_values: Tensor) -> Tensor:
        """float[B, 3, R, R] in [-1, 1] -> float[B, I, D], not scaled."""
        return self.projector(self.vision(pixel_values.permute(0, 2, 3, 1).contiguous()))


class TokenEmbedding(nn.Module):
    """Ids to embeddings, scaled."""

    def __init__(self, model: PaliGemmaModel) -> None:
        super().__init__()
        self.text = model.text
        self.num_tokens = model.config.vocab.size
        self.pad = model.config.vocab.pad

    def forward(self, input_ids: Tensor) -> Tensor:
        """int64[B, T] -> float[B, T, D].

        The id of `<image>`, whose place soft tokens take, lies behind the table and reads as pad.
        """
        return self.text.embed_tokens(torch.where(input_ids < self.num_tokens, input_ids, self.pad))


def decoder_of(model: PaliGemmaModel) -> Gemma:
    """The decoder of a model in big_vision's conventions, which all models are exported in.

    Raises:
        ValueError: it has a final soft-cap or a sliding window, which the graphs do not compute.
    """
    text = model.config.text
    if text.final_softcap is not None or text.sliding_window is not None:
        raise ValueError("graphs have no final soft-cap and no sliding window; load without them")
    return model.text


class GrownCache(KVCache):
    """Keys and values that new ones are put behind: float[B, K, P, H] of each layer.

    Args:
        past: keys and values of the first layer, then of the second, and so on; none at all where
            nothing is cached yet.
    """

    def __init__(self, past: Sequence[Tensor]) -> None:
        self.keys, self.values = list(past[0::2]), list(past[1::2])

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put float[B, T, K, H] behind what is there; all of it as float[B, S, K, H]."""
        for tensors, new in ((self.keys, k.transpose(1, 2)), (self.values, v.transpose(1, 2))):
            if layer < len(tensors):
                tensors[layer] = torch.cat((tensors[layer], new), dim=2)
            else:
                tensors.append(new.contiguous())  # a compiled step takes no other strides
        return self.keys[layer].transpose(1, 2), self.values[layer].transpose(1, 2)

    def flat(self) -> tuple[Tensor, ...]:
        """Keys and values, layer by layer, as `past`."""
        pairs = zip(self.keys, self.values, strict=True)
        return tuple(one for pair in pairs for one in pair)


class Decoder(nn.Module):
    """Embeddings and cache to logits and a longer cache, for the prompt and for every later step.

    With an empty cache all tokens see each other, as image and prefix do. Behind a cache a token
    sees the cache, itself and the new tokens before it.
    """

    def __init__(self, model: PaliGemmaModel) -> None:
        super().__init__()
        self.text = decoder_of(model)

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        num_logits_to_keep: Tensor,
        past: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """Logits of the last positions, and the cache.

        Args:
            inputs_embeds: float[B, T, D].
            attention_mask: int64[B, S], 0 for padding, on whichever side.
            position_ids: int64[B, T]; only their differences matter, so 0 or 1 may be the first.
            num_logits_to_keep: int64[], number of last positions whose logits are wanted; 0 is all.
            past: float[B, K, P, H], keys and values of each layer.

        Returns:
            float32[B, number, V], and float[B, K, S, H] of each layer as `past`.
        """
        num_new, num_past = inputs_embeds.shape[1], past[0].shape[2]
        valid = attention_mask.bool()
        key_slots = torch.arange(attention_mask.shape[1], device=valid.device)
        slots = torch.arange(num_new, device=valid.device) + num_past
        begins = torch.full((1, 1), 1, device=valid.device) * num_past == 0
        mask = ((key_slots[None] <= slots[:, None]) | begins)[None] & valid[:, None]
        cache = GrownCache(past)
        hidden = self.text(inputs_embeds, position_ids, mask, cache)
        logits = self.text.logits(last_positions(hidden, num_logits_to_keep))
        return (logits, *cache.flat())


class Prefill(nn.Module):
    """A picture and a prompt to the logits of the first answer token, and the cache."""

    def __init__(self, model: PaliGemmaModel) -> None:
        super().__init__()
        self.encoder, self.embedding = VisionEncoder(model), TokenEmbedding(model)
        self.text = decoder_of(model)

    def forward(self, pixel_values: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        """float[B, 3, R, R] and int64[B, T] -> float32[B, V], and float[B, K, I + T, H] of each
        layer as `GrownCache.flat` has it."""
        x = torch.cat((self.encoder(pixel_values), self.embedding(tokens)), dim=1)
        positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        cache = GrownCache(())
        hidden = self.text(x, positions, None, cache, num_outputs=1)  # all see each other
        return (self.text.logits(hidden[:, 0]), *cache.flat())


class Step(nn.Module):
    """One more token of each row: ids and cache to logits and a longer cache."""

    def __init__(self, model: PaliGemmaModel) -> None:
        super().__init__()
        self.embedding, self.text = TokenEmbedding(model), decoder_of(model)

    def forward(self, tokens: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """int64[B] and float[B, K, P, H] of each layer -> float32[B, V] and the cache, one longer.

        The rows have no padding; the new token follows the P before it.
        """
        slots = torch.arange(past[0].shape[2] + 1, device=tokens.device)
        positions = slots.expand(tokens.shape[0], -1)
        cache = GrownCache(past)
        hidden = self.text(self.embedding(tokens[:, None]), positions[:, -1:], None, cache)
        return (self.text.logits(hidden[:, 0]), *cache.flat())


def last_positions(hidden: Tensor, count: Tensor) -> Tensor:
    """The last positions of float[B, T, D], as many as int64[] says; all where it is 0."""
    num_positions = hidden.shape[1]
    start = torch.where(count == 0, 0, num_positions - count).item()
    torch._check(start >= 0)
    torch._check(start <= num_positions)
    return hidden[:, start:]


def image_id(vocab: Vocab) -> int:
    """The id of `<image>` in a prompt; without one of its own, the first behind the table."""
    return vocab.size if vocab.image is None else vocab.image


def cache_names(config: TextConfig, stem: str) -> list[str]:
    """`past_key_values.0.key`, `past_key_values.0.value`, ... of every layer."""
    return [f"{stem}.{n}.{kind}" for n in range(config.depth) for kind in ("key", "value")]


def empty_cache(config: TextConfig, batch_size: int, length: int = 0) -> list[Tensor]:
    """Zeros float32[B, K, length, H] for keys and values of each layer."""
    shape = (batch_size, config.num_kv_heads, length, config.head_dim)
    return [torch.zeros(shape) for _ in range(2 * config.depth)]
