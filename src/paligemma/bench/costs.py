"""What an answer costs at least: operations before the first token, bytes for each further one.

Axes: B batch, I image tokens, T prompt tokens, D width, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from paligemma.config import PaliGemmaConfig
from paligemma.model import PaliGemmaModel
from paligemma.model.kv_cache import stored_bytes


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The least that one answer needs.

    Attributes:
        vision_operations: of the tower and the projector, one picture.
        prefill_operations: of image and prompt in the decoder, and one row of logits.
        step_bytes: weights that a decoding step reads, whatever the batch.
        row_bytes: keys and values that a step reads for each row.
    """

    vision_operations: int
    prefill_operations: int
    step_bytes: int
    row_bytes: int


def costs_of(model: PaliGemmaModel, num_prompt: int, cache_dtype: torch.dtype) -> Costs:
    """Count a model's costs.

    Args:
        num_prompt: T.
        cache_dtype: of keys and values.
    """
    config = model.config
    text, num_slots = config.text, config.num_image_tokens + num_prompt
    kv_bytes = text.num_kv_heads * stored_bytes(text.head_dim, cache_dtype)
    return Costs(
        vision_operations=vision_operations(config),
        prefill_operations=prefill_operations(config, num_prompt),
        step_bytes=weight_bytes(model.text.blocks) + head_bytes(model),
        row_bytes=2 * text.depth * num_slots * kv_bytes,
    )


def vision_operations(config: PaliGemmaConfig) -> int:
    """Multiplications and additions for one picture."""
    vision, num = config.vision, config.num_image_tokens
    each = vision.depth * (4 * vision.width**2 + 2 * vision.width * vision.mlp_dim)
    each += 3 * vision.patch_size_px**2 * vision.width + vision.width * config.text.width
    attention = vision.depth * 2 * num * vision.width
    return 2 * num * (each + attention)


def prefill_operations(config: PaliGemmaConfig, num_prompt: int) -> int:
    """Multiplications and additions for image and prompt; the last block computes only keys and
    values of the image."""
    text, num = config.text, config.num_image_tokens + num_prompt
    q_width, kv_width = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    keys = 2 * text.width * kv_width
    rest = 2 * text.width * q_width + 3 * text.width * text.mlp_dim + 2 * num * q_width
    every = (text.depth - 1) * num * (keys + rest) + num * keys + num_prompt * rest
    return 2 * (every + config.vocab.size * text.width)


def weight_bytes(part: nn.Module) -> int:
    """Bytes of the parameters and buffers below a module, each memory once."""
    tensors = (*part.parameters(), *part.buffers())
    return sum({one.data_ptr(): one.nbytes for one in tensors}.values())


def head_bytes(model: PaliGemmaModel) -> int:
    """Bytes of the output head."""
    embed = model.text.embed
    matrix = getattr(embed, "head", None)
    if matrix is not None and hasattr(matrix, "nbytes"):
        return int(matrix.nbytes)
    return model.config.vocab.size * model.config.text.width * embed.dtype.itemsize
