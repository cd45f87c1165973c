"""Activation checkpointing: a block's inside is computed again where its gradients are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(blocks: Iterable[nn.Module]) -> None:
    """Let blocks, those of the decoder or of the tower, keep their inputs alone while training.

    Their parameters keep their names: the forward of each block is replaced, not the block.
    """
    for block in blocks:
        inner = block.forward

        def forward(*inputs: Any, inner: Any = inner) -> Any:
            if torch.is_grad_enabled():
                # Dropout draws the same numbers both times.
                return checkpoint(inner, *inputs, use_reentrant=False)
            return inner(*inputs)

        block.forward = forward
