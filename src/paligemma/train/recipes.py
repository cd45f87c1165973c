"""Stages of the embedded model's training, as a table, and the command that runs them.

Other recipes of the family, the published transfers, will be tables here too.
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from paligemma.errors import ConfigError
from paligemma.model.paligemma import PaliGemmaModel
from paligemma.outputs.vqvae import MaskCodec, load_mask_codec
from paligemma.processing.processor import Processor
from paligemma.processing.tokenizer import Tokenizer
from paligemma.scenes import SceneOptions
from paligemma.train.checkpoint import checkpoints
from paligemma.train.data import SceneSource
from paligemma.train.loop import METRICS_FILE, LoopOptions, train
from paligemma.train.objective import SceneObjective
from paligemma.train.optim import OptimConfig
from paligemma.train.schedule import ScheduleConfig
from paligemma.train.tiny import PATCH_PX, TRAIN_SEED, init_tiny, tiny_config
from paligemma.weights.save import save_model

_TEXT_LEN = 128
# Every stage draws its own pictures.
_SEEDS_A_STAGE = 10_000_000


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
        stop_at: step after which the next stage takes over, before the schedule has ended.
    """

    name: str
    window_px: int
    total_steps: int
    num_scenes: int
    prompts_per_scene: int
    lr: float
    tower_lr_mult: float = 1.0
    patch_weight: float = 1.0
    loc_sigma_bins: float = 0.0
    warmup_steps: int = 200
    weights: dict[str, float] | None = None
    squashed_share: float = 0.0
    boxes_in_field: bool = False
    edge_weight: float = 0.0
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
            lr_mults=(("img/(?!head/).*", self.tower_lr_mult),),
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
# Low resolution first, then full, as the original's stages do; before both, the tower alone.
STAGES: tuple[Stage, ...] = (
    Stage(
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
    ),
    Stage(
        name="joint-112",
        window_px=112,
        total_steps=2200,
        num_scenes=12,
        prompts_per_scene=2,
        lr=8e-4,
        warmup_steps=100,
        patch_weight=0.5,
        loc_sigma_bins=6.0,
        weights=_WINDOW_WEIGHTS,
        scenes=SceneOptions(
            size_px=112,
            label_shares=(0.4, 0.28, 0.32),
            min_objects=2,
            max_objects=6,
            max_signs=3,
        ),
    ),
    Stage(
        name="joint-224",
        window_px=224,
        total_steps=2100,
        num_scenes=8,
        prompts_per_scene=2,
        lr=8e-4,
        warmup_steps=50,
        patch_weight=0.5,
        loc_sigma_bins=2.5,
        weights=_WHOLE_WEIGHTS,
        squashed_share=0.25,
        boxes_in_field=True,
        stop_at=750,
        scenes=_WHOLE_SCENES,
    ),
    Stage(
        name="edges-224",
        window_px=224,
        total_steps=1500,
        num_scenes=8,
        prompts_per_scene=2,
        lr=8e-4,
        warmup_steps=30,
        patch_weight=0.3,
        loc_sigma_bins=3.0,
        weights=_WHOLE_WEIGHTS,
        squashed_share=0.25,
        boxes_in_field=True,
        edge_weight=0.6,
        stop_at=399,
        scenes=_WHOLE_SCENES,
    ),
    Stage(
        name="place-224",
        window_px=224,
        total_steps=560,
        num_scenes=16,
        prompts_per_scene=0,
        lr=8e-4,
        warmup_steps=30,
        patch_weight=0.4,
        loc_sigma_bins=6.0,
        squashed_share=0.25,
        boxes_in_field=True,
        edge_weight=1.0,
        scenes=SceneOptions(label_shares=(0.48, 0.25, 0.27), min_objects=3, max_objects=9),
    ),
    Stage(
        name="last-224",
        window_px=224,
        total_steps=1150,
        num_scenes=8,
        prompts_per_scene=2,
        lr=8e-4,
        warmup_steps=30,
        patch_weight=0.2,
        loc_sigma_bins=4.0,
        weights=_WHOLE_WEIGHTS,
        squashed_share=0.25,
        boxes_in_field=True,
        edge_weight=0.4,
        scenes=_WHOLE_SCENES,
    ),
)


def train_tiny(output: Path, *, only: str | None = None, progress: bool = True) -> Path | None:
    """Train the embedded model, or go on with it, and write it as a folder that loads by path.

    Args:
        output: folder of the stages; the model goes to `output/model`.
        only: name of one stage; those before it must be complete.
        progress: show a bar.

    Returns:
        The model's folder, or None while stages are missing.

    Raises:
        ConfigError: no stage of that name, or the one before it is not there.
    """
    names = [stage.name for stage in STAGES]
    if only is not None and only not in names:
        raise ConfigError(f"a stage must be one of {', '.join(names)}, got {only!r}")
    with resources.as_file(resources.files("paligemma") / "models" / "tiny") as embedded:
        tokenizer = Tokenizer.from_file(embedded / "tokenizer.model")
        codec = load_mask_codec(embedded / "mask_codec.safetensors")
        files = [embedded / "tokenizer.model", embedded / "mask_codec.safetensors"]
        model = None
        for index, stage in enumerate(STAGES):
            if only not in (None, stage.name):
                continue
            model = run_stage(
                stage,
                output,
                tokenizer=tokenizer,
                codec=codec,
                before=_finished(output, index - 1) if index else None,
                seed=TRAIN_SEED + index * _SEEDS_A_STAGE,
                progress=progress,
            )
        if model is None or only not in (None, names[-1]):
            return None
        folder = save_model(
            model, output / "model", dtype="float16", extra_files=files, overwrite=True
        )
    _ask_to_weigh_locations(folder / "config.json")
    (folder / "training.json").write_text(json.dumps(training_record(output), indent=1))
    return folder


def _ask_to_weigh_locations(path: Path) -> None:
    """The embedded model knows places to some pixels, not to a bin; see `LocationGreedy`."""
    body = json.loads(path.read_text())
    body["paligemma"]["weigh_locations"] = True
    path.write_text(json.dumps(body, indent=2))


def _load_objective(objective: SceneObjective, tensors: dict[str, Tensor]) -> None:
    """Take over the heads of the stage before; an edge head that it had not yet begins anew."""
    new = {name: value for name, value in objective.state_dict().items() if "edges." in name}
    objective.load_state_dict(new | tensors)


def _finished(output: Path, index: int) -> Path:
    stage = STAGES[index]
    last = output / stage.name / f"step_{stage.stop_at or stage.total_steps:07d}"
    if last not in checkpoints(output / stage.name):
        raise ConfigError(f"stage {stage.name} must be complete first, {last} is not there; run it")
    return last


def training_record(output: Path) -> dict[str, Any]:
    """What was done: stages with their options, wall time, and curves."""
    stages = []
    for stage in STAGES:
        lines = (output / stage.name / METRICS_FILE).read_text().splitlines()
        metrics = [json.loads(line) for line in lines]
        stages.append(
            {
                **asdict(stage),
                "wall_minutes": round(sum(line["seconds"] for line in metrics) / 60, 1),
                "curve": [
                    {k: line[k] for k in ("step", "loss", "text", "patch_box") if k in line}
                    for line in metrics[:: max(1, len(metrics) // 20)]
                ],
            }
        )
    return {
        "command": "paligemma train tiny",
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "stages": stages,
    }


def run_stage(
    stage: Stage,
    folder: Path,
    *,
    tokenizer: Tokenizer,
    codec: MaskCodec | None,
    before: Path | None,
    seed: int,
    num_workers: int = 1,
    progress: bool = True,
) -> PaliGemmaModel:
    """Run or resume one stage.

    Args:
        folder: of the whole training; the stage gets `folder/NAME`.
        before: checkpoint of the stage before, or None to start from `init_tiny`.
        seed: start of the scene seeds of this stage.
    """
    model = PaliGemmaModel(tiny_config(tokenizer.vocab))
    objective = SceneObjective(
        model.config.vision.width,
        text_width=model.config.text.width,
        patch_weight=stage.patch_weight,
        edge_weight=stage.edge_weight,
        loc_sigma_bins=stage.loc_sigma_bins,
    )
    if before is None:
        init_tiny(model)
    else:
        model.load_state_dict(load_file(before / "model.safetensors"))
        _load_objective(objective, load_file(before / "objective.safetensors"))
    source = SceneSource(
        processor=Processor(tokenizer, stage.window_px),
        field_px=model.config.vision.image_size_px,
        codec=codec,
        patch_px=PATCH_PX,
        num_scenes=stage.num_scenes,
        prompts_per_scene=stage.prompts_per_scene,
        text_len=_TEXT_LEN,
        weights=stage.weights,
        seed=seed,
        squashed_share=stage.squashed_share,
        scenes=stage.scenes,
        boxes_in_field=stage.boxes_in_field,
    )
    options = LoopOptions(
        total_steps=stage.total_steps,
        stop_at=stage.stop_at,
        num_workers=num_workers,
        progress=progress,
    )
    settings = {"stage": asdict(stage), "seed": seed}
    train(
        model,
        objective,
        source,
        stage.optim(),
        options,
        folder / stage.name,
        settings=settings,
    )
    return model
