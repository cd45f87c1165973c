"""The bundled task: pictures drawn by `paligemma.scenes`, asked in the words of pre-training.

The benchmark shows handwriting and layouts that training never draws. Each picture is asked for
all its objects among one or two labels that it does not show, for one mask, for one short answer
and for its writing; every fourth one also for captions of the whole and of a region.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from paligemma.errors import ConfigError
from paligemma.metrics.grounding import ImageBoxes
from paligemma.metrics.text import edit_distance
from paligemma.outputs.boxes import encode_boxes, format_detections, format_loc
from paligemma.outputs.masks import mask_iou
from paligemma.outputs.types import Detections
from paligemma.outputs.vqvae import MaskCodec, mask_to_codes
from paligemma.scenes import (
    Scene,
    SceneExample,
    SceneOptions,
    detect_all,
    draw_scene,
    scene_examples,
)

Box: TypeAlias = tuple[float, float, float, float]

# Training draws from 0 up, far below.
EVAL_SEED = 1_000_000_000
# Side of the pictures; a model of a lower resolution gets smaller ones with fewer objects.
SIZE_PX = 224
# Every benchmark seed owns this many pictures.
MAX_SCENES = 1_000_000
MAX_SEED = 1_000_000

TASKS: tuple[str, ...] = ("detect", "segment", "answer", "ocr", "caption", "caption_region")
# Tasks beside the four that the benchmark is about; one picture in so many is asked them.
SECONDARY_TASKS, SECONDARY_EVERY = ("caption", "caption_region"), 4
ANSWER_KINDS: tuple[str, ...] = ("color", "count", "presence", "position", "reading", "comparison")
# Kinds that every picture has; the others stand in for one another where one does not apply.
_ALWAYS = ("count", "presence")
# With the embedded model's vocabulary six boxes are 47 tokens, and the longest caption about 45.
MAX_NEW_TOKENS: dict[str, int] = {
    "detect": 64,
    "segment": 64,
    "answer": 12,
    "ocr": 32,
    "caption": 64,
    "caption_region": 20,
}


def _in_place(box_yxyx: Box) -> Box:
    return box_yxyx


def scene_prefix(example: SceneExample, locate: Callable[[Box], Box] = _in_place) -> str:
    """The prompt as the model reads it; a region to caption follows as location tokens.

    Args:
        locate: where a box of the picture lies for the model; where it is unless said otherwise.
    """
    if example.prefix_box is None:
        return example.prefix
    return example.prefix + format_loc(encode_boxes(locate(example.prefix_box)).tolist())


def scene_suffix(
    scene: Scene,
    example: SceneExample,
    codec: MaskCodec,
    locate: Callable[[Box], Box] = _in_place,
) -> str:
    """The true answer: text, or boxes and masks as location and mask tokens.

    Args:
        locate: see `scene_prefix`.
    """
    if example.suffix is not None:
        return example.suffix
    boxes = [scene.objects[k].box_yxyx for k in example.objects]
    codes = None
    if example.task == "segment":
        codes = [
            mask_to_codes(codec, scene.mask(k), np.asarray(box)).tolist()
            for k, box in zip(example.objects, boxes, strict=True)
        ]
    return format_detections([locate(box) for box in boxes], example.labels, codes)


def heldout_scene(index: int, *, seed: int = 0, size_px: int = SIZE_PX) -> Scene:
    """Picture `index` of the benchmark `seed`: held-out handwriting, a layout no training sees.

    Raises:
        ConfigError: an index or a seed out of bounds.
    """
    if not (0 <= index < MAX_SCENES and 0 <= seed < MAX_SEED):
        raise ConfigError(
            f"a benchmark has pictures 0..{MAX_SCENES - 1} and seeds 0..{MAX_SEED - 1}, "
            f"got picture {index} of seed {seed}"
        )
    options = SceneOptions(size_px=size_px, split="heldout")
    return draw_scene(EVAL_SEED + seed * MAX_SCENES + index, options)


def benchmark_examples(
    scene: Scene, index: int, tasks: Collection[str] = TASKS
) -> list[SceneExample]:
    """The prompts of one picture, at most one a task; the same whichever tasks are asked.

    Args:
        scene: the picture.
        index: its place in the benchmark; kinds of question take turns along it, and where one does
            not apply another scarce one is drawn.
        tasks: of TASKS; a picture without writing has no "ocr", three of four have no captions.
    """
    rng = np.random.default_rng((scene.seed, 1))
    by_kind = {example.kind: example for example in scene_examples(scene, rng)}
    turn = ANSWER_KINDS[index % len(ANSWER_KINDS)]
    scarce = [k for k in ANSWER_KINDS if k in by_kind and k not in _ALWAYS] or list(_ALWAYS)
    substitute = scarce[int(rng.integers(len(scarce)))]
    by_kind["answer"] = by_kind[turn] if turn in by_kind else by_kind[substitute]
    by_kind["detect"] = detect_all(scene, rng)
    asked = [task for task in TASKS if task in tasks and task in by_kind]
    if index % SECONDARY_EVERY:
        asked = [task for task in asked if task not in SECONDARY_TASKS]
    return [by_kind[task] for task in asked]


@dataclass(frozen=True, kw_only=True, eq=False)
class SceneAnswer:
    """What a model said.

    Attributes:
        text: the whole answer.
        detections: its objects; None for tasks that answer in words.
    """

    text: str
    detections: Detections | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class SceneOutcome:
    """One answer, scored.

    Attributes:
        scene_seed: draws the picture again.
        task: one of TASKS.
        slice: what the score may be broken down by: the kind of question, or the label of the mask.
        prompt: as the model read it.
        reference: the true answer in words; for boxes and masks the true labels.
        prediction: what the model wrote.
        part: numerator of the score: IoU, 1 for a right answer, or edited characters.
        total: denominator: 1, or characters of the reference.
        boxes: for "detect", which is scored over all pictures together; `part` is then 0.
    """

    scene_seed: int
    task: str
    slice: str
    prompt: str
    reference: str
    prediction: str
    part: float
    total: float
    boxes: ImageBoxes | None = None

    @property
    def id(self) -> str:
        """Key of the example among all predictions."""
        return f"scenes/{self.scene_seed}/{self.task}"


def score_answer(scene: Scene, example: SceneExample, answer: SceneAnswer) -> SceneOutcome:
    """Score one answer: IoU of the joined masks, equality of words, or edited characters."""
    text, boxes, total = answer.text.strip(), None, 1.0
    reference = " ; ".join(example.labels) if example.suffix is None else example.suffix
    group = example.kind
    if example.task == "detect":
        boxes, part = _boxes(scene, example, answer), 0.0
    elif example.task == "segment":
        part, group = _joined_iou(scene, example, answer), scene.objects[example.objects[0]].label
    elif example.task == "ocr":
        part, total = float(edit_distance(text, reference)), float(len(reference))
    else:
        part = float(text == reference)
    return SceneOutcome(
        scene_seed=scene.seed,
        task=example.task,
        slice=group,
        prompt=scene_prefix(example),
        reference=reference,
        prediction=answer.text,
        part=part,
        total=total,
        boxes=boxes,
    )


def _boxes(scene: Scene, example: SceneExample, answer: SceneAnswer) -> ImageBoxes:
    """Found and true boxes; empty boxes are dropped, a box without confidence counts as certain."""
    found = [one for one in answer.detections or () if one.is_valid]
    truth = [scene.objects[k].box_yxyx for k in example.objects]
    return ImageBoxes(
        boxes=np.array([one.box_yxyx for one in found], np.float64).reshape(-1, 4),
        labels=[one.label or "" for one in found],
        scores=np.array([1.0 if one.score is None else one.score for one in found], np.float64),
        true_boxes=np.array(truth, np.float64).reshape(-1, 4),
        true_labels=example.labels,
    )


def _joined_iou(scene: Scene, example: SceneExample, answer: SceneAnswer) -> float:
    """Overlap of all masks of the answer with all objects that were meant; 0 without a mask."""
    truth = np.isin(scene.object_map, [k + 1 for k in example.objects])
    found = np.zeros_like(truth)
    for one in answer.detections or ():
        if one.mask is not None:
            found |= one.mask
    return mask_iou(found, truth)
