"""PaliGemma: image tower, linear projector and decoder; full forward, prefill and decode step.

Axes: B batch, F frames, I image tokens, T text tokens, D decoder width, V vocabulary.
Source: big_vision models/proj/paligemma/paligemma.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paligemma.config import PaliGemmaConfig
from paligemma.kernels.attention import soft_cap
from paligemma.kernels.gpu_step import StepBuildError
from paligemma.kernels.linear import Linear
from paligemma.model import gpu_route
from paligemma.model.attention import prefix_lm_mask
from paligemma.model.gemma import Gemma
from paligemma.model.kv_cache import KVCache
from paligemma.model.packed_step import route_in_words, step_in_c
from paligemma.model.siglip import SigLIP


class PaliGemmaModel(nn.Module):
    """One decoder over the soft tokens of the image and the text after them.

    Every method takes the image as soft tokens, so that one image can serve many prompts. The
    weights of a new model are whatever memory holds: `init_weights` draws them, and
    `paligemma.weights` loads them.
    """

    def __init__(self, config: PaliGemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = SigLIP(config.vision)
        self.projector = Linear(config.vision.width, config.text.width)
        self.text = Gemma(config.text, config.vocab.size)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of soft tokens and hidden states."""
        return self.text.dtype

    @property
    def device(self) -> torch.device:
        return self.text.device

    def encode_image(self, images: Tensor) -> Tensor:
        """Soft tokens of one image or of several frames, concatenated in time order.

        Args:
            images: float[B, R, R, 3] or [B, F, R, R, 3] in [-1, 1].

        Returns:
            float[B, F*I, D]; not scaled, unlike text embeddings.
        """
        frames = images.flatten(0, 1) if images.ndim == 5 else images
        soft = self.projector(self.vision(frames))
        return soft.reshape(images.shape[0], -1, soft.shape[-1])

    def hidden(
        self,
        soft_tokens: Tensor | None,
        tokens: Tensor,
        mask_ar: Tensor,
        mask_input: Tensor | None = None,
        *,
        with_image: bool = False,
        sees_all: bool = False,
    ) -> Tensor:
        """Final hidden states of the text positions, or of image and text, without a cache.

        Args:
            soft_tokens: float[B, I, D] from `encode_image`, or None for text only.
            tokens: int64[B, T] token ids.
            mask_ar: int[B, T], 1 opens an autoregressive step.
            mask_input: bool[B, T] valid tokens, or None when mask_ar alone marks padding, as in
                training.
            with_image: return the image positions too, in front of the text.
            sees_all: says that all tokens are valid and see each other, which needs no mask.

        Returns:
            float[B, T, D], or float[B, I+T, D] with the image.
        """
        x, mask, valid = self._join(soft_tokens, tokens, mask_ar, mask_input)
        if mask_input is None:
            positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        else:
            positions = valid.cumsum(dim=1) - 1
        num_outputs = x.shape[1] if with_image else tokens.shape[1]
        is_needed = not sees_all or self.config.text.sliding_window is not None
        return self.text(x, positions, mask if is_needed else None, num_outputs=num_outputs)

    def forward(
        self,
        soft_tokens: Tensor | None,
        tokens: Tensor,
        mask_ar: Tensor,
        mask_input: Tensor | None = None,
        *,
        final_softcap: bool = False,
    ) -> Tensor:
        """Logits of the text positions, without a cache.

        Args:
            final_softcap: cap the logits if the config has a final soft-cap, as the original's
                complete forward does; those of training are never capped.

        Returns:
            float32[B, T, V].
        """
        logits = self.text.logits(self.hidden(soft_tokens, tokens, mask_ar, mask_input))
        return self._cap(logits) if final_softcap else logits

    def new_cache(self, batch_size: int, capacity: int, dtype: torch.dtype) -> KVCache:
        """An empty cache on the model's device, its layers beside their blocks."""
        text = self.config.text
        return KVCache(
            num_layers=text.depth,
            batch_size=batch_size,
            capacity=capacity,
            num_kv_heads=text.num_kv_heads,
            head_dim=text.head_dim,
            dtype=dtype,
            device=self.device,
            layer_devices=self.text.block_devices,
        )

    def prefill(
        self,
        soft_tokens: Tensor | None,
        tokens: Tensor,
        mask_ar: Tensor,
        mask_input: Tensor,
        cache: KVCache,
        *,
        sees_all: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Read image and prompt into the cache.

        Args:
            mask_input: bool[B, T] valid tokens; rows may end at different places.
            cache: has a row for each prompt, with room for image, prompt and answer.
            sees_all: says that all tokens are valid and see each other, which a GPU uses.

        Returns:
            Logits float32[B, V] that predict the first answer token, never capped; and int64[B],
            the rotary position of that token, which is the number of valid prompt tokens.
        """
        x, mask, valid = self._join(soft_tokens, tokens, mask_ar, mask_input)
        positions = valid.cumsum(dim=1) - 1
        cache.start(valid, positions)
        num_text = tokens.shape[1]
        # Attention without a mask has a faster kernel there.
        is_needed = not (sees_all and x.is_cuda) or self.config.text.sliding_window is not None
        hidden = self.text(x, positions, mask if is_needed else None, cache, num_outputs=num_text)
        # The last valid text slot of each row. Valid tokens need not be contiguous.
        slots = torch.arange(num_text, device=x.device)
        last = torch.where(mask_input.bool(), slots, -1).amax(dim=1).clamp(min=0)
        hidden = hidden[torch.arange(len(hidden), device=x.device), last]
        return self.text.logits(hidden), valid.sum(dim=1)

    def decode_step(self, tokens: Tensor, positions: Tensor, cache: KVCache) -> Tensor:
        """Logits after one more token of each row; the cache holds what is needed of the image.

        Args:
            tokens: int64[B] the last token of each row.
            positions: int64[B] their rotary positions.
            cache: keys and values of all earlier tokens; those of these tokens are added.

        Returns:
            float32[B, V], capped if the config has a final soft-cap.
        """
        if self.decodes_runs(cache):
            return self.decode_runs(tokens, torch.arange(len(tokens)), positions, cache)
        on_gpu = gpu_route.step_on_gpu(self.text, cache)
        if on_gpu is not None:
            slots = cache.claim_next()
            try:
                return on_gpu(tokens, positions, slots, cache)
            except StepBuildError as error:
                gpu_route.give_up(self.text, error)
                cache.give_back(slots)
        positions = positions[:, None]
        cache.extend(positions)
        x = self.text.embed_tokens(tokens[:, None])
        hidden = self.text(x, positions, cache.valid[:, None, : cache.length], cache)
        return self._cap(self.text.logits(hidden[:, 0]))

    def decodes_runs(self, cache: KVCache) -> bool:
        """Whether `decode_runs` can compute: steps are computed in C, see `decode_route`."""
        return step_in_c(self.text, cache) is not None

    def decode_runs(
        self,
        tokens: Tensor,
        rows: Tensor,
        positions: Tensor,
        cache: KVCache,
        ids: Sequence[range] | None = None,
    ) -> Tensor:
        """Logits after each of some tokens, the same as one after the other by `decode_step`.

        Args:
            tokens: int64[N]; those of one row in order, each of which sees those before it.
            rows: int64[N], the row of the cache that each token belongs to.
            positions: int64[N] their rotary positions.
            cache: keys and values of all earlier tokens; those of these tokens are added.
            ids: ascending ranges of the token ids that matter, or None for all. The logits of
                others are minus infinity and cost nothing.

        Returns:
            float32[N, V], capped if the config has a final soft-cap.

        Raises:
            ValueError: steps are not computed in C.
        """
        step = step_in_c(self.text, cache)
        if step is None:
            raise ValueError(f"runs are read in C only, got {self.decode_route()}")
        ends = cache.claim(rows, positions)
        return step(self.text.embed_tokens(tokens), cache, rows, ends, ids)

    def decode_route(self) -> str:
        """How `decode_step` computes, and where torch's layers do, why."""
        on_gpu = self.device.type == "cuda"
        return gpu_route.route_in_words(self.text) if on_gpu else route_in_words(self.text)

    def _join(
        self, soft_tokens: Tensor | None, tokens: Tensor, mask_ar: Tensor, mask_input: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings float[B, I+T, D], mask bool[B, I+T, I+T] and validity bool[B, I+T]."""
        x = self.text.embed_tokens(tokens)
        valid = (
            torch.ones_like(tokens, dtype=torch.bool) if mask_input is None else mask_input.bool()
        )
        if soft_tokens is not None:
            image_shape = soft_tokens.shape[:2]
            x = torch.cat((soft_tokens.to(x.dtype), x), dim=1)
            mask_ar = torch.cat((mask_ar.new_zeros(image_shape), mask_ar), dim=1)
            valid = torch.cat((valid.new_ones(image_shape), valid), dim=1)
        return x, prefix_lm_mask(mask_ar, None if mask_input is None else valid), valid

    def _cap(self, logits: Tensor) -> Tensor:
        cap = self.config.text.final_softcap
        return logits if cap is None else soft_cap(logits, cap)


def init_weights(model: PaliGemmaModel, seed: int = 0) -> None:
    """Draw the weights of an untrained model.

    Linear layers are Xavier-uniform in the tower and truncated normal with variance 1/fan-in in the
    decoder. The projector is zero, and norms are the identity.

    Source: big_vision models/vit.py and models/ppp/gemma.py.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for name, parameter in model.named_parameters():
        value = torch.zeros(parameter.shape, dtype=torch.float32)
        if name.startswith("vision.") and name.endswith("weight"):
            if value.ndim == 2:
                nn.init.xavier_uniform_(value, generator=generator)
            else:
                value.fill_(1.0)
        elif name == "vision.pos_embedding":
            value.normal_(std=model.config.vision.width**-0.5, generator=generator)
        elif name in ("text.embed.weight", "text.embed.head"):
            value.normal_(std=model.config.text.width**-0.5, generator=generator)
        elif name.startswith("text.") and value.ndim == 2:
            # 0.87962566 is the standard deviation of a unit normal cut at two deviations.
            std = value.shape[1] ** -0.5 / 0.87962566103423978
            nn.init.trunc_normal_(value, std=std, a=-2 * std, b=2 * std, generator=generator)
        with torch.no_grad():
            parameter.copy_(value)
