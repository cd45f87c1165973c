"""The bundled benchmark: pictures drawn by `paligemma.scenes`, with prompts of pre-training.

The benchmark shows handwriting and layouts that training never draws. The prompts of each picture
ask for all its objects among one or two labels that it does not show, for one mask, for one short
answer and for its writing; those of every fourth picture also for captions of the whole and of a
region.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paligemma.errors import ConfigError
from paligemma.example import MASK, OBJECTS, TEXT, Asking, Example
from paligemma.outputs.boxes import Box, encode_boxes, format_detections, format_loc
from paligemma.scenes import (
    Scene,
    SceneExample,
    SceneOptions,
    detect_all,
    draw_scene,
    scene_examples,
)
from paligemma.scenes.things import sprite_file
from paligemma.tasks.scenes.scores import METRICS, SCENE_KINDS, references_of, score_scenes
from paligemma.tasks.task import Task

if TYPE_CHECKING:
    from paligemma.outputs.vqvae import MaskCodec

# Seeds of training count up from 0 and stay far below.
EVAL_SEED = 1_000_000_000
# Side of the pictures; a model of a lower resolution gets smaller ones with fewer objects.
SIZE_PX = 224
# Every benchmark seed owns this many pictures.
MAX_SCENES = 1_000_000
_MAX_SEED = 1_000_000

# Pictures of the benchmark by default.
NUM_SCENES = 1000
# Kinds beside the four main ones; one picture in so many has them.
SECONDARY_KINDS, SECONDARY_EVERY = ("caption", "caption_region"), 4
ANSWER_KINDS: tuple[str, ...] = ("color", "count", "presence", "position", "reading", "comparison")
# Pictures of things ask what lies beside an object, too.
THING_ANSWER_KINDS: tuple[str, ...] = (*ANSWER_KINDS, "neighbour")
# Share of things among the objects of such pictures.
THING_SHARE = 0.6
# Kinds that every picture has; the others stand in for one another where one does not apply.
_ALWAYS = ("count", "presence")
# Longer than any prompt with its answer.
TEXT_LEN = 512
# With the embedded model's vocabulary six boxes are 47 tokens, and the longest caption about 45.
_MAX_NEW_TOKENS: dict[str, int] = {
    "detect": 64,
    "segment": 64,
    "answer": 12,
    "ocr": 32,
    "caption": 64,
    "caption_region": 20,
}
_ANSWERS = {"detect": OBJECTS, "segment": MASK}
_ASKING = {
    kind: Asking(text_len=TEXT_LEN, max_new_tokens=bound, answer=_ANSWERS.get(kind, TEXT))
    for kind, bound in _MAX_NEW_TOKENS.items()
}


def scene_prefix(example: SceneExample, locate: Callable[[Box], Box] = lambda box: box) -> str:
    """Write the prompt as the model reads it; a region to caption follows as location tokens.

    Args:
        locate: maps a box of the picture to the model's input; the identity by default.
    """
    if example.prefix_box is None:
        return example.prefix
    return example.prefix + format_loc(encode_boxes(locate(example.prefix_box)).tolist())


def scene_suffix(
    scene: Scene,
    example: SceneExample,
    codec: MaskCodec,
    locate: Callable[[Box], Box] = lambda box: box,
) -> str:
    """Write the true answer: text, or boxes and masks as location and mask tokens."""
    if example.suffix is not None:
        return example.suffix
    boxes = [scene.objects[k].box_yxyx for k in example.objects]
    codes = None
    if example.task == "segment":
        from paligemma.outputs.vqvae import mask_to_codes

        codes = [
            mask_to_codes(codec, scene.mask(k), np.asarray(box)).tolist()
            for k, box in zip(example.objects, boxes, strict=True)
        ]
    return format_detections([locate(box) for box in boxes], example.labels, codes)


def heldout_scene(
    index: int, *, seed: int = 0, size_px: int = SIZE_PX, things: str | None = None
) -> Scene:
    """Draw picture `index` of the benchmark `seed`, with held-out handwriting and layout.

    Args:
        things: file of sprites, "known" for those of the package; None shows no things.

    Raises:
        ConfigError: an index or a seed out of bounds.
    """
    if not (0 <= index < MAX_SCENES and 0 <= seed < _MAX_SEED):
        raise ConfigError(
            f"a benchmark has pictures 0..{MAX_SCENES - 1} and seeds 0..{_MAX_SEED - 1}, "
            f"got picture {index} of seed {seed}"
        )
    options = SceneOptions(size_px=size_px, split="heldout")
    if things is not None:
        options = replace(options, thing_share=THING_SHARE, things=things)
    return draw_scene(EVAL_SEED + seed * MAX_SCENES + index, options)


def benchmark_examples(
    scene: Scene,
    index: int,
    kinds: Collection[str] = SCENE_KINDS,
    *,
    questions: Sequence[str] = ANSWER_KINDS,
) -> list[SceneExample]:
    """Choose the prompts of one picture, at most one a kind, the same for any choice of kinds.

    Args:
        index: place of the picture in the benchmark; kinds of question take turns along it, and
            where a kind does not apply, another scarce kind is drawn.
        kinds: some of SCENE_KINDS; a picture without writing has no "ocr", three of four have no
            captions.
        questions: kinds of question that take turns.
    """
    rng = np.random.default_rng((scene.seed, 1))
    by_kind = {example.kind: example for example in scene_examples(scene, rng)}
    turn = questions[index % len(questions)]
    scarce = [k for k in questions if k in by_kind and k not in _ALWAYS] or list(_ALWAYS)
    substitute = scarce[int(rng.integers(len(scarce)))]
    by_kind["answer"] = by_kind[turn] if turn in by_kind else by_kind[substitute]
    by_kind["detect"] = detect_all(scene, rng)
    asked = [kind for kind in SCENE_KINDS if kind in kinds and kind in by_kind]
    if index % SECONDARY_EVERY:
        asked = [kind for kind in asked if kind not in SECONDARY_KINDS]
    return [by_kind[kind] for kind in asked]


@dataclass(frozen=True, kw_only=True)
class ScenePicture:
    """A picture of the benchmark, drawn when it is read."""

    index: int
    seed: int
    size_px: int
    things: str | None = None

    def read(self, max_pixels: int) -> np.ndarray:
        """uint8[size_px, size_px, 3]."""
        return heldout_scene(
            self.index, seed=self.seed, size_px=self.size_px, things=self.things
        ).image


def asking_for(example: Example) -> Asking:
    """Return the asking of an example: boxes, masks or words, with the bound of its kind."""
    return _ASKING[example.references["task"]]


def scenes_task(
    *,
    limit: int = NUM_SCENES,
    seed: int = 0,
    size_px: int = SIZE_PX,
    kinds: Collection[str] = SCENE_KINDS,
    things: str | None = None,
) -> Task:
    """Build the benchmark over the pictures 0..limit - 1 of a seed.

    Args:
        seed: seed of the benchmark; every seed has its own pictures.
        things: file of sprites, "known" for those of the package; None shows no things.
    """
    if not 1 <= limit <= MAX_SCENES:
        raise ConfigError(f"limit must lie in 1..{MAX_SCENES} pictures, got {limit}")
    if not 0 <= seed < _MAX_SEED:
        raise ConfigError(f"seed must lie in 0..{_MAX_SEED - 1}, got {seed}")
    unknown = [kind for kind in kinds if kind not in SCENE_KINDS]
    if unknown or not kinds:
        raise ConfigError(
            f"tasks must be some of {', '.join(SCENE_KINDS)}, got {', '.join(unknown) or 'none'}"
        )

    questions = ANSWER_KINDS if things is None else THING_ANSWER_KINDS
    # Answers about other sprites are answers about other pictures, under whatever name they lie.
    shown = "" if things is None else f"/{sprite_file(things).sha256[:8]}"

    def read(data: Path, split: str) -> Iterator[Example]:
        is_empty = True
        for index in range(limit):
            scene = heldout_scene(index, seed=seed, size_px=size_px, things=things)
            picture = ScenePicture(index=index, seed=seed, size_px=size_px, things=things)
            for one in benchmark_examples(scene, index, kinds, questions=questions):
                is_empty = False
                yield Example(
                    id=f"scenes/{scene.seed}/{one.task}{shown}",
                    prefix=scene_prefix(one),
                    pictures=(picture,),
                    references=references_of(scene, one),
                    unit=str(scene.seed),
                )
        if is_empty:
            raise ConfigError(
                f"no prompt of {', '.join(kinds)} is about pictures 0..{limit - 1} of seed {seed}; "
                "raise the limit or take another seed"
            )

    first = next(kind for kind in SCENE_KINDS if kind in kinds)
    return Task(
        name="scenes",
        title="Drawn scenes",
        family="scenes",
        splits=("heldout",),
        headline=f"{first}_{METRICS[first]}",
        asking=_ASKING[first],
        files=(),
        reader=read,
        score=score_scenes,
        traps=(
            "Pictures are drawn at the model's own size up to 224 px, so that models of different "
            "sizes see different pictures.",
        ),
        asking_for=asking_for,
    )


TASKS: tuple[Task, ...] = (scenes_task(),)
