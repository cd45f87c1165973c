"""Asks a model the scenes benchmark: every picture encoded once, prompts of one task together.

Axes: B pictures, I image tokens, D decoder width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from paligemma.errors import ConfigError
from paligemma.eval.scene_report import Sample, SceneReport, make_report
from paligemma.generate import (
    DecodeOptions,
    Generation,
    Greedy,
    LocationGreedy,
    Sampler,
    generate,
    run_in_batches,
)
from paligemma.model import PaliGemmaModel
from paligemma.outputs.assemble import to_detections
from paligemma.outputs.parse import parse_tokens
from paligemma.outputs.types import TokenRecord
from paligemma.outputs.vqvae import MaskCodec
from paligemma.processing.processor import Processor
from paligemma.scenes import Scene, SceneExample
from paligemma.tasks.scenes import (
    MAX_NEW_TOKENS,
    MAX_SCENES,
    MAX_SEED,
    SIZE_PX,
    TASKS,
    SceneAnswer,
    SceneOutcome,
    benchmark_examples,
    heldout_scene,
    scene_prefix,
    score_answer,
)
from paligemma.vocab import NUM_LOC, Vocab

NUM_SAMPLES = 12
MAX_BATCH_SIZE = 1024


@dataclass(frozen=True, kw_only=True)
class SceneEvalOptions:
    """What is asked, and how much at a time.

    Attributes:
        limit: pictures.
        seed: which pictures; every seed has its own.
        batch_size: pictures encoded, and prompts answered, at a time; no score depends on it
            beyond rounding.
        tasks: of `paligemma.tasks.scenes.TASKS`.
        size_px: side of the drawn pictures; the processor resizes them to the model's.
    """

    limit: int = 1000
    seed: int = 0
    batch_size: int = 64
    tasks: tuple[str, ...] = TASKS
    size_px: int = SIZE_PX

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MAX_SCENES:
            raise ConfigError(f"limit must lie in 1..{MAX_SCENES} pictures, got {self.limit}")
        if not 0 <= self.seed < MAX_SEED:
            raise ConfigError(f"seed must lie in 0..{MAX_SEED - 1}, got {self.seed}")
        if not 1 <= self.batch_size <= MAX_BATCH_SIZE:
            raise ConfigError(f"batch_size must lie in 1..{MAX_BATCH_SIZE}, got {self.batch_size}")
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            raise ConfigError(
                f"tasks must be some of {', '.join(TASKS)}, got {', '.join(unknown) or 'none'}"
            )


class SceneModel(Protocol):
    """What is measured: a model with its processor and mask codec, as `paligemma.PaliGemma` is."""

    @property
    def model(self) -> PaliGemmaModel: ...
    @property
    def processor(self) -> Processor: ...
    @property
    def mask_codec(self) -> MaskCodec | None: ...
    @property
    def mode(self) -> str: ...
    @property
    def kv_cache_dtype(self) -> str: ...
    @property
    def weigh_locations(self) -> bool: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """One prompt about one of the pictures at hand."""

    picture: int
    example: SceneExample

    @property
    def prompt(self) -> str:
        return scene_prefix(self.example)


class Answerer(Protocol):
    """Answers prompts about a few pictures."""

    def __call__(self, scenes: Sequence[Scene], asked: Sequence[Asked]) -> list[SceneAnswer]:
        """One answer a prompt, in order."""
        ...


def evaluate_scenes(
    bundle: SceneModel, options: SceneEvalOptions, *, name: str = "", progress: bool = False
) -> SceneReport:
    """Measure a model on held-out pictures.

    Args:
        bundle: model, processor and mask codec.
        options: what is asked.
        name: of the model, for the report.
        progress: show a bar on standard error.
    """
    was_training = bundle.model.training
    bundle.model.eval()
    try:
        return run_scenes(
            ModelAnswerer(bundle, options.batch_size), options, name=name, progress=progress
        )
    finally:
        bundle.model.train(was_training)


def run_scenes(
    answerer: Answerer, options: SceneEvalOptions, *, name: str = "", progress: bool = False
) -> SceneReport:
    """The benchmark with anything that answers; arguments as for `evaluate_scenes`."""
    started = time.monotonic()
    outcomes: list[SceneOutcome] = []
    samples: list[Sample] = []
    with tqdm(total=options.limit, unit="picture", disable=not progress) as bar:
        for first in range(0, options.limit, options.batch_size):
            indices = range(first, min(first + options.batch_size, options.limit))
            scenes = [heldout_scene(k, seed=options.seed, size_px=options.size_px) for k in indices]
            asked = [
                Asked(picture=row, example=example)
                for row, (scene, index) in enumerate(zip(scenes, indices, strict=True))
                for example in benchmark_examples(scene, index, options.tasks)
            ]
            answers = answerer(scenes, asked)
            for one, answer in zip(asked, answers, strict=True):
                scene = scenes[one.picture]
                outcomes.append(score_answer(scene, one.example, answer))
                if first + one.picture < NUM_SAMPLES:
                    samples.append(Sample(scene=scene, example=one.example, answer=answer))
            bar.update(len(scenes))
    settings = {"limit": options.limit, "seed": options.seed, "size_px": options.size_px}
    return make_report(
        outcomes, samples, model=name, settings=settings, seconds=time.monotonic() - started
    )


class ModelAnswerer:
    """Greedy answers of a model, in the precision it was loaded for."""

    def __init__(self, bundle: SceneModel, batch_size: int) -> None:
        self._model, self._processor = bundle.model, bundle.processor
        self._codec, self._batch_size = bundle.mask_codec, batch_size
        self._sampler: Sampler = Greedy()
        if bundle.weigh_locations:
            self._sampler = LocationGreedy(bundle.model.config.vocab.loc0)
        self._is_mixed, self._kv_cache_dtype = bundle.mode == "mixed", bundle.kv_cache_dtype

    @torch.inference_mode()
    def __call__(self, scenes: Sequence[Scene], asked: Sequence[Asked]) -> list[SceneAnswer]:
        device = self._model.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self._is_mixed):
            return self._answer_all(scenes, asked)

    def _answer_all(self, scenes: Sequence[Scene], asked: Sequence[Asked]) -> list[SceneAnswer]:
        pixels = torch.stack([self._processor.pixels(scene.image) for scene in scenes])
        soft = self._model.encode_image(pixels.to(self._model.device, self._model.dtype))
        answers: dict[int, SceneAnswer] = {}
        for task in TASKS:
            own = [k for k, one in enumerate(asked) if one.example.task == task]
            done = run_in_batches(
                [asked[k] for k in own],
                lambda items: self._answer(items, soft, scenes),
                length=lambda one: len(self._processor.tokenizer.encode(one.prompt)),
                batch_size=self._batch_size,
            )
            answers.update(zip(own, done, strict=True))
        return [answers[k] for k in range(len(asked))]

    def _answer(
        self, asked: Sequence[Asked], soft: Tensor, scenes: Sequence[Scene]
    ) -> list[SceneAnswer]:
        """Answers to prompts of one task; `soft` is float[B, I, D] of the pictures."""
        task = asked[0].example.task
        has_objects = task in ("detect", "segment")
        options = DecodeOptions(
            max_new_tokens=MAX_NEW_TOKENS[task],
            kv_cache_dtype=self._kv_cache_dtype,
            record_loc_probs=has_objects,
            sampler=self._sampler if has_objects else Greedy(),
        )
        batch = self._processor.inference_batch(None, [one.prompt for one in asked])
        rows = torch.tensor([one.picture for one in asked], device=soft.device)
        written = generate(self._model, batch, options, soft_tokens=soft[rows])
        decode = self._processor.tokenizer.decode
        vocab = self._model.config.vocab
        answers = []
        for row, one in enumerate(asked):
            record = token_record(written, row, vocab)
            if not has_objects:
                answers.append(SceneAnswer(text=decode(record.ids.tolist())))
                continue
            parsed = parse_tokens(record, vocab, decode)
            height, width = scenes[one.picture].image.shape[:2]
            codec = self._codec if task == "segment" else None
            found = to_detections(parsed, (width, height), codec=codec)
            answers.append(SceneAnswer(text=parsed.text, detections=found))
        return answers


def token_record(written: Generation, row: int, vocab: Vocab) -> TokenRecord:
    """One row of a generation as the parser reads it."""
    length = int(written.lengths[row])
    ids = written.ids[row, :length].cpu().numpy()
    logprobs = written.logprobs[row, :length].float().cpu().numpy()
    if written.loc_probs is None:
        return TokenRecord(ids=ids, logprobs=logprobs)
    loc_probs = np.zeros((length, NUM_LOC), np.float32)
    is_loc = np.array([vocab.is_loc(token) for token in ids.tolist()], bool)
    loc_probs[is_loc] = written.loc_probs[row].float().cpu().numpy()
    return TokenRecord(ids=ids, logprobs=logprobs, loc_probs=loc_probs)
