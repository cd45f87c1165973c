"""ColPali: PaliGemma with a linear layer that gives each token a vector for late interaction.

Axes: B pages or queries, I image tokens, N all tokens, D dimensions of a vector.
Source: arXiv:2407.01449; transformers models/colpali.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paligemma.batch import Batch
from paligemma.errors import ConfigError, ImageError, PromptError
from paligemma.generate import require_whole
from paligemma.kernels.linear import Linear
from paligemma.model import PaliGemmaModel
from paligemma.pipeline.habits import for_loading
from paligemma.pipeline.loading import LoadKeywords
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.processing.pixels import ExampleImages
from paligemma.retrieval.checkpoint import load_colpali, save_colpali
from paligemma.retrieval.inputs import page_batch, query_batch, query_pieces
from paligemma.retrieval.presets import Preset
from paligemma.retrieval.vectors import Vectors

MAX_BATCH = 1024
_Item = TypeVar("_Item")


def embed(
    model: PaliGemmaModel, head: nn.Module, batch: Batch, *, normalised: bool = True
) -> tuple[Tensor, Tensor]:
    """The vectors of pages or of queries, for training and for search alike.

    Args:
        model: PaliGemma.
        head: float32[..., width] -> float32[..., D].
        batch: of `page_batch` or `query_batch`.
        normalised: whether vectors get length 1.

    Returns:
        float32[B, N, D], zero where there is padding, and bool[B, N], where there is none.
    """
    sees_all = batch.tokens.is_cpu and bool(batch.mask_input.all() and not batch.mask_ar.any())
    batch = batch.to(model.device)
    soft_tokens = None if batch.images is None else model.encode_image(batch.images)
    hidden = model.hidden(
        soft_tokens,
        batch.tokens,
        batch.mask_ar,
        batch.mask_input,
        with_image=True,
        sees_all=sees_all,
    )
    valid = batch.mask_input
    if soft_tokens is not None:
        valid = torch.cat((valid.new_ones(soft_tokens.shape[:2]), valid), dim=1)
    # In float32 also where the decoder is not: a score adds up many of these numbers.
    with torch.autocast(hidden.device.type, enabled=False):
        values = head(hidden.float())
        if normalised:
            values = F.normalize(values, dim=-1)
    return values * valid[..., None], valid


class ColPali:
    """A model that turns pages and queries into vectors, of which `max_sim` makes a score.

    Args:
        pg: the model with its processor.
        head: gives a vector for each hidden state.
        preset: what stands around pages and queries.
        fingerprint: name of the weights; see `identity`.
    """

    def __init__(
        self, pg: PaliGemma, head: Linear, preset: Preset, *, fingerprint: str = ""
    ) -> None:
        width = pg.config.text.width
        if head.in_features != width:
            raise ConfigError(
                f"the head must read hidden states of width {width}, got one for "
                f"{head.in_features}; take both from one checkpoint"
            )
        self.pg = pg
        self.head = head.float().to(pg.model.device).eval()
        self.preset = preset
        self._fingerprint = fingerprint

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str] = "tiny",
        *,
        preset: Preset | str | None = None,
        **options: Unpack[LoadKeywords],
    ) -> ColPali:
        """Load a model.

        Args:
            source: "tiny", a hub id such as "vidore/colpali-v1.3", or a folder, in any layout of
                safetensors: an adapter (PEFT), merged, of transformers (`-hf`), or of
                sentence-transformers.
            preset: one of `PRESETS` by name, or another; None takes what the folder states or what
                belongs to a published name.
            options: fields of `LoadOptions`, such as mode, device, quant and revision.

        Raises:
            CheckpointError: files that do not fit, or without the layer that gives the vectors.
            ConfigError: a checkpoint whose preset has to be named, or a bad option.
            PaliGemmaError: as `PaliGemma.from_pretrained`.
        """
        loaded = load_colpali(
            source, preset, for_loading({"conventions": "transformers"} | options)
        )
        return cls(loaded.pg, loaded.head, loaded.preset, fingerprint=loaded.fingerprint)

    @property
    def dim(self) -> int:
        """Dimensions of a vector, D."""
        return self.head.out_features

    @property
    def image_size_px(self) -> int:
        """Side of the square picture that the model reads."""
        return self.pg.processor.image_size_px

    @property
    def identity(self) -> str:
        """A name that changes with weights, head, preset and resolution; an index is bound to it.

        It does not depend on precision and quantisation, which move a vector only a little.
        """
        digest = hashlib.sha256(self._fingerprint.encode())
        if not self._fingerprint:
            head = self.head.weight.detach().cpu().to(torch.bfloat16)
            digest.update(head.contiguous().view(torch.int16).numpy().tobytes())
        stated = {name: value for name, value in self.preset.to_json().items() if name != "name"}
        stated |= {"dim": self.dim, "image_size_px": self.image_size_px}
        digest.update(json.dumps(stated, sort_keys=True).encode())
        return f"colpali-{digest.hexdigest()[:32]}"

    @torch.inference_mode()
    def encode_pages(
        self, pictures: Sequence[ExampleImages], *, batch_size: int = 1
    ) -> list[Vectors]:
        """Vectors of pages: of each patch, row by row, then of the page prompt.

        Args:
            pictures: paths, bytes, Pillow images or arrays, one of each page.
            batch_size: how many are read at once.

        Raises:
            ImageError: a bad picture, or one of several frames.
        """
        if isinstance(pictures, str | bytes | Path) or not isinstance(pictures, Sequence):
            raise ImageError(
                f"pages are a list of pictures, got {type(pictures).__name__}; put it in a list"
            )
        grid = (self.pg.config.vision.grid,) * 2
        found: list[Vectors] = []
        for some in _in_batches(pictures, batch_size):
            batch = page_batch(self.preset, self.pg.processor, some)
            found += [Vectors(values=values, grid=grid) for values in self._values(batch)]
        return found

    @torch.inference_mode()
    def encode_queries(self, texts: Sequence[str], *, batch_size: int = 8) -> list[Vectors]:
        """Vectors of queries: of each token, with those that the preset adds.

        Args:
            texts: in plain words.
            batch_size: how many are read at once.

        Raises:
            PromptError: an empty query, or one of more than 10,000 characters.
        """
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise PromptError(
                f"queries are a list of texts, got {type(texts).__name__}; put it in a list"
            )
        found: list[Vectors] = []
        for some in _in_batches(texts, batch_size):
            batch = query_batch(self.preset, self.pg.processor, some)
            pieces = [query_pieces(self.preset, self.pg.processor, text) for text in some]
            found += [
                Vectors(values=values, pieces=of_one)
                for values, of_one in zip(self._values(batch), pieces, strict=True)
            ]
        return found

    def _values(self, batch: Batch) -> Iterator[Tensor]:
        """float32[N, D] of each row of a batch, without padding, on the CPU."""
        with self.pg.engine.computing(None):
            values, valid = embed(self.pg.model, self.head, batch)
        for row, used in zip(values.cpu(), valid.cpu(), strict=True):
            yield row[used].clone()

    def save(self, folder: str | os.PathLike[str], **options: Any) -> Path:
        """Write the model as transformers has ColPali (`-hf`), with its preset and tokenizer.

        Args:
            folder: appears complete or not at all.
            options: `dtype`, `max_shard_bytes` and `overwrite` of `save_model`.

        Raises:
            CheckpointError: the folder holds what would be replaced, the model is quantised, or
                the disk refuses.
        """
        return save_colpali(self.pg, self.head, self.preset, Path(folder), **options)


def _in_batches(items: Sequence[_Item], batch_size: int) -> Iterator[Sequence[_Item]]:
    require_whole("batch_size", batch_size)
    if not 1 <= batch_size <= MAX_BATCH:
        raise ConfigError(f"batch_size must lie in 1..{MAX_BATCH}, got {batch_size}")
    for start in range(0, len(items), batch_size):
        yield items[start : start + batch_size]
