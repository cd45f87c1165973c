"""Which model is measured: real weights or those of a published shape drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from paligemma.adapt.quant import Quant
from paligemma.bench.random_model import random_config, random_model
from paligemma.config import PaliGemmaConfig
from paligemma.model import PaliGemmaModel
from paligemma.weights.dtypes import dtype_name
from paligemma.weights.hf_config import Conventions
from paligemma.weights.load import OpenCheckpoint


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that can be described, and loaded later.

    Attributes:
        name: of a model, or of a published shape.
        is_random: whether its weights are drawn.
        quant: as `Quant.parse` reads it.
        image_size_px: another resolution than its own.
        conventions: whose rule holds where big_vision and transformers differ.
    """

    name: str
    is_random: bool = False
    quant: str | None = None
    image_size_px: int | None = None
    conventions: Conventions = "big_vision"

    @property
    def parsed_quant(self) -> Quant | None:
        """Which weights are in fewer bits."""
        return self._header[2]

    @property
    def _is_packed(self) -> bool:
        return self.parsed_quant is not None and self.parsed_quant.is_packed

    @cached_property
    def _header(self) -> tuple[PaliGemmaConfig, bool, Quant | None]:
        """Config, whether the file's weights are bfloat16, and which are in fewer bits."""
        quant = None if self.quant is None else Quant.parse(self.quant)
        if self.is_random:
            return random_config(self.name, self.image_size_px), True, quant
        with self._open() as opened:
            return opened.config, opened.table_dtype == torch.bfloat16, opened.chosen(quant)

    @property
    def config(self) -> PaliGemmaConfig:
        """Its shapes; of a checkpoint only the header is read."""
        return self._header[0]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters that are not quantised, as the other commands choose it."""
        return torch.float32 if self._is_packed else getattr(torch, self.file_dtype)

    @property
    def file_dtype(self) -> str:
        """In which a model without quantisation computes."""
        return "bfloat16" if self._header[1] else "float32"

    @property
    def kind(self) -> str:
        """The kind of most of its weights."""
        return self.parsed_quant.kind if self.parsed_quant else dtype_name(self.dtype)

    def load(self) -> PaliGemmaModel:
        """The model, ready to answer: real weights that are not packed on a GPU if there is one."""
        if self.is_random:
            return random_model(self.config, quant=self.parsed_quant, dtype=self.dtype)
        device = "cuda" if torch.cuda.is_available() and not self._is_packed else "cpu"
        with self._open() as opened:
            return opened.load(dtype=self.dtype, device=device, quant=self.parsed_quant)

    def _open(self) -> OpenCheckpoint:
        return OpenCheckpoint(
            self.name, image_size_px=self.image_size_px, conventions=self.conventions
        )
