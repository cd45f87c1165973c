"""The façade: load a model by its name, then ask it about pictures.

picture + prompt -> Processor -> Batch -> model -> ids -> parser -> text, boxes, masks, scores
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor

from paligemma.config import PaliGemmaConfig
from paligemma.errors import ImageError, PromptError
from paligemma.generate import Step, stream
from paligemma.model import PaliGemmaModel
from paligemma.outputs.assemble import to_detections
from paligemma.outputs.boxes import Box, encode_boxes, format_loc, require_box
from paligemma.outputs.parse import parse_tokens, text_answer
from paligemma.outputs.types import (
    Detections,
    ParsedOutput,
    TextAnswer,
    TokenRecord,
    require_selection,
)
from paligemma.pipeline.answering import (
    AnswerOptions,
    Request,
    joined,
    object_grammar,
    report_maskless,
    reported,
    text_pieces,
    write_answers,
)
from paligemma.pipeline.loading import CODEC_VARIABLE, LoadOptions, load_pretrained, require_mode
from paligemma.processing import prompts
from paligemma.processing.image import ImageSource, load_image
from paligemma.processing.processor import Processor
from paligemma.vocab import Vocab

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from paligemma.outputs.vqvae import MaskCodec

logger = logging.getLogger(__name__)

MAX_TEXT_TOKENS = 128
MAX_OBJECT_TOKENS = 512

Frames: TypeAlias = "Sequence[ImageSource | Tensor]"
Picture: TypeAlias = "EncodedImage | ImageSource | Tensor | Frames"

_OBJECT_PROMPT = re.compile(r"\s*(detect|segment)\s+(.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedImage:
    """A picture, or the frames of one example, after the image tower: ask it as often as you like.

    Exact, because only the tower is reused: the decoder reads picture and prompt together.

    Attributes:
        soft_tokens: float[1, F*I, D].
        image_wh: width and height of the (first) picture, pixels.
        owner: the model that encoded it, and that answers.
        picture: uint8[H, W, 3], the (first) picture itself; None where it came as prepared pixels.
    """

    soft_tokens: Tensor = field(repr=False)
    image_wh: tuple[int, int]
    owner: PaliGemma = field(repr=False)
    picture: NDArray[Any] | None = field(default=None, repr=False)

    def ask(self, prompt: str, **options: Any) -> TextAnswer | Detections:
        """See `PaliGemma.ask`."""
        return self.owner.ask(self, prompt, **options)


class PaliGemma:
    """A model with its processor and mask codec.

    A picture is a path, bytes, a Pillow image, an array, or what `encode_image` returned; a list of
    pictures is one example of several frames. Every method that answers takes the fields of
    `AnswerOptions` as keywords.

    Args:
        model: in evaluation mode, on the device to be used.
        processor: of this model.
        mask_codec: decodes `<seg>` tokens: a codec, its file, or None.
        mode: "exact", "mixed" or "bf16"; only "mixed" computes otherwise than the weights say.
        kv_cache_dtype: "bfloat16", as the original, or "float32".
        weigh_locations: default of the option of that name.
    """

    def __init__(
        self,
        model: PaliGemmaModel,
        processor: Processor,
        *,
        mask_codec: MaskCodec | str | Path | None = None,
        mode: str = "exact",
        kv_cache_dtype: str = "bfloat16",
        weigh_locations: bool = False,
    ) -> None:
        require_mode(mode)
        self.model = model
        self.processor = processor
        self.mode = mode
        self.kv_cache_dtype = kv_cache_dtype
        self.weigh_locations = weigh_locations
        self._mask_codec = mask_codec

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **options: Any) -> PaliGemma:
        """Load a model.

        Args:
            name: "tiny", a hub id such as "google/paligemma2-3b-mix-448", a folder, or an .npz.
            options: fields of `LoadOptions`: mode, device, revision, image_size_px, conventions,
                resize_method, kv_cache_dtype, tokenizer, mask_codec, allow_url, max_pixels.

        Raises:
            PaliGemmaError: unknown name, files that do not fit, or an option out of its range.
        """
        loaded = load_pretrained(name, LoadOptions(**options))
        return cls(
            loaded.model,
            loaded.processor,
            mask_codec=loaded.mask_codec,
            mode=loaded.mode,
            kv_cache_dtype=loaded.kv_cache_dtype,
            weigh_locations=loaded.weigh_locations,
        )

    @property
    def config(self) -> PaliGemmaConfig:
        return self.model.config

    @property
    def vocab(self) -> Vocab:
        return self.model.config.vocab

    @cached_property
    def mask_codec(self) -> MaskCodec | None:
        """Decodes `<seg>` tokens; None, with a warning, where there is no codec."""
        if self._mask_codec is None:
            logger.warning(
                "masks stay codewords, because this model's mask codec is not here: fetch "
                "gs://big_vision/paligemma/vae-oid.npz and pass it as mask_codec, place it beside "
                "the model, or name it in $%s",
                CODEC_VARIABLE,
            )
            return None
        from paligemma.outputs.vqvae import load_mask_codec

        if isinstance(self._mask_codec, str | Path):
            return load_mask_codec(self._mask_codec)
        return self._mask_codec

    # Asking

    def ask(
        self,
        image: Picture | None,
        prompt: str,
        *,
        threshold: float | None = None,
        max_overlap: float | None = None,
        constrain: bool = False,
        **options: Any,
    ) -> TextAnswer | Detections:
        """Whatever the prompt asks for.

        Args:
            image: a picture, a list of frames, or None for text alone.
            prompt: `detect ...` and `segment ...` give Detections, and so does every answer in
                which the model wrote boxes; other answers are text.
            threshold: lowest confidence of an object; None keeps all, empty boxes too.
            max_overlap: of one thing found twice only the likelier, see `Detections.distinct`; None
                keeps all.
            constrain: allow a detect or segment prompt only well-formed objects of its labels.
            options: fields of `AnswerOptions`.

        Raises:
            PromptError, ImageError, ConfigError: bad input; see `Processor` and `AnswerOptions`.
            CheckpointError: the mask codec that a segment prompt needs cannot be read.
        """
        require_selection(threshold, max_overlap)
        asks = _OBJECT_PROMPT.fullmatch(prompts.clean_prompt(prompt)[0])
        request = self._request([prompt], options, MAX_OBJECT_TOKENS if asks else MAX_TEXT_TOKENS)
        encode = self.processor.tokenizer.encode
        grammar = (
            object_grammar(self.vocab, encode, asks[1], asks[2]) if asks and constrain else None
        )
        asks_masks = asks is not None and asks[1] == "segment"
        if asks_masks:
            _ = self.mask_codec  # What is wrong with it is said before the answer is waited for.
        encoded = None if image is None else self.encode_image(image)
        soft_tokens = None if encoded is None else encoded.soft_tokens
        with self._precision():
            record = write_answers(self.model, request, soft_tokens, grammar)[0]
        parsed = parse_tokens(record, self.vocab, self.processor.tokenizer.decode)
        if encoded is None or not (asks or parsed.objects):
            return self._text(record)
        found = self._detections(parsed, encoded).selected(threshold, max_overlap)
        if asks_masks:
            report_maskless(found, has_codec=self.mask_codec is not None)
        return found

    def detect(self, image: Picture, labels: str | Sequence[str], **options: Any) -> Detections:
        """Boxes of the named things; what is not found is absent. Options as in `ask`."""
        _require_picture(image, "detect")
        return cast(Detections, self.ask(image, prompts.detect_prompt(labels), **options))

    def segment(self, image: Picture, labels: str | Sequence[str], **options: Any) -> Detections:
        """Boxes and masks of the named things. Options as in `ask`."""
        _require_picture(image, "segment")
        return cast(Detections, self.ask(image, prompts.segment_prompt(labels), **options))

    def caption(
        self,
        image: Picture,
        *,
        lang: str = "en",
        style: str = "caption",
        box_yxyx: Box | None = None,
        **options: Any,
    ) -> TextAnswer:
        """A caption of the picture, or of one box of it.

        Args:
            lang: language code.
            style: "caption", "cap" (short) or "describe" (longer).
            box_yxyx: normalised to [0, 1]; language and style do not apply to it.

        Raises:
            DataError: the box is empty, swapped or not normalised; other errors as in `ask`.
        """
        prompt = prompts.caption_prompt(lang, style)
        if box_yxyx is not None:
            require_box(box_yxyx)
            prompt = prompts.region_caption_prompt(format_loc(encode_boxes(box_yxyx).tolist()))
        return self.generate(image, prompt, **options)

    def answer(
        self, image: Picture, question: str, *, lang: str = "en", **options: Any
    ) -> TextAnswer:
        """A short answer to a question about the picture."""
        return self.generate(image, prompts.answer_prompt(question, lang), **options)

    def read(self, image: Picture, **options: Any) -> TextAnswer:
        """All text in the picture."""
        return self.generate(image, prompts.read_prompt(), **options)

    def generate(self, image: Picture | None, prompt: str, **options: Any) -> TextAnswer:
        """The answer as text, location and mask tokens spelt out."""
        return self.generate_batch(None if image is None else [image], [prompt], **options)[0]

    def generate_batch(
        self,
        images: Sequence[Picture] | EncodedImage | None,
        prompts: Sequence[str],
        **options: Any,
    ) -> list[TextAnswer]:
        """Answers to many prompts at once, of whatever length.

        Args:
            images: a picture (or list of frames) for each prompt, or one encoded image for all.
        """
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            raise PromptError(
                f"a batch needs a list of prompts, got {type(prompts).__name__}; "
                "ask a single prompt with generate"
            )
        if not prompts:
            return []
        request = self._request(prompts, options, MAX_TEXT_TOKENS)
        soft_tokens = None
        if isinstance(images, EncodedImage):
            soft_tokens = self.encode_image(images).soft_tokens
        elif images is not None:
            if isinstance(images, str | bytes | os.PathLike) or not hasattr(images, "__len__"):
                images = [cast(Picture, images)]
            if len(images) != len(prompts):
                raise PromptError(
                    f"a batch needs a picture for each prompt, got {len(images)} and "
                    f"{len(prompts)}; encode a picture first to ask it many prompts"
                )
            soft_tokens = joined([one.soft_tokens for one in self.encode_images(images)])
        with self._precision():
            records = write_answers(self.model, request, soft_tokens)
        return [self._text(record) for record in records]

    def stream(self, image: Picture | None, prompt: str, **options: Any) -> Iterator[str]:
        """Pieces of the answer as they are written; joined they are the text of `generate`.

        A warning after the last piece says where the bound cut the answer.
        """
        request = self._request([prompt], options, MAX_TEXT_TOKENS)
        request.options.require_one_answer("a stream")
        soft_tokens = None if image is None else self.encode_image(image).soft_tokens
        steps = stream(self.model, request.batch, request.steps, soft_tokens=soft_tokens)
        told = reported(self._precisely(steps), request.steps.max_new_tokens)
        return text_pieces(told, self.processor.tokenizer.decode)

    # Reading pictures

    def encode_image(self, image: Picture) -> EncodedImage:
        """Run the image tower once; the result goes wherever a picture does.

        Raises:
            ImageError: a bad picture, or one that another model encoded.
        """
        return self.encode_images([image])[0]

    def encode_images(self, images: Sequence[Picture]) -> list[EncodedImage]:
        """Several examples in one pass; all must have the same number of frames."""
        for image in images:
            if isinstance(image, EncodedImage) and image.owner is not self:
                raise ImageError(
                    "an encoded image belongs to the model that encoded it, got one of another "
                    "model; encode the picture again"
                )
        read = [self._read(image) for image in images if not isinstance(image, EncodedImage)]
        soft_tokens = self._encode([pixels for pixels, _ in read]) if read else ()
        new = iter(
            EncodedImage(
                soft_tokens=tokens,
                image_wh=(first.shape[-2], first.shape[-3]),
                owner=self,
                picture=None if isinstance(first, Tensor) else first,
            )
            for tokens, (_, first) in zip(soft_tokens, read, strict=True)
        )
        return [image if isinstance(image, EncodedImage) else next(new) for image in images]

    def _read(self, image: ImageSource | Tensor | Frames) -> tuple[Tensor, Tensor | NDArray[Any]]:
        """Pixels as the model reads them, and the (first) picture itself."""
        many = isinstance(image, list | tuple)
        frames = [
            frame if isinstance(frame, Tensor) else self.open_picture(frame)
            for frame in (cast(Frames, image) if many else [cast(ImageSource, image)])
        ]
        pixels = self.processor.pixels(frames if many else frames[0])
        return pixels, frames[0]

    def open_picture(self, source: ImageSource) -> Any:
        """uint8[H, W, 3] of a picture, upright, within the bounds this model was loaded with."""
        allow_url, max_pixels = self.processor.allow_url, self.processor.max_pixels
        return load_image(source, allow_url=allow_url, max_pixels=max_pixels)

    @torch.no_grad()
    def _encode(self, pixels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        num_frames = [len(example) if example.ndim == 4 else 1 for example in pixels]
        if len({example.shape for example in pixels}) > 1:
            raise ImageError(
                f"all examples of a batch must have the same number of frames, got {num_frames}; "
                "batch them apart"
            )
        with self._precision():
            soft_tokens = self.model.encode_image(torch.stack(list(pixels)).to(self.model.device))
        return soft_tokens.split(1)

    # Answering

    def _request(
        self, prompts: Sequence[str], options: dict[str, Any], max_new_tokens: int
    ) -> Request:
        chosen = AnswerOptions(**options)
        weighs = self.weigh_locations if chosen.weigh_locations is None else chosen.weigh_locations
        steps = chosen.decode_options(
            max_new_tokens=max_new_tokens,
            kv_cache_dtype=self.kv_cache_dtype,
            record_loc_probs=self.vocab.has_objects,
            weighed_from=self.vocab.loc0 if weighs and self.vocab.has_objects else None,
        )
        batch = self.processor.inference_batch(None, prompts)
        return Request(batch=batch, options=chosen, steps=steps)

    def _text(self, record: TokenRecord) -> TextAnswer:
        return text_answer(record, self.vocab, self.processor.tokenizer.decode)

    def _detections(self, parsed: ParsedOutput, encoded: EncodedImage) -> Detections:
        has_masks = any(item.seg is not None for item in parsed.objects)
        codec = self.mask_codec if has_masks else None
        return replace(
            to_detections(parsed, encoded.image_wh, codec=codec), picture=encoded.picture
        )

    def _precision(self) -> AbstractContextManager[object]:
        if self.mode != "mixed":
            return nullcontext()
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16)

    def _precisely(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The steps, each computed in the model's mode, which the caller's code must not share."""
        while True:
            with self._precision():
                step = next(steps, None)
            if step is None:
                return
            yield step


def _require_picture(image: Picture | None, what: str) -> None:
    if image is None:
        raise ImageError(f"{what} needs a picture to find things in, got None; pass one")
