"""A model answers a batch of examples, the way their task asks.

Every picture of a batch is read and encoded once, however many prompts are about it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from paligemma.batch import TokenRow
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
from paligemma.generate import BeamOptions, DecodeOptions, Greedy, LocationGreedy
from paligemma.jobs.pictures import ReadPictures, read_pictures
from paligemma.jobs.plan import picture_key
from paligemma.outputs.assemble import to_detections
from paligemma.outputs.parse import parse_tokens
from paligemma.outputs.types import Detection, TokenRecord
from paligemma.pipeline.engine import Request
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.processing.preparation import Preparation
from paligemma.processing.processor import inference_row

logger = logging.getLogger(__name__)

_PROBED_VALUES = 256

AskingOf = Callable[[Example], Asking]


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadExample:
    """One example as the model reads it.

    Attributes:
        pictures: prepared pictures; examples that show the same ones share this object.
        row: tokens of the prompt.
    """

    pictures: ReadPictures
    row: TokenRow


class ModelAnswerer:
    """Answers of a model, in the precision it was loaded for; see `jobs.answerer.Answerer`.

    Args:
        asked: model, processor and mask codec.
        asking_of: function from an example to how it is asked.
        noise_piece: piece that pads answers with all classes. Such an answer may not contain it, if
            the vocabulary has it as a single token; its probability stays in the confidences.
        needs_masks: refuse a model without mask codec, rather than find no mask at all.

    Raises:
        ConfigError: masks are needed and there is no mask codec.
    """

    def __init__(
        self,
        asked: PaliGemma,
        asking_of: AskingOf,
        *,
        noise_piece: str = NOISE,
        needs_masks: bool = False,
    ) -> None:
        self._asked = asked
        self._engine = asked.engine
        self._processor = asked.processor
        self._vocab = asked.vocab
        self._asking_of = asking_of
        noise = asked.processor.tokenizer.encode(noise_piece)
        self._noise_id = noise[0] if len(noise) == 1 else None
        self._num_cut = 0
        self._codec_settings: dict[str, str] = {}
        if needs_masks:
            if asked.mask_codec is None:
                raise ConfigError(
                    "this benchmark scores masks, and the model has no mask codec to decode them; "
                    "name one with --mask-codec"
                )
            self._codec_settings = {"mask_codec": fingerprint(asked.mask_codec)}

    def settings(self) -> dict[str, Any]:
        """Everything about the model that changes an answer; its name and place do not."""
        release = release_of(self._asked.config)
        return {
            "model": fingerprint(self._asked.model),
            **asdict(self._asked.settings),
            "image_size_px": self._processor.image_size_px,
            "noise_id": self._noise_id,
            # Published figures are of one family and size.
            **({} if release is None else {"family": release.family, "size": release.size.upper()}),
            **self._codec_settings,
        }

    # Without the model

    def read(self, examples: Sequence[Example]) -> list[ReadExample | str]:
        """Each example as the model reads it, or a sentence why it cannot be read."""
        # One picture may be prepared in two ways.
        shown: dict[tuple[str, Preparation], ReadPictures | str] = {}
        found: list[ReadExample | str] = []
        for example in examples:
            preparation = self._preparation(example)
            key = (picture_key(example), preparation)
            if key not in shown:
                shown[key] = self._pictures(example, preparation)
            pictures, row = shown[key], self._row(example)
            if isinstance(pictures, str):
                found.append(pictures)
            elif isinstance(row, str):
                found.append(row)
            else:
                found.append(ReadExample(pictures=pictures, row=row))
        return found

    def _preparation(self, example: Example) -> Preparation:
        return self._asking_of(example).preparation(example, self._processor.image_size_px)

    def _pictures(self, example: Example, preparation: Preparation) -> ReadPictures | str:
        try:
            return read_pictures(example, preparation, self._processor.reader.max_pixels)
        except ImageError as error:
            return str(error)

    def _row(self, example: Example) -> TokenRow | str:
        """The prompt to the letter; cut at the length of training, as the original does."""
        try:
            ids = self._processor.tokenizer.encode(example.prefix)
        except PromptError as error:
            return str(error)
        text_len = self._asking_of(example).text_len
        num_tokens = len(ids) + 2  # BOS and separator
        if num_tokens > text_len:
            self._num_cut += 1
            if self._num_cut == 1:
                logger.warning(
                    "prompts are cut at %d tokens, the text length of training, as the original "
                    "does; the first is that of %s with %d",
                    text_len,
                    example.id,
                    num_tokens,
                )
        return inference_row(ids, (), self._vocab, min(text_len, num_tokens))

    # With the model

    def answer(
        self, examples: Sequence[Example], prepared: Sequence[ReadExample | str]
    ) -> list[Prediction]:
        """One prediction for each example, in order.

        Examples that are asked alike are decoded together, all of them: the plan of the run fixed
        the batch, and an answer may depend on it by rounding.

        Args:
            examples: questions of one batch.
            prepared: result of `read` for them.
        """
        found: dict[int, Prediction] = {}
        groups: dict[Asking, list[int]] = {}
        for position, (example, read) in enumerate(zip(examples, prepared, strict=True)):
            if isinstance(read, str):
                found[position] = Prediction(id=example.id, text="", error=read)
            else:
                groups.setdefault(self._asking_of(example), []).append(position)
        shown = list(dict.fromkeys(one.pictures for one in prepared if not isinstance(one, str)))
        soft_tokens = self._engine.encode([torch.from_numpy(one.pixels) for one in shown])
        encoded = dict(zip(shown, soft_tokens, strict=True))
        for asking, positions in groups.items():
            reads = [one for k in positions if not isinstance(one := prepared[k], str)]
            decoder = self._decoder(asking)
            requests = [
                Request(row=one.row, soft_tokens=encoded[one.pictures], decoder=decoder)
                for one in reads
            ]
            answers = self._engine.answer(requests, max_rows=len(requests))
            for position, one, written in zip(positions, reads, answers, strict=True):
                text, objects = self._understood(asking, written.record, one.pictures)
                found[position] = Prediction(
                    id=examples[position].id,
                    text=text,
                    logprob=written.logprob,
                    objects=objects,
                    note=one.pictures.note,
                )
        return [found[position] for position in range(len(examples))]

    def _decoder(self, asking: Asking) -> DecodeOptions | BeamOptions:
        settings, vocab = self._asked.settings, self._vocab
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
        codebook = self._asked.reader.codebook
        return DecodeOptions(
            max_new_tokens=asking.max_new_tokens,
            sampler=LocationGreedy(vocab.loc0, vocab.seg0, codebook) if weighs else Greedy(),
            banned_ids=banned,
            kv_cache_dtype=settings.kv_cache_dtype,
            record_loc_probs=has_objects,
        )

    # After the model

    def _understood(
        self, asking: Asking, record: TokenRecord, pictures: ReadPictures
    ) -> tuple[str, tuple[FoundObject, ...]]:
        """Text and objects of one answer."""
        decode = self._processor.tokenizer.decode
        if asking.answer == TEXT:
            return decode(record.ids.tolist()), ()
        parsed = parse_tokens(record, self._vocab, decode)
        has_masks = asking.answer == MASK and any(one.seg is not None for one in parsed.objects)
        codec = self._asked.mask_codec if has_masks else None
        objects = to_detections(parsed, pictures.padded_wh, codec=codec)
        if asking.answer == ALL_CLASSES:
            # The bound may cut the last object before its class.
            kept = [(one, one.label_score) for one in objects if one.label is not None]
        else:
            kept = [(one, one.score) for one in objects]
        return parsed.text, tuple(
            found_object(
                one,
                score,
                image_wh=pictures.image_wh,
                padded_wh=pictures.padded_wh,
                is_decoded=codec is not None,
            )
            for one, score in kept
            if one.is_valid
        )


def load_answerer(model: str, loading: Mapping[str, Any], **answering: Any) -> ModelAnswerer:
    """Load a model by its name and make it answer; a worker process calls this.

    Args:
        model: name, folder or file, as `PaliGemma.from_pretrained` takes it.
        loading: keywords of `PaliGemma.from_pretrained`.
        answering: other arguments of `ModelAnswerer`.
    """
    return ModelAnswerer(PaliGemma.from_pretrained(model, **loading), **answering)


def found_object(
    one: Detection,
    score: float | None,
    *,
    image_wh: tuple[int, int],
    padded_wh: tuple[int, int],
    is_decoded: bool,
) -> FoundObject:
    """Box and mask relative to the picture itself, without its padding.

    Args:
        one: detection relative to the padded picture.
        score: confidence of the object.
        image_wh, padded_wh: as in `ReadPictures`.
        is_decoded: whether a codec read the codewords; an object whose codewords it does not know
            then has a mask without a pixel.
    """
    from paligemma.outputs.rle import encode_rle

    (width, height), (padded_width, padded_height) = image_wh, padded_wh
    y0, x0, y1, x1 = one.box_yxyx
    if image_wh != padded_wh:
        y0, y1 = y0 * padded_height / height, y1 * padded_height / height
        x0, x1 = x0 * padded_width / width, x1 * padded_width / width
    mask = one.mask
    if mask is None and is_decoded and one.codes is not None:
        # The codec does not know the codewords, or the box covers no pixel.
        mask = np.zeros((height, width), bool)
    return FoundObject(
        label=one.label or "",
        box_yxyx=(y0, x0, y1, x1),
        score=score,
        mask=None if mask is None else encode_rle(mask[:height, :width]),
    )


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
