"""What belongs to a model by name: weights, tokenizer and mask codec, and the mode it runs in."""

from __future__ import annotations

import logging
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from paligemma.adapt.lora import Adapter, attach
from paligemma.adapt.quant import Quant, packs_for
from paligemma.config import MAX_IMAGE_SIZE_PX, PaliGemmaConfig
from paligemma.errors import CheckpointError, ConfigError, TokenizerError
from paligemma.generate import check_kv_cache_dtype, require_flag, require_whole
from paligemma.model import PaliGemmaModel
from paligemma.pipeline.devices import find_devices
from paligemma.pipeline.options import PICTURE_CACHE_BYTES, RunSettings
from paligemma.processing.colours import WHITE, require_background
from paligemma.processing.image import MAX_PIXELS
from paligemma.processing.processor import Processor
from paligemma.processing.resize import BICUBIC, require_resize_method
from paligemma.processing.tokenizer import load_tokenizer
from paligemma.weights.adapter import adapter_folder, base_notice, load_adapter, resolve_base
from paligemma.weights.attention_options import AttentionOptions
from paligemma.weights.catalog import EMBEDDED
from paligemma.weights.dtypes import dtype_name
from paligemma.weights.hf_config import CONVENTIONS, Conventions
from paligemma.weights.load import OpenCheckpoint
from paligemma.weights.model_files import Checkpoint

if TYPE_CHECKING:
    from paligemma.outputs.vqvae import MaskCodec

logger = logging.getLogger(__name__)

CODEC_VARIABLE = "PALIGEMMA_MASK_CODEC"


class LoadKeywords(TypedDict, total=False):
    """The fields of `LoadOptions` as keywords, for type checkers."""

    mode: str | None
    device: str | torch.device | None
    revision: str | None
    image_size_px: int | None
    conventions: Conventions
    resize_method: str
    kv_cache_dtype: str | None
    attn_softcap: float | None
    final_softcap: float | None
    sliding_window: int | None
    tokenizer: str | Path | None
    mask_codec: str | Path | None
    adapter: str | Path | None
    adapters: Mapping[str, str | Path] | None
    quant: str | None
    allow_url: bool
    max_pixels: int
    background: str
    picture_cache_bytes: int


_PATHS = (str, os.PathLike)
_TEXTS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(
        ("mode", "revision", "conventions", "resize_method", "kv_cache_dtype", "quant"), str
    ),
    **dict.fromkeys(("tokenizer", "mask_codec", "adapter"), _PATHS),
    "background": str,
}


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How to load a model.

    Attributes:
        mode: "exact" (float32), "mixed" (float32 weights, bfloat16 arithmetic) or "bf16"; None is
            bf16 for a file in bfloat16, else exact.
        device: None is a CUDA device if there is one, else "cpu", as for a packed folder. Over
            several, as in "cuda:0,cuda:1", the decoder's blocks are divided.
        revision: branch of the hub.
        image_size_px: another resolution than the file's.
        conventions: "big_vision" or "transformers", where the two differ.
        resize_method: "bicubic", "bilinear" or "bilinear-antialias".
        kv_cache_dtype: "bfloat16", "float32" or "int8"; None follows the conventions.
        attn_softcap, final_softcap, sliding_window: see `AttentionOptions`.
        tokenizer: file or folder; None takes the one beside the weights.
        mask_codec: vae-oid.npz or like; None takes the one beside the weights, or that of
            $PALIGEMMA_MASK_CODEC.
        adapter: folder of a LoRA adapter in PEFT's layout, or of a run of `paligemma train`, or
            the hub's owner/name (owner/name@revision); it stays beside the weights, which keep
            their dtype.
        adapters: name -> such a folder; every answer may name one with `adapter`, and none is used
            where it does not.
        quant: weights in fewer bits, see `Quant.parse`. "int4", "int8", "fp8" and "bf16" are for
            the whole model; a CPU packs them and computes in float32, which is mode "exact", a GPU
            in bfloat16, which is mode "bf16". "nf4" keeps the decoder's linear layers in four bits,
            "nf4:decoder,vision" those of the named parts. A folder that `convert` packed has its
            own, which need not be named.
        allow_url: whether pictures may be fetched from URLs.
        max_pixels: largest picture that is decoded.
        background: colour under transparent parts of pictures, "white" or as CSS writes it; "none"
            drops transparency and shows the colours under it, as the original does.
        picture_cache_bytes: see `RunSettings`.
    """

    mode: str | None = None
    device: str | torch.device | None = None
    revision: str | None = None
    image_size_px: int | None = None
    conventions: Conventions = "big_vision"
    resize_method: str = BICUBIC
    kv_cache_dtype: str | None = None
    attn_softcap: float | None = None
    final_softcap: float | None = None
    sliding_window: int | None = None
    tokenizer: str | Path | None = None
    mask_codec: str | Path | None = None
    adapter: str | Path | None = None
    adapters: Mapping[str, str | Path] | None = None
    quant: str | None = None
    allow_url: bool = False
    max_pixels: int = MAX_PIXELS
    background: str = WHITE
    picture_cache_bytes: int = PICTURE_CACHE_BYTES

    @property
    def attention(self) -> AttentionOptions:
        """Caps and window.

        Raises:
            ConfigError: one is negative or not finite.
        """
        return AttentionOptions(
            attn_softcap=self.attn_softcap,
            final_softcap=self.final_softcap,
            sliding_window=self.sliding_window,
        )

    def __post_init__(self) -> None:
        for name, kind in _TEXTS.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, kind) or value == ""):
                wanted = "a word" if kind is str else "a path"
                raise ConfigError(f"{name} must be {wanted}, got {reprlib.repr(value)}")
        require_flag("allow_url", self.allow_url)
        require_resize_method(self.resize_method)
        require_background(self.background)
        _ = self.attention
        if self.conventions not in CONVENTIONS:
            raise ConfigError(
                f"conventions must be one of {', '.join(CONVENTIONS)}, got "
                f"{self.conventions!r:.100}"
            )
        if self.mode is not None:
            RunSettings(mode=self.mode)
        RunSettings(picture_cache_bytes=self.picture_cache_bytes)
        _require_adapters(self.adapters, self.adapter)
        if self.quant is not None and Quant.parse(self.quant).is_packed and self.mode == "mixed":
            _require_packed_mode(self.quant, self.mode)
        if self.kv_cache_dtype is not None:
            check_kv_cache_dtype(self.kv_cache_dtype)
        require_whole("max_pixels", self.max_pixels)
        if self.max_pixels < 1:
            raise ConfigError(f"max_pixels must be at least 1, got {self.max_pixels}")
        if self.image_size_px is not None:
            require_whole("image_size_px", self.image_size_px)
        if self.image_size_px is not None and not 1 <= self.image_size_px <= MAX_IMAGE_SIZE_PX:
            raise ConfigError(
                f"image_size_px must lie in 1..{MAX_IMAGE_SIZE_PX}, got {self.image_size_px}; "
                "released models use 224, 448 or 896"
            )


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A loaded model and what belongs to it.

    Attributes:
        mask_codec: file of the mask codec, read when first needed; None where there is none.
        adapters: those that answers may name.
        name: what the weights were loaded as; of an adapter in their place, its base.
        folder: where the weights lie.
        adapter_folder: of the adapter that is attached, or None.
        beside: tensors by name of the layers beside the model's.
        fingerprint: see `OpenCheckpoint.fingerprint`.
    """

    model: PaliGemmaModel
    processor: Processor
    mask_codec: Path | None
    settings: RunSettings
    adapters: Mapping[str, Adapter]
    name: str
    folder: Path
    adapter_folder: Path | None
    beside: Mapping[str, Tensor]
    fingerprint: str


def load_pretrained(
    name: str | os.PathLike[str], options: LoadOptions, *, beside: Sequence[str] = ()
) -> Pretrained:
    """Load a model; small files are checked before large ones are read.

    Args:
        name: "tiny", a hub id such as "google/paligemma2-3b-mix-448", a folder, an .npz,
            or an adapter, which is loaded under its base.
        beside: names of layers that are no part of PaliGemma and may stand in the files too.

    Raises:
        PaliGemmaError: unknown name, files that do not fit, or an option out of its range.
    """
    devices = find_devices(options.device)
    packs = packs_for(devices[0])
    if options.quant is not None and Quant.parse(options.quant).is_packed:
        _require_packed_mode(options.quant, options.mode, packs=packs)
    opened, options = _opened(name, options, beside)
    with opened:
        name = opened.checkpoint.name
        mask_codec = find_mask_codec(opened.checkpoint, options.mask_codec)
        processor = _make_processor(opened, options)
        quant = opened.quant if options.quant is None else Quant.parse(options.quant)
        is_narrow = opened.table_dtype == torch.bfloat16
        if opened.quant is not None and options.device is None:
            packs, devices = True, [torch.device("cpu")]
        if quant is not None and quant.is_packed:
            _require_packed_mode(str(quant), options.mode, packs=packs)
            is_narrow = not packs
        mode = options.mode or ("bf16" if is_narrow else "exact")
        dtype = torch.bfloat16 if mode == "bf16" else torch.float32
        _log_sources(opened, options, mask_codec, f"mode {mode} on {', '.join(map(str, devices))}")
        model = opened.load(dtype=dtype, device=devices, quant=quant)
        folder = None if options.adapter is None else adapter_folder(options.adapter)
        if folder is not None:
            attach(model, _adapter(folder, model, str(name), beside))
        named = {
            key: _adapter(place, model, str(name))
            for key, place in (options.adapters or {}).items()
        }
        return Pretrained(
            model=model,
            processor=processor,
            mask_codec=mask_codec,
            settings=RunSettings(
                mode=mode,
                kv_cache_dtype=options.kv_cache_dtype or dtype_name(opened.cache_dtype(model)),
                weigh_locations=opened.config.weigh_locations,
                picture_cache_bytes=options.picture_cache_bytes,
            ),
            adapters=named,
            name=str(name),
            folder=opened.checkpoint.folder,
            adapter_folder=folder,
            beside=opened.beside(),
            fingerprint=opened.fingerprint() if beside else "",
        )


def _log_sources(
    opened: OpenCheckpoint, options: LoadOptions, mask_codec: Path | None, how: str
) -> None:
    """Tell where everything that is loaded comes from."""
    checkpoint = opened.checkpoint
    files = checkpoint.weights
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    logger.info(
        "loading %s from %s%s, tokenizer %s, mask codec %s, adapter %s, %s",
        checkpoint.name,
        files[0],
        more,
        options.tokenizer or checkpoint.tokenizer,
        mask_codec or "none",
        options.adapter or ", ".join(options.adapters or ()) or "none",
        how,
    )


def _require_packed_mode(quant: str, mode: str | None, *, packs: bool = True) -> None:
    arithmetic, only = ("float32", "exact") if packs else ("bfloat16", "bf16")
    if mode not in (None, only):
        where = "packed weights" if packs else "weights in fewer bits on a GPU"
        raise ConfigError(
            f"{where} ({quant:.100}) are computed in {arithmetic}, which is mode {only}, got mode "
            f"{mode}; leave one of the two out" + ("" if packs else ", or name the device cpu")
        )


def _adapter(
    place: str | Path, model: PaliGemmaModel, name: str, beside: Sequence[str] = ()
) -> Adapter:
    folder = adapter_folder(place)
    adapter = load_adapter(folder, model, beside=beside)
    notice = base_notice(folder, name)
    if notice is not None:
        logger.warning("%s", notice)
    return adapter


def _require_adapters(adapters: object, adapter: object) -> None:
    if adapters is None:
        return
    if not isinstance(adapters, Mapping) or not all(
        isinstance(name, str) and name and isinstance(place, _PATHS) and place
        for name, place in adapters.items()
    ):
        raise ConfigError(
            f"adapters must be folders by name, such as {{'cards': 'runs/cards'}}, got "
            f"{reprlib.repr(adapters)}"
        )
    if adapter is not None:
        raise ConfigError(
            f"a model has one adapter for all its answers or adapters by name, got {adapter} and "
            f"{reprlib.repr(adapters)}; leave either out"
        )


def load_processor(
    name: str | os.PathLike[str], options: LoadOptions
) -> tuple[Processor, PaliGemmaConfig]:
    """The processor of a model and its config, without its weights; as `load_pretrained`."""
    opened, options = _opened(name, options)
    with opened:
        return _make_processor(opened, options), opened.config


def _opened(
    name: str | os.PathLike[str], options: LoadOptions, beside: Sequence[str] = ()
) -> tuple[OpenCheckpoint, LoadOptions]:
    """A model; of an adapter in its place the base, and the adapter among the options."""
    may_be_adapter = options.adapter is None and not options.adapters
    checkpoint, adapter = resolve_base(name, options.revision, may_be_adapter=may_be_adapter)
    opened = OpenCheckpoint(
        checkpoint,
        image_size_px=options.image_size_px,
        conventions=options.conventions,
        attention=options.attention,
        beside=beside,
    )
    return opened, replace(options, adapter=adapter) if adapter else options


def _make_processor(opened: OpenCheckpoint, options: LoadOptions) -> Processor:
    tokenizer = load_tokenizer(_find_tokenizer(opened.checkpoint, options.tokenizer))
    tokenizer.check(opened.config.vocab)
    return Processor(
        tokenizer,
        opened.config.vision.image_size_px,
        resize_method=options.resize_method,
        allow_url=options.allow_url,
        max_pixels=options.max_pixels,
        background=options.background,
        knows_scenes_only=opened.checkpoint.name == EMBEDDED
        and not (options.adapter or options.adapters),
    )


def _find_tokenizer(checkpoint: Checkpoint, stated: str | Path | None) -> Path:
    if stated is not None:
        return Path(stated).expanduser()
    if checkpoint.tokenizer is None:
        raise TokenizerError(
            f"a model needs its tokenizer, {checkpoint.folder} holds neither tokenizer.model nor "
            "tokenizer.json; copy the published file there or pass it as tokenizer"
        )
    return checkpoint.tokenizer


def find_mask_codec(checkpoint: Checkpoint, stated: str | Path | None = None) -> Path | None:
    """The file of a model's mask codec: the stated one, its own, that of the environment, or None.

    Raises:
        CheckpointError: the stated file is missing.
    """
    in_environment = os.environ.get(CODEC_VARIABLE)
    named = stated or (None if checkpoint.mask_codec else in_environment)
    if named is None:
        return checkpoint.mask_codec
    path = Path(named).expanduser()
    if not os.path.isfile(path):  # pathlib raises for an impossible name
        raise CheckpointError(
            f"a mask codec must be a file such as vae-oid.npz, there is no {str(path)!r:.200}; "
            f"check mask_codec or ${CODEC_VARIABLE}"
        )
    return path


def opened_codec(mask_codec: MaskCodec | str | Path | None) -> MaskCodec | None:
    """A mask codec, read if it is a file; None, with a warning, where there is none.

    Raises:
        CheckpointError: the file cannot be read.
    """
    if mask_codec is None:
        logger.warning(
            "masks stay codewords, because this model's mask codec is not here: fetch "
            "gs://big_vision/paligemma/vae-oid.npz and pass it as mask_codec, place it beside the "
            "model, or name it in $%s",
            CODEC_VARIABLE,
        )
        return None
    from paligemma.outputs.vqvae import load_mask_codec

    return load_mask_codec(mask_codec) if isinstance(mask_codec, str | Path) else mask_codec
