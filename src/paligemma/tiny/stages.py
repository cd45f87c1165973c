"""Stages of the embedded model's training as a table."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from paligemma.errors import ConfigError
from paligemma.scenes import SceneOptions
from paligemma.train.optim import OptimConfig
from paligemma.train.schedule import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training.

    Attributes:
        name: also the name of its folder.
        window_px: side of the part of the field that is shown; 224 is all of it. A window shows
            fewer objects at the same scale and costs less; its place in the field is drawn anew
            for every step, and coordinates are those of the field.
        num_scenes: pictures a step.
        prompts_per_scene: examples asked of each picture; 0 trains the tower alone.
        patch_weight: factor of the auxiliary objective.
        edge_weight: factor of the second one, see `train.edges`.
        mask_token_weight: factor of the third one, see `train.mask_tokens`.
        naming_weight: factor of the fourth one, see `train.naming`.
        gathering_weight: factor of the fifth one, see `train.gathering`.
        stop_at: step after which the next stage takes over, before the schedule has ended.
    """

    name: str
    window_px: int
    total_steps: int
    num_scenes: int
    prompts_per_scene: int
    lr: float
    patch_weight: float = 1.0
    loc_sigma_bins: float = 0.0
    warmup_steps: int = 200
    weights: dict[str, float] | None = None
    squashed_share: float = 0.0
    boxes_in_field: bool = False
    edge_weight: float = 0.0
    mask_token_weight: float = 0.0
    naming_weight: float = 0.0
    gathering_weight: float = 0.0
    stop_at: int | None = None
    scenes: SceneOptions = field(default_factory=SceneOptions)

    def __post_init__(self) -> None:
        if self.edge_weight and not self.boxes_in_field:
            raise ConfigError(
                f"edges are told in the field, but {self.name} has edge_weight {self.edge_weight} "
                "and boxes_in_field False; set boxes_in_field"
            )

    def optim(self) -> OptimConfig:
        schedule = ScheduleConfig(decay_type="cosine", warmup_steps=self.warmup_steps)
        frozen: tuple[tuple[str, None], ...] = ()
        if not self.prompts_per_scene:
            # The tower alone; the projector too where soft tokens are asked for edges.
            frozen = (("llm/.*" if self.edge_weight else "(img/head|llm)/.*", None),)
        return OptimConfig(
            lr=self.lr,
            wd=2e-5,
            b2=0.98,
            schedule=(*frozen, (".*", schedule)),
        )


# A window does not know its place among the nine of the whole picture, so it is not asked for it.
_WINDOW_WEIGHTS = {
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
_WHOLE_WEIGHTS = {
    **_WINDOW_WEIGHTS,
    "position": 0.9,
    "question": 0.3,
    "detect": 5.0,
    "segment": 4.0,
}
_WHOLE_SCENES = SceneOptions(label_shares=(0.48, 0.25, 0.27), min_objects=2, max_objects=6)
_WINDOW = Stage(
    name="",
    window_px=112,
    total_steps=1,
    num_scenes=12,
    prompts_per_scene=2,
    lr=8e-4,
    warmup_steps=100,
    weights=_WINDOW_WEIGHTS,
)
_WHOLE = Stage(
    name="",
    window_px=224,
    total_steps=1,
    num_scenes=8,
    prompts_per_scene=2,
    lr=8e-4,
    warmup_steps=30,
    patch_weight=0.2,
    weights=_WHOLE_WEIGHTS,
    squashed_share=0.25,
    boxes_in_field=True,
    edge_weight=0.4,
    scenes=_WHOLE_SCENES,
)
_LONG = replace(
    _WHOLE,
    lr=3e-4,
    warmup_steps=60,
    loc_sigma_bins=3.0,
    weights={
        **_WHOLE_WEIGHTS,
        "caption": 1.0,
        "caption_region": 0.6,
        "question": 0.2,
        "count": 1.2,
        "position": 1.2,
        "comparison": 1.2,
    },
)
_CROWD = replace(
    _LONG,
    name="crowd-224",
    total_steps=3200,
    lr=1.8e-4,
    patch_weight=0.35,
    weights={
        **_WHOLE_WEIGHTS,
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
    scenes=replace(
        _WHOLE_SCENES,
        label_shares=(0.38, 0.24, 0.38),
        min_objects=3,
        max_objects=7,
        max_signs=3,
    ),
)
_TELL_WEIGHTS = {
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
_TELL = replace(
    _CROWD,
    name="tell-224",
    total_steps=6500,
    stop_at=1105,
    lr=3e-4,
    warmup_steps=100,
    weights=_TELL_WEIGHTS,
    scenes=replace(_CROWD.scenes, label_shares=(0.42, 0.28, 0.30), min_objects=2),
)
_NAME = replace(
    _TELL,
    name="name-224",
    total_steps=7000,
    stop_at=1836,
    mask_token_weight=0.4,
    naming_weight=5.0,
)
_GATHER = replace(_NAME, name="gather-224", total_steps=5600, stop_at=1293, gathering_weight=0.3)
_CLOSE = replace(
    _GATHER,
    name="close-224",
    total_steps=4300,
    stop_at=None,
    weights={
        **_TELL_WEIGHTS,
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
    scenes=replace(_GATHER.scenes, label_shares=(0.38, 0.26, 0.36)),
)
# Low resolution first, then full, as the original's stages do; before both, the tower alone.
# The record of a run: what a stage repairs, the one before it had left out.
STAGES: tuple[Stage, ...] = (
    replace(
        _WINDOW,
        name="tower-112",
        total_steps=1600,
        num_scenes=32,
        prompts_per_scene=0,
        lr=1e-3,
        warmup_steps=150,
        weights=None,
        scenes=SceneOptions(
            size_px=112,
            label_shares=(0.25, 0.33, 0.42),
            min_objects=3,
            max_objects=8,
            max_signs=6,
        ),
    ),
    replace(
        _WINDOW,
        name="joint-112",
        total_steps=2200,
        patch_weight=0.5,
        loc_sigma_bins=6.0,
        scenes=SceneOptions(
            size_px=112,
            label_shares=(0.4, 0.28, 0.32),
            min_objects=2,
            max_objects=6,
            max_signs=3,
        ),
    ),
    replace(
        _WHOLE,
        name="joint-224",
        total_steps=2100,
        stop_at=750,
        warmup_steps=50,
        patch_weight=0.5,
        edge_weight=0.0,
        loc_sigma_bins=2.5,
    ),
    replace(
        _WHOLE,
        name="edges-224",
        total_steps=1500,
        stop_at=399,
        patch_weight=0.3,
        edge_weight=0.6,
        loc_sigma_bins=3.0,
    ),
    replace(
        _WHOLE,
        name="place-224",
        total_steps=560,
        num_scenes=16,
        prompts_per_scene=0,
        patch_weight=0.4,
        edge_weight=1.0,
        loc_sigma_bins=6.0,
        weights=None,
        scenes=replace(_WHOLE_SCENES, min_objects=3, max_objects=9),
    ),
    replace(_WHOLE, name="last-224", total_steps=1150, loc_sigma_bins=4.0),
    replace(_LONG, name="hot-224", total_steps=8200, lr=8e-4, stop_at=1270),
    # With eight pictures a step the losses of patches fell only once the rate had.
    replace(_LONG, name="long-224", total_steps=7400, lr=3e-4, stop_at=1573),
    # More to read, and more questions.
    replace(
        _LONG,
        name="read-224",
        total_steps=5900,
        stop_at=2826,
        patch_weight=0.35,
        weights={
            **_WHOLE_WEIGHTS,
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
    ),
    # What was still missed stood in pictures of five and six objects.
    _CROWD,
    # The decoder's turn: masks of digits, counts and comparisons, which it had seen least of.
    _TELL,
    # Every patch tells its part of the mask and whether the prompt speaks of it.
    _NAME,
    # Comparisons were still guessed: one bit each, and both places have to be known first.
    _GATHER,
    # Reading lags; the rest stays.
    _CLOSE,
    # Captions, hardly asked for since long-224, had begun to repeat themselves.
    replace(
        _CLOSE,
        name="words-224",
        total_steps=900,
        lr=1.5e-4,
        warmup_steps=50,
        weights={
            **_TELL_WEIGHTS,
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
    ),
)
