"""Exported graphs beside the model they came from, under onnxruntime on the CPU.

What is compared are logits, as a user computes them: an empty cache and the whole prompt at first,
then one token at a time with the cache that came back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paligemma.export.graphs import empty_cache, image_id
from paligemma.export.onnx_graphs import DECODER, EMBEDDING, GRAPHS, VISION
from paligemma.model import PaliGemmaModel

NUM_STEPS = 3
_LENGTHS = (6, 4)

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far exported logits lie from the model's in one situation.

    Attributes:
        situation: what was computed, in words.
        largest: largest absolute difference.
        same_choice: share of positions whose largest logit is of the same token.
    """

    situation: str
    largest: float
    same_choice: float


class OnnxModel:
    """The graphs of a folder, run as transformers.js runs them.

    Args:
        folder: of the files.
        suffix: of their names, such as "_q4".
    """

    def __init__(self, folder: Path, suffix: str = "") -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._sessions = {
            name: onnxruntime.InferenceSession(
                str(folder / f"{name}{suffix}.onnx"), options, providers=["CPUExecutionProvider"]
            )
            for name in GRAPHS
        }

    def encode(self, pixels: Array) -> Array:
        """float32[B, 3, R, R] -> float32[B, I, D]."""
        return self._run(VISION, {"pixel_values": pixels})[0]

    def embed(self, ids: Array) -> Array:
        """int64[B, T] -> float32[B, T, D]."""
        return self._run(EMBEDDING, {"input_ids": ids})[0]

    def decode(
        self, embeds: Array, mask: Array, past: Sequence[Array], *, keep: int = 0
    ) -> tuple[Array, list[Array]]:
        """Logits and the longer cache.

        Args:
            embeds: float32[B, T, D].
            mask: int64[B, S], 0 for padding.
            past: cache as `empty_cache` has it.
            keep: number of last positions whose logits are wanted; 0 is all.
        """
        positions = mask.cumsum(axis=1)[:, -embeds.shape[1] :]  # from 1 on, as transformers.js
        names = [one.name for one in self._sessions[DECODER].get_inputs()[4:]]
        fed = {
            "inputs_embeds": embeds,
            "attention_mask": mask,
            "position_ids": positions,
            "num_logits_to_keep": np.array(keep),
            **dict(zip(names, past, strict=True)),
        }
        logits, *present = self._run(DECODER, fed)
        return logits, present

    def _run(self, name: str, fed: dict[str, Array]) -> list[Array]:
        return self._sessions[name].run(None, fed)


@torch.no_grad()
def compare(model: PaliGemmaModel, exported: OnnxModel) -> list[Difference]:
    """The differences in every situation in which a decoder is called.

    Args:
        model: the model in float32 on the CPU.
    """
    rows = _Rows(model)
    found = []
    for situation, with_picture, padding in (
        ("a picture and a prompt", True, None),
        ("a prompt alone", False, None),
        ("rows padded on the left", True, "left"),
        ("rows padded on the right", True, "right"),
    ):
        lengths = (_LENGTHS[0],) * 2 if padding is None else _LENGTHS
        at_once, later = rows.logits(exported, lengths, with_picture, padding)
        ours_at_once, ours_later = rows.reference(lengths, with_picture)
        found.append(_difference(situation, at_once, ours_at_once))
        found.append(_difference(f"{situation}: {NUM_STEPS} steps more", later, ours_later))
    return found


class _Rows:
    """Random pictures, prompts and answers of two rows, always the same."""

    def __init__(self, model: PaliGemmaModel) -> None:
        self._model, vocab = model, model.config.vocab
        side = model.config.vision.image_size_px
        generator = torch.Generator().manual_seed(0)
        self._pixels = torch.rand(2, side, side, 3, generator=generator) * 2 - 1
        shape = (2, _LENGTHS[0] + NUM_STEPS)
        last = vocab.size if vocab.image is None else vocab.image
        self._tokens = torch.randint(last, shape, generator=generator)
        self._pad, self._image = vocab.pad, image_id(vocab)

    def reference(
        self, lengths: Sequence[int], with_picture: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The model's logits of each row alone: of its prompt, and of the steps after it."""
        soft = self._model.encode_image(self._pixels) if with_picture else None
        prompts, steps = [], []
        for row, length in enumerate(lengths):
            tokens = self._tokens[row : row + 1, : length + NUM_STEPS]
            mask_ar = (torch.arange(tokens.shape[1]) >= length).long()[None]
            beside = None if soft is None else soft[row : row + 1]
            logits = self._model(beside, tokens, mask_ar)[0]
            prompts.append(logits[:length])
            steps.append(logits[length:])
        return prompts, steps

    def logits(
        self,
        exported: OnnxModel,
        lengths: Sequence[int],
        with_picture: bool,
        padding: str | None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The same of the exported graphs, rows side by side."""
        config = self._model.config
        num_soft = config.num_image_tokens if with_picture else 0
        width = num_soft + max(lengths)
        ids = torch.full((2, width), self._pad)
        mask = torch.zeros_like(ids)
        begins = [width - num_soft - length if padding == "left" else 0 for length in lengths]
        for row, (begin, length) in enumerate(zip(begins, lengths, strict=True)):
            ids[row, begin : begin + num_soft] = self._image
            text = slice(begin + num_soft, begin + num_soft + length)
            ids[row, text] = self._tokens[row, :length]
            mask[row, begin : begin + num_soft + length] = 1
        embeds = exported.embed(ids.numpy())
        if with_picture:
            pixels = self._pixels.permute(0, 3, 1, 2).contiguous()
            features = exported.encode(pixels.numpy())
            embeds[ids.numpy() == self._image] = features.reshape(-1, features.shape[-1])
        past: Sequence[Array] = [one.numpy() for one in empty_cache(config.text, 2)]
        told, past = exported.decode(embeds, mask.numpy(), past)
        prompts = [
            torch.from_numpy(told[row, begin + num_soft : begin + num_soft + length])
            for row, (begin, length) in enumerate(zip(begins, lengths, strict=True))
        ]
        steps: list[list[Tensor]] = [[], []]
        for step in range(NUM_STEPS):
            mask = torch.cat((mask, torch.ones(2, 1, dtype=torch.long)), dim=1)
            chosen = [self._tokens[row, length + step] for row, length in enumerate(lengths)]
            embeds = exported.embed(torch.stack(chosen)[:, None].numpy())
            told, past = exported.decode(embeds, mask.numpy(), past, keep=1)
            for row in range(2):
                steps[row].append(torch.from_numpy(told[row, -1]))
        return prompts, [torch.stack(row) for row in steps]


def _difference(situation: str, theirs: list[Tensor], ours: list[Tensor]) -> Difference:
    theirs_all, ours_all = torch.cat(theirs), torch.cat(ours)
    return Difference(
        situation=situation,
        largest=float((theirs_all - ours_all).abs().max()),
        same_choice=float((theirs_all.argmax(-1) == ours_all.argmax(-1)).float().mean()),
    )
