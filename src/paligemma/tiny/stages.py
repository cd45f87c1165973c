"""Stages of the embedded model's training as a table."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from paligemma.errors import ConfigError
from paligemma.scenes import SceneOptions
from paligemma.train.optim_config import OptimConfig
from paligemma.train.schedule import ScheduleConfig


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
        total_steps: length of the learning-rate schedule in steps.
        stop_at: step after which the next stage takes over, before the schedule has ended; None
            runs the whole schedule.
        prompts_per_scene: prompts for each picture; 0 trains the image tower alone.
        lr: peak learning rate.
        warmup_steps: length of the linear warm-up.
        boxes_in_field: patch targets hold edges in the field instead of distances from the patch.
        kinds: kind of prompt -> relative frequency; None takes the default frequencies of `scenes`.
        squashed_share: share of the pictures that are drawn wider or higher than square and then
            squashed to a square, as photographs are.
    """

    name: str
    window_px: int
    total_steps: int
    stop_at: int | None = None
    num_scenes: int
    prompts_per_scene: int
    lr: float
    warmup_steps: int = 200
    losses: LossWeights = field(default_factory=LossWeights)
    boxes_in_field: bool = False
    kinds: Mapping[str, float] | None = None
    squashed_share: float = 0.0
    scenes: SceneOptions = field(default_factory=SceneOptions)

    def __post_init__(self) -> None:
        if self.losses.edge and not self.boxes_in_field:
            raise ConfigError(
                f"the loss on edges needs boxes in the field, but {self.name} has an edge weight "
                f"of {self.losses.edge} and boxes_in_field False; set boxes_in_field"
            )

    @property
    def last_step(self) -> int:
        """Number of updates that the stage makes."""
        return self.stop_at or self.total_steps

    def optim(self) -> OptimConfig:
        """The update rule: big_vision's, with a cosine schedule and a linear warm-up."""
        schedule = ScheduleConfig(decay_type="cosine", warmup_steps=self.warmup_steps)
        frozen: tuple[tuple[str, None], ...] = ()
        if not self.prompts_per_scene:
            # Without prompts the tower is trained alone, and the projector where a loss uses the
            # soft tokens.
            frozen = (("llm/.*" if self.losses.edge else "(img/head|llm)/.*", None),)
        return OptimConfig(lr=self.lr, wd=2e-5, b2=0.98, schedule=(*frozen, (".*", schedule)))


# The position of a window in the picture is unknown to the model, so positions are not asked for.
_WINDOW_KINDS = {
    "caption": 2.0,
    "ocr": 3.0,
    "color": 0.7,
    "count": 0.8,
    "presence": 0.8,
    "reading": 1.5,
    "comparison": 0.9,
    "detect": 4.0,
    "segment": 3.0,
    "caption_region": 0.8,
}
_WHOLE_KINDS = {
    **_WINDOW_KINDS,
    "position": 0.9,
    "question": 0.3,
    "detect": 5.0,
    "segment": 4.0,
}
_TELL_KINDS = {
    "caption": 0.4,
    "ocr": 4.0,
    "color": 0.5,
    "count": 3.0,
    "presence": 2.0,
    "position": 2.0,
    "reading": 2.0,
    "comparison": 3.5,
    "question": 0.1,
    "detect": 5.0,
    "segment": 7.0,
    "caption_region": 0.3,
}
_WHOLE_SCENES = SceneOptions(label_shares=(0.48, 0.25, 0.27), min_objects=2, max_objects=6)
_CROWD_SCENES = replace(
    _WHOLE_SCENES, label_shares=(0.38, 0.24, 0.38), min_objects=3, max_objects=7, max_signs=3
)

# Low resolution comes first, then full resolution, as in the original's stages; before both, the
# tower is trained alone. The table is the record of one run: some stages mend what an earlier one
# had left out.
_TOWER_112 = Stage(
    name="tower-112",
    window_px=112,
    total_steps=1600,
    num_scenes=32,
    prompts_per_scene=0,
    lr=1e-3,
    warmup_steps=150,
    scenes=SceneOptions(
        size_px=112,
        label_shares=(0.25, 0.33, 0.42),
        min_objects=3,
        max_objects=8,
        max_signs=6,
    ),
)
_JOINT_112 = Stage(
    name="joint-112",
    window_px=112,
    total_steps=2200,
    num_scenes=12,
    prompts_per_scene=2,
    lr=8e-4,
    warmup_steps=100,
    losses=LossWeights(patch=0.5, loc_sigma_bins=6.0),
    kinds=_WINDOW_KINDS,
    scenes=SceneOptions(
        size_px=112,
        label_shares=(0.4, 0.28, 0.32),
        min_objects=2,
        max_objects=6,
        max_signs=3,
    ),
)
_JOINT_224 = Stage(
    name="joint-224",
    window_px=224,
    total_steps=2100,
    stop_at=750,
    num_scenes=8,
    prompts_per_scene=2,
    lr=8e-4,
    warmup_steps=50,
    losses=LossWeights(patch=0.5, loc_sigma_bins=2.5),
    boxes_in_field=True,
    kinds=_WHOLE_KINDS,
    squashed_share=0.25,
    scenes=_WHOLE_SCENES,
)
_EDGES_224 = replace(
    _JOINT_224,
    name="edges-224",
    total_steps=1500,
    stop_at=399,
    warmup_steps=30,
    losses=LossWeights(patch=0.3, edge=0.6, loc_sigma_bins=3.0),
)
_PLACE_224 = replace(
    _EDGES_224,
    name="place-224",
    total_steps=560,
    stop_at=None,
    num_scenes=16,
    prompts_per_scene=0,
    losses=LossWeights(patch=0.4, edge=1.0, loc_sigma_bins=6.0),
    kinds=None,
    scenes=replace(_WHOLE_SCENES, min_objects=3, max_objects=9),
)
_LAST_224 = replace(
    _EDGES_224,
    name="last-224",
    total_steps=1150,
    stop_at=None,
    losses=LossWeights(patch=0.2, edge=0.4, loc_sigma_bins=4.0),
)
_HOT_224 = replace(
    _LAST_224,
    name="hot-224",
    total_steps=8200,
    stop_at=1270,
    warmup_steps=60,
    losses=LossWeights(patch=0.2, edge=0.4, loc_sigma_bins=3.0),
    kinds={
        **_WHOLE_KINDS,
        "caption": 1.0,
        "caption_region": 0.6,
        "question": 0.2,
        "count": 1.2,
        "position": 1.2,
        "comparison": 1.2,
    },
)
# With eight pictures a step the patch losses fell only once the learning rate had fallen.
_LONG_224 = replace(_HOT_224, name="long-224", total_steps=7400, stop_at=1573, lr=3e-4)
# More signs, and more questions.
_READ_224 = replace(
    _LONG_224,
    name="read-224",
    total_steps=5900,
    stop_at=2826,
    losses=LossWeights(patch=0.35, edge=0.4, loc_sigma_bins=3.0),
    kinds={
        **_WHOLE_KINDS,
        "caption": 0.8,
        "caption_region": 0.4,
        "question": 0.2,
        "ocr": 4.0,
        "reading": 2.0,
        "count": 1.5,
        "position": 1.4,
        "presence": 1.2,
        "comparison": 1.4,
    },
    scenes=replace(_WHOLE_SCENES, label_shares=(0.33, 0.22, 0.45), max_signs=3),
)
# The objects that were still missed stood in pictures of five and six objects.
_CROWD_224 = replace(
    _READ_224,
    name="crowd-224",
    total_steps=3200,
    stop_at=None,
    lr=1.8e-4,
    kinds={
        **_WHOLE_KINDS,
        "caption": 0.4,
        "caption_region": 0.3,
        "question": 0.1,
        "segment": 5.0,
        "ocr": 4.0,
        "reading": 2.0,
        "count": 2.0,
        "position": 1.8,
        "presence": 1.3,
        "comparison": 2.0,
    },
    scenes=_CROWD_SCENES,
)
# More masks of digits, counts and comparisons, which the decoder had been shown least.
_TELL_224 = replace(
    _CROWD_224,
    name="tell-224",
    total_steps=6500,
    stop_at=1105,
    lr=3e-4,
    warmup_steps=100,
    kinds=_TELL_KINDS,
    scenes=replace(_CROWD_SCENES, label_shares=(0.42, 0.28, 0.30), min_objects=2),
)
# Two more losses: each patch predicts its part of the mask, and whether the prompt names it.
_NAME_224 = replace(
    _TELL_224,
    name="name-224",
    total_steps=7000,
    stop_at=1836,
    losses=replace(_TELL_224.losses, mask_token=0.4, naming=5.0),
)
# One more loss for comparisons, which were still guessed: they teach one bit each, and only if
# both places are there already.
_GATHER_224 = replace(
    _NAME_224,
    name="gather-224",
    total_steps=5600,
    stop_at=1293,
    losses=replace(_NAME_224.losses, gathering=0.3),
)
# More reading; the learning rate falls to zero.
_CLOSE_224 = replace(
    _GATHER_224,
    name="close-224",
    total_steps=4300,
    stop_at=None,
    kinds={
        **_TELL_KINDS,
        "caption": 0.2,
        "caption_region": 0.2,
        "color": 0.3,
        "ocr": 8.0,
        "reading": 2.5,
        "count": 2.5,
        "presence": 1.5,
        "position": 1.5,
        "comparison": 4.0,
    },
    scenes=replace(_GATHER_224.scenes, label_shares=(0.38, 0.26, 0.36)),
)
# Captions, which were hardly asked for since long-224, had begun to repeat themselves.
_WORDS_224 = replace(
    _CLOSE_224,
    name="words-224",
    total_steps=900,
    lr=1.5e-4,
    warmup_steps=50,
    kinds={
        **_TELL_KINDS,
        "caption": 7.0,
        "caption_region": 1.0,
        "ocr": 6.0,
        "count": 2.0,
        "presence": 1.0,
        "position": 1.0,
        "comparison": 6.0,
        "question": 0.3,
        "detect": 4.5,
        "segment": 6.0,
    },
)
STAGES: tuple[Stage, ...] = (
    _TOWER_112,
    _JOINT_112,
    _JOINT_224,
    _EDGES_224,
    _PLACE_224,
    _LAST_224,
    _HOT_224,
    _LONG_224,
    _READ_224,
    _CROWD_224,
    _TELL_224,
    _NAME_224,
    _GATHER_224,
    _CLOSE_224,
    _WORDS_224,
)
