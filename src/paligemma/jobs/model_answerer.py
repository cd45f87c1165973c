"""A model answers a batch of examples, the way their benchmark asks.

Every picture of a batch is read and encoded once, however many prompts are about it.

Axes: P distinct pictures of a batch, F pictures an example, R input side, I image tokens, D width.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from paligemma.config import release_of
from paligemma.errors import ConfigError, ImageError, PromptError
from paligemma.example import (
    ALL_CLASSES,
    MASK,
    NOISE,
    TEXT,
    Asking,
    Example,
    FoundObject,
    Prediction,
)
from paligemma.generate import (
    BeamOptions,
    DecodeOptions,
    Greedy,
    LocationGreedy,
)
from paligemma.jobs.pictures import ReadPictures, read_pictures
from paligemma.jobs.plan import picture_key
from paligemma.model import PaliGemmaModel
from paligemma.outputs.assemble import to_detections
from paligemma.outputs.parse import parse_tokens
from paligemma.outputs.types import Detection, TokenRecord
from paligemma.outputs.vqvae import MaskCodec
from paligemma.pipeline.engine import Engine, Request
from paligemma.pipeline.options import RunSettings
from paligemma.processing.preparation import Preparation
from paligemma.processing.processor import Processor, TokenRow, inference_row

logger = logging.getLogger(__name__)

_PROBED_VALUES = 256


class AskedModel(Protocol):
    """What is measured: a model with its processor and mask codec, as `paligemma.PaliGemma` is."""

    @property
    def model(self) -> PaliGemmaModel: ...
    @property
    def processor(self) -> Processor: ...
    @property
    def mask_codec(self) -> MaskCodec | None: ...
    @property
    def settings(self) -> RunSettings: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedBatch:
    """What a model needs of a batch, before the model is looked at.

    Attributes:
        pictures: by `picture_key`; an error in words where one cannot be read.
        rows: tokens of each prompt, or an error in words.
    """

    pictures: Mapping[str, ReadPictures | str]
    rows: Sequence[TokenRow | str]


class ModelAnswerer:
    """Answers of a model, in the precision it was loaded for.

    Args:
        bundle: what is measured.
        asking_of: how an example is asked.
        noise_piece: see `EvalOptions`.
        needs_masks: refuse a model without mask codec, rather than score nothing for every mask.

    Raises:
        ConfigError: there is no mask codec.
    """

    def __init__(
        self,
        bundle: AskedModel,
        asking_of: Callable[[Example], Asking],
        *,
        noise_piece: str = NOISE,
        needs_masks: bool = False,
    ) -> None:
        self._bundle = bundle
        self._model, self._processor = bundle.model, bundle.processor
        self._asking_of = asking_of
        self._noise_id = _single_id(bundle.processor, noise_piece)
        self._num_cut = 0
        self._codec_settings: dict[str, Any] = {}
        if needs_masks:
            if bundle.mask_codec is None:
                raise ConfigError(
                    "this benchmark scores masks, and the model has no mask codec to decode them; "
                    "name one with --mask-codec"
                )
            self._codec_settings = {"mask_codec": fingerprint(bundle.mask_codec)}

    def settings(self) -> dict[str, Any]:
        """What of the model changes an answer; its name and place do not."""
        bundle = self._bundle
        return {
            "model": fingerprint(self._model),
            **asdict(bundle.settings),
            "image_size_px": self._processor.image_size_px,
            "noise_id": self._noise_id,
            **_released_as(self._model),
            **self._codec_settings,
        }

    # Without the model

    def read(self, examples: Sequence[Example]) -> PreparedBatch:
        """Pixels of the distinct pictures, and the prompts as tokens."""
        pictures: dict[str, ReadPictures | str] = {}
        for one in examples:
            key = picture_key(one)
            if key not in pictures:
                pictures[key] = self._read_pictures(one)
        return PreparedBatch(pictures=pictures, rows=[self._row(one) for one in examples])

    def _read_pictures(self, one: Example) -> ReadPictures | str:
        asking = self._asking_of(one)
        preparation = Preparation(
            size_px=self._processor.image_size_px,
            resize_method=asking.resize_method,
            keep_fractions=asking.keep_fractions,
            pad_to_square=asking.pad_to_square,
            mark_box_yxyx=one.mark_box_yxyx,
        )
        try:
            return read_pictures(one, preparation, self._processor.max_pixels)
        except ImageError as error:
            return str(error)

    def _row(self, one: Example) -> TokenRow | str:
        """The prompt to the letter; cut at the length of training, as the original does."""
        vocab = self._processor.vocab
        try:
            ids = self._processor.tokenizer.encode(one.prefix)
        except PromptError as error:
            return str(error)
        text_len = self._asking_of(one).text_len
        if len(ids) + 2 > text_len:
            self._num_cut += 1
            if self._num_cut == 1:
                logger.warning(
                    "prompts are cut at %d tokens, the text length of training, as the original "
                    "does; the first is that of %s with %d",
                    text_len,
                    one.id,
                    len(ids) + 2,
                )
        return inference_row(ids, (), vocab, min(text_len, len(ids) + 2))

    # With the model

    def answer(self, examples: Sequence[Example], prepared: PreparedBatch) -> list[Prediction]:
        """One prediction an example, in order."""
        found: dict[int, Prediction] = {}
        asked: list[int] = []
        shown: dict[str, ReadPictures] = {}
        for position, one in enumerate(examples):
            key = picture_key(one)
            picture, row = prepared.pictures[key], prepared.rows[position]
            error = picture if isinstance(picture, str) else row if isinstance(row, str) else None
            if error is not None or isinstance(picture, str):
                found[position] = Prediction(id=one.id, text="", error=error)
                continue
            shown[key] = picture
            asked.append(position)
        engine = Engine(self._model, self._bundle.settings)
        pixels = [torch.from_numpy(one.pixels) for one in shown.values()]
        soft = dict(zip(shown, engine.encode(pixels), strict=True))
        requests = [
            self._request(examples[k], prepared.rows[k], soft[picture_key(examples[k])])
            for k in asked
        ]
        for position, written in zip(
            asked, engine.answer(requests, max_rows=len(requests)), strict=True
        ):
            one = examples[position]
            picture = shown[picture_key(one)]
            found[position] = replace(
                self._understood(self._asking_of(one), written.record, picture),
                id=one.id,
                logprob=written.logprob,
                note=picture.note,
            )
        return [found[position] for position in range(len(examples))]

    def _request(self, one: Example, row: TokenRow | str, soft_tokens: Tensor) -> Request:
        assert isinstance(row, TokenRow)
        decoder = self._decoder(self._asking_of(one))
        return Request(row=row, soft_tokens=soft_tokens, decoder=decoder)

    def _decoder(self, asking: Asking) -> DecodeOptions | BeamOptions:
        settings, vocab = self._bundle.settings, self._model.config.vocab
        if asking.num_beams > 1:
            return BeamOptions(
                num_beams=asking.num_beams,
                max_new_tokens=asking.max_new_tokens,
                kv_cache_dtype=settings.kv_cache_dtype,
            )
        has_objects = asking.answer != TEXT
        if has_objects and not vocab.has_objects:
            raise ConfigError(
                "boxes need location tokens, and this model's vocabulary has none; "
                "name another model"
            )
        banned: tuple[int, ...] = ()
        if asking.answer == ALL_CLASSES:
            noise = () if self._noise_id is None else (self._noise_id,)
            banned = (vocab.eos, *noise)
        weighs = has_objects and settings.weigh_locations
        return DecodeOptions(
            max_new_tokens=asking.max_new_tokens,
            sampler=LocationGreedy(vocab.loc0) if weighs else Greedy(),
            banned_ids=banned,
            kv_cache_dtype=settings.kv_cache_dtype,
            record_loc_probs=has_objects,
        )

    # After the model

    def _understood(self, asking: Asking, record: TokenRecord, shown: ReadPictures) -> Prediction:
        """Text and objects of one answer; id and probability are added by the caller."""
        vocab, decode = self._model.config.vocab, self._processor.tokenizer.decode
        if asking.answer == TEXT:
            return Prediction(id="", text=decode(record.ids.tolist()))
        parsed = parse_tokens(record, vocab, decode)
        has_masks = asking.answer == MASK and any(one.seg is not None for one in parsed.objects)
        codec = self._bundle.mask_codec if has_masks else None
        objects = to_detections(parsed, shown.padded_wh, codec=codec)
        if asking.answer == ALL_CLASSES:
            # The last one may be cut before its class.
            kept = [(one, one.label_score) for one in objects if one.label is not None]
        else:
            kept = [(one, one.score) for one in objects]
        return Prediction(
            id="",
            text=parsed.text,
            objects=tuple(
                found_object(
                    one,
                    score,
                    image_wh=shown.image_wh,
                    padded_wh=shown.padded_wh,
                    is_decoded=codec is not None,
                )
                for one, score in kept
                if one.is_valid
            ),
        )


def _released_as(model: PaliGemmaModel) -> dict[str, str]:
    """Family and size, which decide what published figures a score is held against."""
    release = release_of(model.config)
    if release is None:
        return {}
    family = "PaliGemma 2" if model.config.generation == 2 else "PaliGemma"
    return {"family": family, "size": release.size.upper()}


def found_object(
    one: Detection,
    score: float | None,
    *,
    image_wh: tuple[int, int],
    padded_wh: tuple[int, int],
    is_decoded: bool,
) -> FoundObject:
    """Box and mask of the picture itself, without what was padded to it.

    Args:
        one: with a box of the padded picture.
        score: its confidence.
        image_wh, padded_wh: as in `ReadPictures`.
        is_decoded: a codec read the codewords; what it does not know is a mask of nothing.
    """
    from paligemma.outputs.rle import encode_rle

    (width, height), (padded_width, padded_height) = image_wh, padded_wh
    y0, x0, y1, x1 = one.box_yxyx
    if image_wh != padded_wh:
        y0, y1 = y0 * padded_height / height, y1 * padded_height / height
        x0, x1 = x0 * padded_width / width, x1 * padded_width / width
    mask = one.mask
    if mask is None and is_decoded and one.codes is not None:
        # Codewords that the codec does not know, or a box without a pixel: a mask of nothing.
        mask = np.zeros((height, width), bool)
    return FoundObject(
        label=one.label or "",
        box_yxyx=(y0, x0, y1, x1),
        score=score,
        mask=None if mask is None else encode_rle(mask[:height, :width]),
    )


def _single_id(processor: Processor, piece: str) -> int | None:
    """The id of a piece that the vocabulary holds as one."""
    ids = processor.tokenizer.encode(piece)
    return ids[0] if len(ids) == 1 else None


def fingerprint(model: nn.Module) -> str:
    """Hash of the names, shapes and some values of all weights, the same on every device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        step = max(1, flat.numel() // _PROBED_VALUES)
        probe = flat[::step][:_PROBED_VALUES].to("cpu", torch.float32)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(probe.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
