"""The façade: load a model by its name, then ask it about pictures.

picture + prompt -> Processor -> Engine -> ids -> parser -> text, boxes, masks, scores
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from paligemma.adapt.adapter_set import AdapterSet
from paligemma.adapt.lora import Adapter
from paligemma.config import PaliGemmaConfig
from paligemma.errors import ConfigError, ImageError
from paligemma.generate import Constraint, JsonGrammar, JsonTokens
from paligemma.model import PaliGemmaModel
from paligemma.outputs.missing_masks import MissingMasks
from paligemma.outputs.types import TextAnswer
from paligemma.pipeline.engine import MAX_PREFIX_TOKENS, MAX_ROWS, Engine, Request, Written
from paligemma.pipeline.following import AnswerEvent, events
from paligemma.pipeline.habits import for_asking, for_loading
from paligemma.pipeline.loading import LoadKeywords, LoadOptions, load_pretrained, opened_codec
from paligemma.pipeline.mapping import MappedRow, RowAnswerer, map_rows
from paligemma.pipeline.notices import warn_of_cuts
from paligemma.pipeline.options import (
    AnswerKeywords,
    AnswerOptions,
    AskKeywords,
    RunSettings,
    choice_grammar,
    chosen,
    chosen_for_asking,
    object_grammar,
)
from paligemma.pipeline.picture_cache import PictureCache
from paligemma.pipeline.pictures import (
    ChosenFrames,
    EncodedImage,
    Picture,
    about,
    encode_pictures,
    encode_readable,
)
from paligemma.pipeline.question import Question, Reader
from paligemma.pipeline.streaming import checked, text_pieces
from paligemma.pipeline.task_methods import Answer, TaskMethods, one_a_prompt, require_prompts
from paligemma.processing import prompts
from paligemma.processing.image import ImageSource
from paligemma.processing.pixels import PixelLayout
from paligemma.processing.processor import Processor
from paligemma.vocab import Vocab

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from paligemma.outputs.vqvae import MaskCodec

MAX_TEXT_TOKENS = 128
MAX_OBJECT_TOKENS = 512


class PaliGemma(TaskMethods[Picture]):
    """A model with its processor and mask codec.

    A picture is a path, bytes, a Pillow image, an array, or what `encode_image` returned; `Frames`
    of pictures are one example, and a list of pictures is a batch, whose answers are a list. Every
    method that answers takes the fields of `AnswerOptions` as keywords.

    Args:
        model: on the device to be used.
        processor: the model's processor.
        mask_codec: decodes `<seg>` tokens: a codec, its file, or None.
        settings: how the model computes.
        adapters: name -> adapter, of which every answer may name one; None answers without.
    """

    def __init__(
        self,
        model: PaliGemmaModel,
        processor: Processor,
        *,
        mask_codec: MaskCodec | str | Path | None = None,
        settings: RunSettings | None = None,
        adapters: Mapping[str, Adapter] | None = None,
    ) -> None:
        self.model = model
        self.adapters = AdapterSet(model, adapters)
        self.processor = processor
        self.settings = settings or RunSettings()
        self._mask_codec = mask_codec
        self._pictures = PictureCache(self.settings.picture_cache_bytes)

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], **options: Unpack[LoadKeywords]
    ) -> PaliGemma:
        """Load a model.

        Args:
            name: "tiny", a hub id such as "google/paligemma2-3b-mix-448", a folder, or an .npz.
            options: fields of `LoadOptions`, such as mode, device, revision, adapter and adapters;
                torch_dtype and device_map are taken as transformers does.

        Raises:
            PaliGemmaError: unknown name, files that do not fit, or an option that is unknown or out
                of its range.
        """
        loaded = load_pretrained(name, chosen(LoadOptions, for_loading(options)))
        return cls(
            loaded.model,
            loaded.processor,
            mask_codec=loaded.mask_codec,
            settings=loaded.settings,
            adapters=loaded.adapters,
        )

    @property
    def engine(self) -> Engine:
        """What runs the model."""
        return Engine(self.model, self.settings, self.adapters, self._pictures)

    @property
    def reader(self) -> Reader:
        """What reads the tokens that the engine wrote."""
        decode = self.processor.tokenizer.decode
        return Reader(vocab=self.vocab, decode=decode, mask_codec=lambda: self.mask_codec)

    @property
    def config(self) -> PaliGemmaConfig:
        return self.model.config

    @property
    def vocab(self) -> Vocab:
        return self.model.config.vocab

    @cached_property
    def mask_codec(self) -> MaskCodec | None:
        """Decodes `<seg>` tokens; None, with a warning, where there is no codec."""
        return opened_codec(self._mask_codec)

    # Asking

    def _answer(
        self, image: Picture | None, prompt: str, options: Mapping[str, Any], *, in_words: bool
    ) -> Answer:
        asked = self.question(prompt, has_picture=image is not None, in_words=in_words, **options)
        encoded = None
        if image is not None:
            encoded = self.encode_image(image, adapter=asked.requests[0].adapter)
        written = self._written([about(request, encoded) for request in asked.requests])
        return self.reader.answer(asked, written, encoded)

    def _answer_each(
        self,
        images: Iterable[Picture],
        prompt: str,
        options: Mapping[str, Any],
        *,
        in_words: bool = False,
    ) -> Iterator[tuple[Picture, Answer | ImageError]]:
        asked = self.question(prompt, in_words=in_words, **options)
        adapter, num = asked.requests[0].adapter, len(asked.requests)
        left = iter(images)
        with MissingMasks() as missing:
            while some := list(islice(left, max(1, self._num_at_once // num))):
                encoded = encode_readable(
                    some, self.engine, self.processor, owner=self, adapter=adapter
                )
                good = [one for one in encoded if not isinstance(one, ImageError)]
                requests = [about(request, one) for one in good for request in asked.requests]
                written = iter(self._written(requests))
                for image, one in zip(some, encoded, strict=True):
                    if isinstance(one, ImageError):
                        yield image, one
                    else:
                        parts = list(islice(written, num))
                        yield image, self.reader.answer(asked, parts, one, missing=missing)

    def _pixels(self, image: Any) -> NDArray[Any]:
        if not isinstance(image, EncodedImage):
            return self.open_picture(image)
        if image.open_picture is None:
            raise ImageError("prepared pixels are not cut into tiles; pass the picture itself")
        return image.open_picture()

    @property
    def _num_at_once(self) -> int:
        """Pictures that are in memory together, encoded."""
        return max(1, min(MAX_ROWS, MAX_PREFIX_TOKENS // self.config.num_image_tokens))

    def question(
        self,
        prompt: str,
        *,
        has_picture: bool = True,
        in_words: bool = False,
        **options: Unpack[AskKeywords],
    ) -> Question:
        """What `ask` would ask, checked, before any picture is read or any answer computed.

        Args:
            has_picture: whether it will be asked about a picture.
            in_words: the answer is text whatever the model writes, as that of `generate`.

        Raises:
            PromptError, ConfigError, CheckpointError: as `ask`.
        """
        if in_words:
            _ = chosen(AnswerOptions, for_asking(options))
        of_answer, of_objects = chosen_for_asking(options)
        splits = has_picture and not in_words
        prefixes = self.processor.prefixes(prompt) if splits else (prompt,)
        asked = tuple(None if in_words else prompts.object_prompt(one) for one in prefixes)
        requests, grammar = [], self._grammar(of_answer)
        for prefix, asks in zip(prefixes, asked, strict=True):
            request = self._request(prefix, of_answer, grammar)
            if asks and of_objects.constrain:
                of_answer.require_one_answer("a grammar")
                if grammar is not None:
                    raise ConfigError(
                        f"an answer follows one grammar, got another than constrain for "
                        f"{prefix!r:.100}; leave one out"
                    )
                spell = self.processor.tokenizer.spell
                of_labels = object_grammar(self.vocab, spell, asks, of_objects)
                request = replace(request, constraint=of_labels)
            requests.append(request)
        question = Question(
            prefixes=tuple(prefixes),
            requests=tuple(requests),
            asked=asked,
            objects=None if in_words else of_objects,
        )
        if question.wants_masks:
            _ = self.mask_codec  # A codec that cannot be read is reported before the model runs.
        return question

    def generate_batch(
        self,
        images: Sequence[Picture] | EncodedImage | None,
        prompts: Sequence[str],
        **options: Unpack[AnswerKeywords],
    ) -> list[TextAnswer]:
        """Answers to many prompts at once, of whatever length.

        Args:
            images: a picture for each prompt, or one encoded image for all.
        """
        require_prompts(prompts)
        of_answer = chosen(AnswerOptions, for_asking(options))
        grammar = self._grammar(of_answer)
        requests = [self._request(prompt, of_answer, grammar) for prompt in prompts]
        if images is None:
            return self._texts(requests)
        if isinstance(images, EncodedImage):
            encoded = self.encode_image(images, adapter=of_answer.adapter)
            return self._texts([about(request, encoded) for request in requests])
        pictures = one_a_prompt(images, prompts)
        answers: list[TextAnswer] = []
        for start in range(0, len(requests), self._num_at_once):
            some = slice(start, start + self._num_at_once)
            encoded_some = self.encode_images(pictures[some], adapter=of_answer.adapter)
            pairs = zip(requests[some], encoded_some, strict=True)
            answers += self._texts([about(request, encoded) for request, encoded in pairs])
        return answers

    def map(
        self,
        rows: Iterable[Any],
        prompt: str,
        *,
        image: str = "image",
        batch_size: int = MAX_ROWS,
        num_threads: int = 2,
        **options: Unpack[AskKeywords],
    ) -> Iterator[MappedRow]:
        """Rows with their answers, in order, or an error where one is bad; memory does not grow.

        Args:
            rows: mappings, as a data set of the hub has, or pictures; see also `paligemma batch`.
            prompt: in which `{name}` stands for a field of the row.
            image: field of the picture.
            batch_size: rows that are answered together.
            num_threads: threads that read pictures.
            options: as in `ask`.
        """
        how: Any = {"image": image, "batch_size": batch_size, "num_threads": num_threads}
        return map_rows(RowAnswerer(self, options, max_rows=batch_size), rows, prompt, **how)

    def stream_events(
        self, image: Picture, prompt: str, **options: Unpack[AskKeywords]
    ) -> Iterator[AnswerEvent]:
        """What `ask` answers, as it is written: tokens, objects and the end.

        Yields:
            `WrittenToken` for each token, `CompleteObject` for each object whose tokens are all
            there, of at least the threshold, and last `Ended` with the whole answer and its scores.
            `to_json()` of each is an object of JSON.

        Raises:
            PaliGemmaError: see `ask`.
        """
        return events(self, image, prompt, **options)

    def stream(
        self, image: Picture | None, prompt: str, **options: Unpack[AnswerKeywords]
    ) -> Iterator[str]:
        """Pieces of the answer as they are written; joined they are the text of `generate`.

        A warning after the last piece reports an answer that the bound cut.
        """
        of_answer = chosen(AnswerOptions, for_asking(options))
        of_answer.require_one_answer("a stream")
        grammar = self._grammar(of_answer)
        request = self._request(prompt, of_answer, grammar)
        if image is not None:
            request = about(request, self.encode_image(image, adapter=of_answer.adapter))
        steps = checked(self.engine.stream(request), on_cut=lambda: warn_of_cuts(1, [request]))
        return text_pieces(steps, self.processor.tokenizer.decode)

    # Reading pictures

    def encode_image(
        self,
        image: Picture,
        *,
        frames: ChosenFrames | None = None,
        layout: PixelLayout | None = None,
        adapter: str | None = None,
    ) -> EncodedImage:
        """Run the image tower once; the result goes wherever a picture does.

        Args:
            image: a picture, or `Frames`.
            frames: of a video, an animation or a TIFF of several pages: the number of one, from 0,
                or as frames of one example several, `EvenFrames(8)`, `FramesAt([1.5, 3])` in
                seconds, or "all". By default the first is read.
            layout: how the axes of a tensor or array lie, "HWC" or "CHW", with an axis of frames
                before them or without; its numbers are uint8 or in [0, 1]. By default an array is
                "HWC" and a tensor "prepared": float32[R, R, 3] in [-1, 1].
            adapter: that will be asked; only one that changes the tower makes a difference.

        Raises:
            ImageError: a bad picture, or one that another model or tower encoded.
        """
        return self.encode_images([image], frames=frames, layout=layout, adapter=adapter)[0]

    def encode_images(
        self,
        images: Sequence[Picture],
        *,
        frames: ChosenFrames | None = None,
        layout: PixelLayout | None = None,
        adapter: str | None = None,
    ) -> list[EncodedImage]:
        """Several examples, in few passes of the image tower; see `encode_image`."""
        return encode_pictures(
            images,
            self.engine,
            self.processor,
            owner=self,
            frames=frames,
            layout=layout,
            adapter=adapter,
        )

    def open_picture(
        self, source: ImageSource, *, frame: int | None = None, layout: PixelLayout | None = None
    ) -> NDArray[Any]:
        """uint8[H, W, 3] of a picture, upright, within this model's bounds; see `encode_image`."""
        return self.processor.reader.load(source, frame=frame, layout=layout)

    # Answering

    def _request(self, prompt: str, options: AnswerOptions, grammar: Constraint | None) -> Request:
        """A checked request for text alone, made before any picture is read."""
        self.adapters.require(options.adapter)
        asks = prompts.object_prompt(prompts.clean_prompt(prompt)[0])
        max_new_tokens = MAX_OBJECT_TOKENS if asks else MAX_TEXT_TOKENS
        return Request(
            row=self.processor.prompt_row(prompt),
            soft_tokens=None,
            decoder=options.decoder(
                self.settings, self.vocab, max_new_tokens, self.reader.codebook, finds=bool(asks)
            ),
            best_of=options.best_of,
            constraint=grammar,
            adapter=options.adapter,
        )

    def _grammar(self, options: AnswerOptions) -> Constraint | None:
        """The grammar of a text, if one is stated."""
        if options.json_schema is None:
            return choice_grammar(self.vocab, self.processor.tokenizer.spell, options)
        options.require_one_answer("a grammar")
        return JsonGrammar(self._json_tokens, options.json_schema)

    @cached_property
    def _json_tokens(self) -> JsonTokens:
        tokenizer = self.processor.tokenizer
        return JsonTokens(self.vocab, tokenizer.pieces_in_bytes(), tokenizer.encode)

    def _written(self, requests: Sequence[Request]) -> list[Written]:
        """The answers, with a warning where bounds cut some."""
        written = self.engine.answer(requests)
        num_cut = sum(one.is_cut for one in written)
        if num_cut:
            warn_of_cuts(num_cut, requests)
        return written

    def _texts(self, requests: Sequence[Request]) -> list[TextAnswer]:
        return [self.reader.text(written) for written in self._written(requests)]
