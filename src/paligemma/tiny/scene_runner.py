"""The benchmark of drawn scenes: the general runner over its pictures, and a report of its own."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from paligemma.errors import ConfigError
from paligemma.eval.options import EvalOptions
from paligemma.eval.runner import Answerer, run_task
from paligemma.example import Prediction
from paligemma.jobs.model_answerer import AskedModel, ModelAnswerer
from paligemma.jobs.run_folder import Run
from paligemma.outputs.detections import Detections
from paligemma.outputs.masks import MaskRegion
from paligemma.outputs.rle import decode_rle
from paligemma.outputs.types import Detection
from paligemma.scenes import Scene
from paligemma.tasks.scenes.rows import (
    MAX_SCENES,
    MAX_SEED,
    SIZE_PX,
    benchmark_examples,
    heldout_scene,
    scenes_task,
)
from paligemma.tasks.scenes.scores import KINDS
from paligemma.tiny.scene_report import Sample, SceneReport, make_report

NUM_SAMPLES = 12
MAX_BATCH_SIZE = 1024
# Prompts about one picture: four kinds, and for some captions too.
_PROMPTS_EACH = 4


@dataclass(frozen=True, kw_only=True)
class SceneEvalOptions:
    """What is asked, and how much at a time.

    Attributes:
        limit: pictures.
        seed: which pictures; every seed has its own.
        batch_size: pictures encoded at a time, with all prompts about them; no score depends on it
            beyond rounding.
        kinds: of `paligemma.tasks.scenes.scores.KINDS`.
        size_px: side of the drawn pictures; the processor resizes them to the model's.
    """

    limit: int = 1000
    seed: int = 0
    batch_size: int = 64
    kinds: tuple[str, ...] = KINDS
    size_px: int = SIZE_PX

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MAX_SCENES:
            raise ConfigError(f"limit must lie in 1..{MAX_SCENES} pictures, got {self.limit}")
        if not 0 <= self.seed < MAX_SEED:
            raise ConfigError(f"seed must lie in 0..{MAX_SEED - 1}, got {self.seed}")
        if not 1 <= self.batch_size <= MAX_BATCH_SIZE:
            raise ConfigError(f"batch_size must lie in 1..{MAX_BATCH_SIZE}, got {self.batch_size}")
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise ConfigError(
                f"tasks must be some of {', '.join(KINDS)}, got {', '.join(unknown) or 'none'}"
            )


def evaluate_scenes(
    bundle: AskedModel,
    options: SceneEvalOptions,
    *,
    name: str = "",
    folder: str | Path | None = None,
    progress: bool = False,
) -> SceneReport:
    """Measure a model on held-out pictures.

    Args:
        bundle: model, processor and mask codec.
        options: what is asked.
        name: of the model, for the report.
        folder: keeps the run, and goes on with it if it was cut; nowhere by default.
        progress: show a bar on standard error.
    """
    running = _eval_options(options, bundle.processor.resize_method)
    answerer = ModelAnswerer(bundle, running.asking_of(scenes_task()))
    return _run(answerer, options, running, name, folder, progress)


def run_scenes(
    answerer: Answerer,
    options: SceneEvalOptions,
    *,
    name: str = "",
    folder: str | Path | None = None,
    progress: bool = False,
) -> SceneReport:
    """The benchmark with anything that answers; arguments as for `evaluate_scenes`."""
    return _run(answerer, options, _eval_options(options, None), name, folder, progress)


def _eval_options(options: SceneEvalOptions, resize_method: str | None) -> EvalOptions:
    batch_size = options.batch_size * min(_PROMPTS_EACH, len(options.kinds))
    return EvalOptions(batch_size=batch_size, num_workers=1, resize_method=resize_method)


def _run(
    answerer: Answerer,
    options: SceneEvalOptions,
    running: EvalOptions,
    name: str,
    folder: str | Path | None,
    progress: bool,
) -> SceneReport:
    started = time.monotonic()
    task = scenes_task(
        limit=options.limit, seed=options.seed, size_px=options.size_px, kinds=options.kinds
    )
    with ExitStack() as stack:
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="paligemma_scenes_"))
        run = run_task(
            task, answerer, None, "heldout", running, folder, model=name, progress=progress
        )
    examples, predictions = run.answered()
    return make_report(
        examples,
        predictions,
        _samples(run, options),
        model=name,
        settings={"limit": options.limit, "seed": options.seed, "size_px": options.size_px},
        seconds=time.monotonic() - started,
    )


def _samples(run: Run, options: SceneEvalOptions) -> list[Sample]:
    """Answers about the first pictures, to be drawn."""
    found = []
    for index in range(min(NUM_SAMPLES, options.limit)):
        scene = heldout_scene(index, seed=options.seed, size_px=options.size_px)
        for one in benchmark_examples(scene, index, options.kinds):
            answer = run.predictions[f"scenes/{scene.seed}/{one.task}"]
            found.append(
                Sample(
                    scene=scene,
                    example=one,
                    text=answer.text,
                    detections=None if one.suffix is not None else detections_of(answer, scene),
                )
            )
    return found


def detections_of(answer: Prediction, scene: Scene) -> Detections:
    """The objects of an answer as they are drawn."""
    height, width = scene.image.shape[:2]
    items = [
        Detection(
            label=one.label or None,
            box_yxyx=one.box_yxyx,
            image_wh=(width, height),
            score=one.score,
            region=None if one.mask is None else MaskRegion.from_array(decode_rle(one.mask)),
        )
        for one in answer.objects
    ]
    return Detections(items=tuple(items), image_wh=(width, height), text=answer.text)
