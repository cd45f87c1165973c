"""The engine: the only caller of `generate`. Pixels become soft tokens, requests become answers.

The façade, evaluation, jobs and the server all ask through it.

Axes: B rows, F frames, R input side, I image tokens, D decoder width.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paligemma.adapt.adapter_set import AdapterSet
from paligemma.batch import Batch
from paligemma.errors import ConfigError
from paligemma.generate import (
    BeamOptions,
    Constraint,
    DecodeOptions,
    Generation,
    Step,
    beam_search,
    beam_steps,
    best_of_n,
    best_of_n_steps,
    generate,
    join_soft_tokens,
    stream,
)
from paligemma.model import PaliGemmaModel
from paligemma.outputs.types import TokenRecord
from paligemma.pipeline.options import RunSettings
from paligemma.pipeline.picture_cache import PictureCache
from paligemma.processing.processor import TokenRow
from paligemma.vocab import NUM_LOC, Vocab

# Rows decoded together unless the caller says otherwise, and the tokens of image and prompt that
# these may have in all.
MAX_ROWS = 32
MAX_PREFIX_TOKENS = 16_384
# Patches that the tower reads in one pass: 32 pictures of 224 px, 2 of 896.
MAX_PATCHES = 8192


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """One prompt to be answered.

    Attributes:
        soft_tokens: float[1, F*I, D] from `Engine.encode`, or None for text alone. Requests may
            share a picture.
        best_of: number of drawn answers from which the most probable is kept.
        adapter: name of the adapter that answers; None is the model itself.
    """

    row: TokenRow
    soft_tokens: Tensor | None
    decoder: DecodeOptions | BeamOptions
    best_of: int = 1
    constraint: Constraint | None = None
    adapter: str | None = None

    def __post_init__(self) -> None:
        if self.constraint is not None and (
            self.best_of != 1 or isinstance(self.decoder, BeamOptions)
        ):
            raise ConfigError(
                "a grammar follows one answer token by token, got beams or best_of; leave these out"
            )

    @property
    def num_rows(self) -> int:
        """Rows that a step of its answer computes."""
        return self.decoder.num_beams if isinstance(self.decoder, BeamOptions) else self.best_of

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens of picture and prompt."""
        return len(self.row) + (0 if self.soft_tokens is None else self.soft_tokens.shape[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class Written:
    """The answer to one request.

    Attributes:
        record: ids with their log-probabilities, end token included.
        is_cut: whether a larger bound would have given another answer, see `Generation.cut`.
    """

    record: TokenRecord
    logprob: float
    is_cut: bool


class Engine:
    """Runs one model in the precision that it was loaded for, under any of its adapters."""

    def __init__(
        self,
        model: PaliGemmaModel,
        settings: RunSettings,
        adapters: AdapterSet | None = None,
        pictures: PictureCache | None = None,
    ) -> None:
        self.model = model
        self.settings = settings
        self.adapters = adapters or AdapterSet(model)
        self.pictures = pictures or PictureCache(0)

    @torch.inference_mode()
    def encode(self, pixels: Sequence[Tensor], *, adapter: str | None = None) -> list[Tensor]:
        """Soft tokens of several examples, as many in one pass of the tower as memory allows.

        A picture that stands here twice, or that the cache of pictures knows, is not encoded again.

        Args:
            pixels: float32[R, R, 3] or [F, R, R, 3] of each example, in [-1, 1].
            adapter: name of an adapter that may change the tower.

        Returns:
            float[1, F*I, D] of each example.
        """
        found: dict[object, Tensor] = {}
        with self.computing(adapter):
            cache = self.pictures if self.pictures.opens(self.model, adapter) else None
            keys: list[Any] = list(range(len(pixels)))
            if cache is not None:
                keys = [cache.key(adapter, one) for one in pixels]
                known = {key: cache.get(key) for key in keys}
                found.update({key: one for key, one in known.items() if one is not None})
            new = {key: one for key, one in zip(keys, pixels, strict=True) if key not in found}
            names, examples = list(new), list(new.values())
            for positions in self._passes(examples):
                images = torch.stack([examples[position] for position in positions])
                soft_tokens = self.model.encode_image(images.to(self.model.device)).split(1)
                for position, one in zip(positions, soft_tokens, strict=True):
                    found[names[position]] = one
                    if cache is not None:
                        cache.put(names[position], one)
        return [found[key] for key in keys]

    def _passes(self, pixels: Sequence[Tensor]) -> Iterator[list[int]]:
        """Positions of examples that go through the tower together: of one number of frames."""
        groups: dict[torch.Size, list[int]] = {}
        for position, example in enumerate(pixels):
            groups.setdefault(example.shape, []).append(position)
        for shape, positions in groups.items():
            num_frames = shape[0] if len(shape) == 4 else 1
            size = max(1, MAX_PATCHES // (num_frames * self.model.config.num_image_tokens))
            for start in range(0, len(positions), size):
                yield positions[start : start + size]

    def answer(self, requests: Sequence[Request], *, max_rows: int | None = None) -> list[Written]:
        """Answers to all requests, in order.

        Requests of any kind may be mixed; each gets the answer that it would get alone. Rows of one
        batch have pictures of one size, prompts of like length, one way of decoding and one
        adapter.

        Args:
            max_rows: most rows that are decoded together; None is `MAX_ROWS`, and fewer where these
                would have more than `MAX_PREFIX_TOKENS`.

        Raises:
            ConfigError: an option does not fit the vocabulary, or the model produced NaN.
        """
        found: dict[int, Written] = {}
        for positions in _batches(requests, max_rows):
            of_batch = [requests[position] for position in positions]
            with self.computing(of_batch[0].adapter):
                generation = self._generated(of_batch)
            for row, position in enumerate(positions):
                found[position] = _written(generation, row, self.model.config.vocab)
        return [found[position] for position in range(len(requests))]

    def stream(self, request: Request) -> Iterator[Step]:
        """Steps of one answer, each yielded before the next is computed.

        Raises:
            ConfigError: the request asks for beams or for the best of several draws.
        """
        decoder = request.decoder
        if isinstance(decoder, BeamOptions) or request.best_of != 1:
            raise ConfigError(
                "a stream follows one answer token by token, got beams or best_of; leave these out"
            )
        steps = stream(
            self.model,
            self._batch([request]),
            decoder,
            soft_tokens=request.soft_tokens,
            constraint=request.constraint,
        )
        return self._precisely(steps, request.adapter)

    def search(self, request: Request) -> Generator[None, None, Written]:
        """The answer to a request for beams or for the best of several draws, pausing between its
        steps; `answer` gives the same."""
        decoder, soft_tokens = request.decoder, request.soft_tokens
        batch = self._batch([request])
        if isinstance(decoder, BeamOptions):
            steps = beam_steps(self.model, batch, decoder, soft_tokens=soft_tokens)
        else:
            n = request.best_of
            steps = best_of_n_steps(self.model, batch, decoder, n=n, soft_tokens=soft_tokens)
        while True:
            with self.computing(request.adapter):
                try:
                    next(steps)
                except StopIteration as end:
                    return _written(end.value, 0, self.model.config.vocab)
            yield

    def _generated(self, requests: Sequence[Request]) -> Generation:
        """What `generate` writes for the rows of one batch."""
        batch = self._batch(requests)
        soft_tokens = join_soft_tokens([request.soft_tokens for request in requests])
        beams = [one.decoder for one in requests if isinstance(one.decoder, BeamOptions)]
        if beams:
            return beam_search(self.model, batch, beams, soft_tokens=soft_tokens)
        options = [one.decoder for one in requests if isinstance(one.decoder, DecodeOptions)]
        best_of = requests[0].best_of
        if best_of != 1:
            return best_of_n(self.model, batch, options, n=best_of, soft_tokens=soft_tokens)
        constraints = [request.constraint for request in requests]
        return generate(
            self.model,
            batch,
            options,
            soft_tokens=soft_tokens,
            constraint=constraints if any(constraints) else None,
        )

    def _batch(self, requests: Sequence[Request]) -> Batch:
        rows = [request.row for request in requests]
        return Batch.from_rows(rows, pad=self.model.config.vocab.pad)

    @contextmanager
    def computing(self, adapter: str | None) -> Iterator[None]:
        """The model in evaluation mode and in its precision, afterwards as it was; and under an
        adapter, until another is asked for."""
        self.adapters.use(adapter)
        was_training = self.model.training
        with ExitStack() as stack:
            if was_training:
                self.model.eval()
                stack.callback(self.model.train)
            if self.settings.mode == "mixed":
                stack.enter_context(torch.autocast(self.model.device.type, dtype=torch.bfloat16))
            yield

    def _precisely(self, steps: Iterator[Step], adapter: str | None) -> Iterator[Step]:
        """The steps, each computed in the model's precision and under the adapter, which the
        caller's code must not share."""
        while True:
            with self.computing(adapter):
                step = next(steps, None)
            if step is None:
                return
            yield step


def _batches(requests: Sequence[Request], max_rows: int | None) -> Iterator[list[int]]:
    """Positions of requests that are answered together, long prompts first."""
    groups: dict[object, list[int]] = {}
    for position, request in enumerate(requests):
        soft_tokens, decoder = request.soft_tokens, request.decoder
        num_image_tokens = None if soft_tokens is None else soft_tokens.shape[1]
        num_beams = decoder.num_beams if isinstance(decoder, BeamOptions) else 1
        alike = (
            num_beams,
            request.best_of,
            decoder.kv_cache_dtype,
            num_image_tokens,
            request.adapter,
        )
        groups.setdefault(alike, []).append(position)
    for positions in groups.values():
        # Python's sort is stable: rows of one length stay in the caller's order.
        ordered = sorted(positions, key=lambda position: -len(requests[position].row))
        while ordered:
            # The first row is the longest, so it says how many fit.
            fit = MAX_PREFIX_TOKENS // requests[ordered[0]].num_prefix_tokens
            size = max(1, min(fit, MAX_ROWS)) if max_rows is None else max_rows
            yield ordered[:size]
            ordered = ordered[size:]


def _written(generation: Generation, row: int, vocab: Vocab) -> Written:
    """One row of a generation as the parser reads it."""
    length = int(generation.lengths[row])
    ids = generation.ids[row, :length].cpu().numpy()
    loc_probs = None
    if generation.loc_probs is not None:
        loc_probs = np.zeros((length, NUM_LOC), np.float32)
        is_loc = (ids >= vocab.loc0) & (ids < vocab.loc0 + NUM_LOC)
        loc_probs[is_loc] = generation.loc_probs[row].float().cpu().numpy()
    record = TokenRecord(
        ids=ids,
        logprobs=generation.logprobs[row, :length].float().cpu().numpy(),
        loc_probs=loc_probs,
    )
    return Written(
        record=record, logprob=float(generation.scores[row]), is_cut=bool(generation.cut[row])
    )
