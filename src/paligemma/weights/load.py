"""Loading: build on meta, stream the parameters in, assign; strict, never a random weight."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from paligemma.adapt.quant import Quant, packs_for, place_quantised
from paligemma.config import PaliGemmaConfig
from paligemma.errors import CheckpointError, ConfigError
from paligemma.kernels.narrow_layers import NarrowEmbedding, NarrowLinear
from paligemma.kernels.nf4 import NF4Linear
from paligemma.kernels.packed_layers import PackedEmbedding, PackedLinear, packed_weights
from paligemma.model import PaliGemmaModel
from paligemma.model.siglip import resize_position_table
from paligemma.processing.added_tokens import IMAGE_PIECE, added_tokens
from paligemma.weights import bitsandbytes
from paligemma.weights.attention_options import AttentionOptions
from paligemma.weights.big_vision import BigVisionReader
from paligemma.weights.catalog import resolve
from paligemma.weights.dtypes import cast, dtype_name, parse_dtype, require_numbers
from paligemma.weights.fingerprint import of_files, of_tensors
from paligemma.weights.hashes import require_hub_bytes
from paligemma.weights.hf import HFReader
from paligemma.weights.hf_config import (
    BITS,
    Conventions,
    by_conventions,
    config_from_hf,
    is_tied,
    read_json,
    stored_embed_scale,
    with_num_tokens,
)
from paligemma.weights.model_files import Checkpoint
from paligemma.weights.npz import NpzReader
from paligemma.weights.packed_file import PackedReader
from paligemma.weights.sizes import placed
from paligemma.weights.wrapper import without_wrapper

logger = logging.getLogger(__name__)

Reader = HFReader | BigVisionReader | PackedReader
_MAX_FAULTS = 10
_MAX_SHOWN = 300


def open_weights(checkpoint: Checkpoint, beside: Sequence[str] = ()) -> Reader:
    """The reader of a checkpoint's layout; a context manager.

    Args:
        beside: see `HFReader`.
    """
    if checkpoint.layout == "packed":
        return PackedReader(*checkpoint.weights)
    if checkpoint.layout == "hf":
        bitsandbytes.require_known_bits(checkpoint.config)
        return HFReader(checkpoint.weights, beside)
    return BigVisionReader(NpzReader(checkpoint.weights))


def read_config(
    checkpoint: Checkpoint,
    weights: Reader,
    conventions: Conventions = "big_vision",
    attention: AttentionOptions | None = None,
) -> tuple[PaliGemmaConfig, dict[str, Any]]:
    """A checkpoint's config, and the raw config.json ({} if an npz is recognised by its shapes)."""
    raw: dict[str, Any] = {}
    if checkpoint.config is not None:
        raw = read_json(checkpoint.config)
        if isinstance(weights, HFReader) and weights.beside():
            raw = without_wrapper(raw)
        if isinstance(weights, PackedReader):
            raw = weights.plain_config(raw)
        elif isinstance(weights, HFReader) and weights.has_widened:
            raw = {key: value for key, value in raw.items() if key != BITS}
        config = _with_added_tokens(config_from_hf(raw, conventions=conventions), checkpoint)
    elif isinstance(weights, BigVisionReader):
        config = by_conventions(weights.infer_config(), conventions)
    else:
        raise CheckpointError(
            f"safetensors need the config.json they were published with, {checkpoint.folder} has "
            "none; fetch it"
        )
    if isinstance(weights, HFReader):
        config = _with_head(config, raw, weights)
    elif isinstance(weights, PackedReader):
        config = replace(config, text=replace(config.text, tied_head=is_tied(raw)))
    return (attention or AttentionOptions()).applied(config), raw


def _with_added_tokens(config: PaliGemmaConfig, checkpoint: Checkpoint) -> PaliGemmaConfig:
    """The config with the tokens of a fine-tune that the tokenizer's files list."""
    listed = added_tokens(checkpoint.folder)
    last = max((token.id for token in listed if token.text != IMAGE_PIECE), default=0)
    return replace(config, vocab=with_num_tokens(config.vocab, last + 1))


def _with_head(config: PaliGemmaConfig, raw: dict[str, Any], weights: HFReader) -> PaliGemmaConfig:
    """The config with an output head of its own where the file has one that differs."""
    ties = is_tied(raw)
    if not weights.has_head:
        if not ties:
            raise CheckpointError(
                f"a head that config.json does not tie to the embedding must be a tensor of its "
                f"own, {weights.name} lacks lm_head.weight or the embedding; save both, or set "
                "tie_word_embeddings to true if they are one"
            )
        return config
    num_apart = weights.num_apart(config.vocab.size)
    if num_apart and ties:
        logger.warning(
            "%s has an lm_head.weight that differs from the embedding in %d rows, though "
            "config.json ties them; the head of the file is used",
            weights.name,
            num_apart,
        )
    return replace(config, text=replace(config.text, tied_head=not num_apart))


def require_fit(weights: Reader, config: PaliGemmaConfig) -> None:
    """Raise one CheckpointError that names missing, unexpected and misshaped keys, ten at most."""
    problems = weights.problems(config)
    if problems:
        raise CheckpointError(
            f"a checkpoint must hold exactly the model's tensors, {weights.name} has "
            f"{len(problems)} faults; fetch it again or correct config.json:\n  "
            + "\n  ".join(problem[:_MAX_SHOWN] for problem in problems[:_MAX_FAULTS])
            + (f"\n  and {len(problems) - _MAX_FAULTS} more" * (len(problems) > _MAX_FAULTS))
        )


def unnamed_rows(weights: Reader, config: PaliGemmaConfig) -> str | None:
    """A sentence about rows of the table that may be tokens of a fine-tune without a name."""
    count = weights.num_unnamed(config) if isinstance(weights, HFReader) else 0
    if not count:
        return None
    return (
        f"{count} rows of the embedding table behind the last token have no name and are not "
        "used; if the fine-tune added tokens, put its added_tokens.json or tokenizer.json beside "
        "the weights"
    )


def _warn_of_unnamed_rows(weights: Reader, config: PaliGemmaConfig) -> None:
    sentence = unnamed_rows(weights, config)
    if sentence:
        logger.warning("%s: %s", weights.name, sentence)


class OpenCheckpoint:
    """A checkpoint whose header was read and found to fit; its tensors are read by `load`.

    A context manager: the files stay open until it ends.

    Args:
        source: a name, folder or file as in `catalog.resolve`, or what that returned.
        image_size_px: another resolution than the file's; the position table is resized.
        conventions: whose rule holds where big_vision and transformers differ: final soft-cap,
            sliding window, rounding of the embedding factor, dtype of the cache.
        attention: caps and window, whatever the conventions say.
        config: config of a model that neither config.json nor shapes describe.
        revision: branch of the hub.
        beside: names of layers that a file may have beside the model's, see `HFReader`.

    Attributes:
        checkpoint: the files, among them tokenizer and mask codec.
        config: the model's config at the wanted resolution.
        table_dtype: dtype of the embedding table in the file.
        quant: how the weights are packed in the file; None where they are not.

    Raises:
        CheckpointError: unreadable files, or tensors that do not fit the config, all in one error.
        ModelNotFoundError, AccessError, MissingExtraError, ConfigError: as in `catalog.resolve`.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Checkpoint,
        *,
        image_size_px: int | None = None,
        conventions: Conventions = "big_vision",
        attention: AttentionOptions | None = None,
        config: PaliGemmaConfig | None = None,
        revision: str | None = None,
        beside: Sequence[str] = (),
    ) -> None:
        if not isinstance(source, Checkpoint):
            source = resolve(source, revision=revision)
        self.checkpoint = source
        require_hub_bytes(source.files)
        self._conventions = conventions
        self._raw: dict[str, Any] = {}
        with ExitStack() as files:
            self._weights = open_weights(source, beside)
            files.callback(self._weights.__exit__, None, None, None)
            if config is None:
                config, self._raw = read_config(source, self._weights, conventions, attention)
            require_fit(self._weights, config)
            _warn_of_unnamed_rows(self._weights, config)
            self.table_dtype = self._weights.table_dtype()
            self.quant = self._weights.quant if isinstance(self._weights, PackedReader) else None
            self._files = files.pop_all()
        self._stored_config = config
        self.config = config.with_resolution(image_size_px) if image_size_px else config

    def __enter__(self) -> OpenCheckpoint:
        return self

    def __exit__(self, *raised: object) -> None:
        self._files.close()

    def beside(self) -> Mapping[str, Tensor]:
        """Tensors of the layers that the file has beside the model's, by name."""
        return self._weights.beside() if isinstance(self._weights, HFReader) else {}

    def fingerprint(self) -> str:
        """A name that follows from the weights, see `fingerprint.fingerprint`."""
        if isinstance(self._weights, PackedReader):
            return of_files(self.checkpoint.weights)
        return of_tensors(self._weights.tensors(self._stored_config))

    def load(
        self,
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | Sequence[torch.device] = "cpu",
        quant: Quant | None = None,
    ) -> PaliGemmaModel:
        """Build the model on the meta device and assign its tensors one at a time.

        Args:
            dtype: dtype of the parameters; None keeps the file's, which lets safetensors be
                memory-mapped. A packed model has float32 beside its packed matrices.
            device: where the parameters go; over several the decoder's blocks, see `divide`.
            quant: layers that are quantised, each as soon as it is read; of the file nothing
                stays in memory then. Panels of a packed file stay there and are mapped.

        Returns:
            The model in evaluation mode.

        Raises:
            ConfigError: a packed model on another device, or in another dtype or kind than it has,
                or weights without room there.
        """
        start = time.perf_counter()
        with torch.device("meta"):
            model = PaliGemmaModel(self.config)
        wanted = None if dtype is None else parse_dtype(dtype)
        quant = self.chosen(quant)
        devices = [torch.device(device)] if isinstance(device, str | torch.device) else device
        packs = self.quant is not None or packs_for(devices[0])
        is_packed = quant is not None and quant.is_packed and packs
        if is_packed:
            _require_packable(quant, wanted, devices[0])
            wanted = torch.float32
        if quant is not None:
            place_quantised(model, quant, wanted or self.table_dtype, packs=packs)
        places = placed(self.config, quant, wanted or self.table_dtype, devices, packs=packs)
        for name, tensor in self._tensors(model, in_turn=quant is not None):
            if name == "vision.pos_embedding":
                wide = torch.promote_types(tensor.dtype, wanted or tensor.dtype)
                tensor = resize_position_table(tensor.to(wide), self.config.num_image_tokens)
            if take_quantised(model, name, tensor, places.of(name)):
                continue
            if wanted is not None:
                tensor = cast(tensor, wanted, name)
            _assign(model, name, tensor.clone() if is_packed else tensor.to(places.of(name)))
        _require_complete(model)
        rounds_as_file = self._conventions == "big_vision" or is_packed
        _set_embed_scale(model, self._raw, self.table_dtype if rounds_as_file else model.dtype)
        logger.info("%s loaded in %.1f s", self.checkpoint.name, time.perf_counter() - start)
        return model.eval()

    def chosen(self, quant: Quant | None) -> Quant | None:
        """The quantisation that is asked for, or that of the file.

        Raises:
            ConfigError: the file is packed in another one.
        """
        if self.quant is None or quant in (None, self.quant):
            return quant or self.quant
        raise ConfigError(
            f"packed weights keep their kinds, {self.checkpoint.folder} holds {self.quant}, got "
            f"quant {quant}; leave it out, or name the model that it was converted from"
        )

    def _tensors(self, model: PaliGemmaModel, *, in_turn: bool) -> Iterator[tuple[str, Tensor]]:
        if isinstance(self._weights, PackedReader):
            return self._weights.fill(model)
        if in_turn and isinstance(self._weights, HFReader):
            return self._weights.tensors_in_turn(self._stored_config)
        return self._weights.tensors(self._stored_config)

    def cache_dtype(self, model: PaliGemmaModel) -> torch.dtype:
        """Dtype of keys and values while decoding, by the conventions: bfloat16 by big_vision's,
        the model's own by transformers'."""
        return torch.bfloat16 if self._conventions == "big_vision" else model.dtype


def load_model(
    source: str | os.PathLike[str] | Checkpoint,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    image_size_px: int | None = None,
    conventions: Conventions = "big_vision",
    attention: AttentionOptions | None = None,
    config: PaliGemmaConfig | None = None,
    revision: str | None = None,
) -> PaliGemmaModel:
    """Load a bare model by name, folder or file; arguments and errors as in `OpenCheckpoint`.

    Args:
        dtype: dtype of the parameters; None keeps the file's, which lets safetensors be
            memory-mapped.
        device: where the parameters go, one tensor at a time.

    Returns:
        The model in evaluation mode, with its config as `model.config`.
    """
    opened = OpenCheckpoint(
        source,
        image_size_px=image_size_px,
        conventions=conventions,
        attention=attention,
        config=config,
        revision=revision,
    )
    with opened:
        return opened.load(dtype=dtype, device=device)


def _assign(model: PaliGemmaModel, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if module._parameters[leaf].shape != tensor.shape:  # type: ignore[union-attr]
        raise ConfigError(f"{name} must be {module._parameters[leaf]}, got {tuple(tensor.shape)}")
    module._parameters[leaf] = nn.Parameter(tensor)


_WITH_HEAD = (PackedEmbedding, NarrowEmbedding)
_QUANTISED = (NF4Linear, PackedLinear, NarrowLinear, *_WITH_HEAD)


def take_quantised(
    model: PaliGemmaModel, name: str, tensor: Tensor, device: torch.device | str
) -> bool:
    """Give a tensor to the quantised layer whose weights it is; False where there is none.

    Args:
        name: of the parameter in a plain model.
        device: where it is quantised.

    Raises:
        ValueError: another shape than the layer has.
        CheckpointError: NaN or infinity, which fewer bits would turn into ordinary numbers.
    """
    owner, _, leaf = name.rpartition(".")
    layer = model.get_submodule(owner)
    if leaf in ("weight", "head") and isinstance(layer, _QUANTISED):
        require_numbers(name, tensor)
    if leaf == "weight" and isinstance(layer, _QUANTISED):
        layer.quantise(tensor.to(device))
    elif leaf == "head" and isinstance(layer, _WITH_HEAD):
        layer.quantise_head(tensor.to(device))
    else:
        return False
    return True


def _require_packable(quant: Quant | None, dtype: torch.dtype | None, device: torch.device) -> None:
    if device.type != "cpu":
        raise ConfigError(
            f"{quant} weights are packed for a CPU, the device is {device}; name the device cpu, "
            "or the model that they were converted from"
        )
    if dtype not in (None, torch.float32):
        raise ConfigError(
            f"packed weights ({quant}) are computed in float32, got {dtype_name(dtype)}; leave the "
            "dtype out"
        )


def _require_complete(model: PaliGemmaModel) -> None:
    named = (*model.named_parameters(), *model.named_buffers())
    left = [name for name, tensor in named if tensor.is_meta]
    left += [name for name, weight in packed_weights(model).items() if weight.is_empty]
    if left:
        raise CheckpointError(f"these parameters were never read: {', '.join(left)}")


def _set_embed_scale(model: PaliGemmaModel, raw: dict[str, Any], rounded_to: torch.dtype) -> None:
    """The factor that the file states, or sqrt(width), rounded as who computes it does.

    transformers rounds to the dtype it computes in, big_vision to the file's.
    """
    stored = stored_embed_scale(raw)
    if stored is not None:
        model.text.embed_scale = stored
    else:
        model.text.set_embed_scale(rounded_to)
