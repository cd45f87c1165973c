"""What the model sees of one example: ids with their pieces, masks, labels, resized pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from paligemma.batch import TokenRow
from paligemma.processing.processor import ExampleImages, Processor, layout
from paligemma.processing.prompts import (
    clean_prompt,
    single_prompts,
    strip_eos,
    strip_markers,
)


@dataclass(frozen=True, kw_only=True)
class TokenView:
    """One text position.

    Attributes:
        position: index among the text tokens, 0-based.
        token: its id.
        piece: how the tokenizer spells the id.
        role: prefix (BOS included), sep, suffix (EOS included) or pad.
        mask_ar: 1 opens an autoregressive step.
        mask_input: valid token.
        mask_loss: 1 if the token is a target; 0 everywhere at inference.
        label: the id this position is trained to predict, or None.
    """

    position: int
    token: int
    piece: str
    role: str
    mask_ar: int
    mask_input: int
    mask_loss: int
    label: int | None


@dataclass(frozen=True, kw_only=True)
class ExampleView:
    """One example as the model reads it.

    Attributes:
        pictures: uint8[F, R, R, 3], resized; F is 1 for a single picture, 0 without one.
        num_image_tokens: soft tokens in front of the text, all pictures together.
        tokens: the text positions.
        notices: what was removed from the prompt.
    """

    pictures: NDArray[np.uint8]
    num_image_tokens: int
    tokens: tuple[TokenView, ...]
    notices: tuple[str, ...]

    @property
    def roles(self) -> tuple[str, ...]:
        """Role of every position, image tokens first."""
        return ("image",) * self.num_image_tokens + tuple(view.role for view in self.tokens)

    def masks(self) -> tuple[torch.Tensor, torch.Tensor]:
        """mask_ar int64[1, I+T] and mask_input bool[1, I+T], image tokens first.

        The arguments of `model.attention.prefix_lm_mask`.
        """
        image_ar, image_input = [0] * self.num_image_tokens, [True] * self.num_image_tokens
        mask_ar = image_ar + [view.mask_ar for view in self.tokens]
        mask_input = image_input + [bool(view.mask_input) for view in self.tokens]
        return torch.tensor([mask_ar]), torch.tensor([mask_input])


def inspect_example(
    processor: Processor,
    images: ExampleImages | None,
    prefix: str,
    suffix: str | None = None,
    *,
    tokens_per_image: int,
    text_len: int | None = None,
) -> ExampleView:
    """Everything the model sees of one example.

    Args:
        processor: of the model.
        images: a picture, a list of pictures, or None.
        prefix: the prompt as typed.
        suffix: the answer to learn; None shows a prompt at inference.
        tokens_per_image: soft tokens of one picture (`VisionConfig.num_tokens`).
        text_len: pad or cut to the length that training (plus one) or inference uses.

    Raises:
        PromptError, ImageError: as in `Processor`.
    """
    training = suffix is not None
    text, notices = (strip_markers if training else clean_prompt)(prefix)
    answer, of_answer = strip_eos(suffix or "")
    tokenizer = processor.tokenizer
    row = layout(
        tokenizer.encode(text), tokenizer.encode(answer), processor.vocab, add_eos=training
    )
    roles = _text_roles(row)
    if text_len is not None:
        length = text_len + training
        row = row.fit(length, processor.vocab.pad)
        roles = (roles + ["pad"] * length)[:length]
    pictures = _pictures(processor, images)
    return ExampleView(
        pictures=pictures,
        num_image_tokens=len(pictures) * tokens_per_image,
        tokens=tuple(_token_views(processor, row, roles, training)),
        notices=(*notices, *of_answer, *single_prompts(text)[1]),
    )


def _text_roles(row: TokenRow) -> list[str]:
    num_prompt = row.mask_ar.count(0)
    return ["prefix"] * (num_prompt - 1) + ["sep"] + ["suffix"] * (len(row) - num_prompt)


def _pictures(processor: Processor, images: ExampleImages | None) -> NDArray[np.uint8]:
    size_px = processor.image_size_px
    if images is None:
        return np.zeros((0, size_px, size_px, 3), np.uint8)
    pixels = processor.pixels(images).reshape(-1, size_px, size_px, 3)
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def _token_views(
    processor: Processor, row: TokenRow, roles: Sequence[str], training: bool
) -> Iterator[TokenView]:
    for position, token in enumerate(row.tokens):
        following = position + 1
        predicts = training and following < len(row) and row.mask_loss[following]
        yield TokenView(
            position=position,
            token=token,
            piece=processor.tokenizer.piece(token),
            role=roles[position],
            mask_ar=row.mask_ar[position],
            mask_input=row.mask_input[position],
            mask_loss=row.mask_loss[position] if training else 0,
            label=row.tokens[following] if predicts else None,
        )
