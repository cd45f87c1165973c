"""Stages of the embedded model's training as a table."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from paligemma.scenes import SceneOptions
from paligemma.train.optim_config import OptimConfig
from paligemma.train.schedule import ScheduleConfig

# Rate of Muon over that of Adam.
_HIDDEN_LR = 2.5


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Factors of the auxiliary losses that are added to the loss on text; 0 leaves a loss out.

    Attributes:
        patch: factor of the patch losses, see `tiny.dense`.
        edge: factor of the losses on edges and places, see `tiny.edges`.
        mask_token: factor of the loss on mask codewords, see `tiny.mask_tokens`.
        naming: factor of the loss on the objects that a prompt names, see `tiny.naming`.
        gathering: factor of the loss on counts and places, see `tiny.gathering`.
        loc_sigma_bins: standard deviation of a location target in bins, see `tiny.locations`; 0
            is the original's one-hot target.
    """

    patch: float = 1.0
    edge: float = 0.0
    mask_token: float = 0.0
    naming: float = 0.0
    gathering: float = 0.0
    loc_sigma_bins: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training.

    Attributes:
        window_px: side of the window of the field that is shown; 224 shows the whole field. A
            window holds fewer objects at the same scale and costs less; its place in the field is
            drawn for every step, and coordinates are those of the field.
        total_steps: number of updates, over which the learning rate falls.
        num_scenes: number of pictures for each update.
        prompts_per_scene: prompts for each picture; 0 trains the image tower alone.
        lr: peak learning rate of Adam; matrices of the blocks learn `_HIDDEN_LR` times as fast.
        warmup_steps: length of the linear warm-up.
        losses: factors of the auxiliary losses.
        kinds: kind of prompt -> relative frequency; None takes the default frequencies of `scenes`.
        squashed_share: share of the pictures that are drawn wider or higher than square and then
            squashed to a square, as photographs are.
        thing_pictures: share of the pictures that show things; `scenes.thing_share` is their share
            among the objects of these pictures.
        scenes: options of the pictures, but for size and aspect, which follow from `window_px` and
            `squashed_share`.
    """

    name: str
    window_px: int
    total_steps: int
    num_scenes: int
    prompts_per_scene: int
    lr: float
    warmup_steps: int = 200
    losses: LossWeights = field(default_factory=LossWeights)
    kinds: Mapping[str, float] | None = None
    squashed_share: float = 0.0
    thing_pictures: float = 0.0
    scenes: SceneOptions = field(default_factory=SceneOptions)

    def optim(self) -> OptimConfig:
        """The update rule: Muon and Adam, with a cosine schedule and a linear warm-up."""
        schedule = ScheduleConfig(decay_type="cosine", warmup_steps=self.warmup_steps)
        frozen: tuple[tuple[str, None], ...] = ()
        if not self.prompts_per_scene:
            # Without prompts the tower is trained alone, and the projector where a loss uses the
            # soft tokens.
            frozen = (("llm/.*" if self.losses.edge else "(img/head|llm)/.*", None),)
        return OptimConfig(
            rule="muon",
            lr=self.lr,
            lr_mults=((r"(img/Transformer/encoderblock|llm/layers)/.*", _HIDDEN_LR), (".*", 1.0)),
            wd=2e-5,
            b2=0.98,
            schedule=(*frozen, (".*", schedule)),
        )


# Share of each kind of prompt. The position of a window in the picture is unknown to the model, so
# windows are not asked for positions.
_WINDOW_KINDS = {
    "caption": 2.5,
    "ocr": 3.0,
    "color": 0.6,
    "count": 1.5,
    "presence": 1.2,
    "reading": 1.5,
    "comparison": 3.0,
    "neighbour": 1.0,
    "detect": 4.0,
    "segment": 3.0,
    "caption_region": 0.7,
}
_WHOLE_KINDS = {**_WINDOW_KINDS, "position": 1.2, "question": 0.3, "detect": 5.0, "segment": 4.0}
_FINISH_KINDS = {
    **_WHOLE_KINDS,
    "caption": 3.5,
    "ocr": 16.0,
    "color": 0.3,
    "presence": 0.8,
    "neighbour": 2.0,
    "segment": 6.0,
    "position": 0.6,
}

# Two pictures of three show things, turned and recoloured more than those of the benchmark.
_THINGS = 2 / 3
_WINDOW_SCENES = SceneOptions(
    size_px=112,
    label_shares=(0.35, 0.28, 0.37),
    min_objects=1,
    max_objects=6,
    max_signs=3,
    thing_share=0.6,
    thing_jitter=3.0,
)
_WHOLE_SCENES = replace(_WINDOW_SCENES, size_px=224, label_shares=(0.42, 0.26, 0.32), max_objects=7)

_JOINT_224 = Stage(
    name="joint-224",
    window_px=224,
    total_steps=6000,
    num_scenes=12,
    prompts_per_scene=3,
    lr=6e-4,
    warmup_steps=100,
    losses=LossWeights(
        patch=0.35, edge=0.4, mask_token=0.4, naming=5.0, gathering=0.3, loc_sigma_bins=3.0
    ),
    kinds=_WHOLE_KINDS,
    squashed_share=0.25,
    thing_pictures=_THINGS,
    scenes=_WHOLE_SCENES,
)

# Low resolution comes first, then full resolution, as in the original's stages; before both, the
# tower is trained alone.
STAGES: tuple[Stage, ...] = (
    Stage(
        name="tower-112",
        window_px=112,
        total_steps=3000,
        num_scenes=32,
        prompts_per_scene=0,
        lr=1e-3,
        warmup_steps=100,
        losses=LossWeights(patch=1.0, edge=0.4, mask_token=0.4, loc_sigma_bins=6.0),
        thing_pictures=_THINGS,
        scenes=replace(_WINDOW_SCENES, min_objects=2, max_objects=8, max_signs=5),
    ),
    Stage(
        name="joint-112",
        window_px=112,
        total_steps=2400,
        num_scenes=16,
        prompts_per_scene=3,
        lr=8e-4,
        warmup_steps=100,
        losses=LossWeights(
            patch=0.5, edge=0.4, mask_token=0.4, naming=5.0, gathering=0.3, loc_sigma_bins=5.0
        ),
        kinds=_WINDOW_KINDS,
        thing_pictures=_THINGS,
        scenes=_WINDOW_SCENES,
    ),
    _JOINT_224,
    # More of what was learnt last: reading, masks and whole descriptions.
    replace(
        _JOINT_224,
        name="finish-224",
        total_steps=7000,
        losses=replace(_JOINT_224.losses, mask_token=0.8, loc_sigma_bins=2.0),
        kinds=_FINISH_KINDS,
        thing_pictures=0.4,
    ),
)


def _for_a_card(stage: Stage, *, num_scenes: int, total_steps: int, prompts: int) -> Stage:
    """The same stage in fewer, larger steps; a larger batch takes a higher rate."""
    return replace(
        stage,
        num_scenes=num_scenes,
        total_steps=total_steps,
        prompts_per_scene=prompts if stage.prompts_per_scene else 0,
        lr=1.5 * stage.lr,
    )


# A budget of some minutes on one GPU with 16 processes that draw, which bound it at about 500
# pictures a second; a further prompt about a picture costs little there.
_CARD_STAGES = (
    _for_a_card(STAGES[0], num_scenes=128, total_steps=550, prompts=0),
    _for_a_card(STAGES[1], num_scenes=96, total_steps=450, prompts=4),
    _for_a_card(STAGES[2], num_scenes=72, total_steps=900, prompts=5),
    _for_a_card(STAGES[3], num_scenes=72, total_steps=1000, prompts=5),
)
# What the training may cost: some hours of two cores, or some minutes of one H100 (not run yet).
BUDGETS: Mapping[str, tuple[Stage, ...]] = {"cpu": STAGES, "card": _CARD_STAGES}
