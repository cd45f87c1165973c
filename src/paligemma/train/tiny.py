"""How the embedded model `tiny` is made: architecture, start, and the stages of its training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from paligemma.config import PaliGemmaConfig, TextConfig, VisionConfig
from paligemma.model.paligemma import PaliGemmaModel, init_weights
from paligemma.model.siglip import resize_position_table
from paligemma.outputs.vqvae import MaskCodec
from paligemma.processing.processor import Processor
from paligemma.processing.sentencepiece_model import train_tokenizer
from paligemma.processing.tokenizer import Tokenizer
from paligemma.scenes import SceneOptions, draw_scene, scene_examples
from paligemma.tasks.scenes import scene_prefix
from paligemma.train.data import SceneSource
from paligemma.train.loop import LoopOptions, train
from paligemma.train.objective import SceneObjective
from paligemma.train.optim import OptimConfig
from paligemma.train.schedule import ScheduleConfig
from paligemma.vocab import NUM_LOC, Vocab

PATCH_PX = 16
_TEXT_LEN = 128
# Seeds of training scenes; evaluation draws from `EVAL_SEED` on, with held-out handwriting.
TRAIN_SEED = 0
EVAL_SEED = 1_000_000_000


def tiny_config(vocab: Vocab, image_size_px: int = 224) -> PaliGemmaConfig:
    """About ten million parameters of PaliGemma 2's kind: post-norms, soft-cap, grouped heads."""
    return PaliGemmaConfig(
        vision=VisionConfig(
            image_size_px=image_size_px,
            patch_size_px=PATCH_PX,
            width=256,
            depth=6,
            mlp_dim=1024,
            num_heads=4,
        ),
        text=TextConfig(
            width=256,
            depth=4,
            mlp_dim=1024,
            num_heads=4,
            num_kv_heads=1,
            head_dim=64,
            query_scale=64**-0.5,
            attn_softcap=50.0,
            final_softcap=None,
            post_norms=True,
            sliding_window=None,
            norm_eps=1e-6,
            rope_theta=10_000.0,
        ),
        vocab=vocab,
    )


def init_tiny(model: PaliGemmaModel, seed: int = 0) -> None:
    """Start from structure rather than from noise where the structure is known.

    The original starts from SigLIP and Gemma. Without them, the position table begins as a
    two-dimensional wave pattern, and location tokens begin near their neighbours, so that what is
    learnt of one coordinate is learnt of the ones beside it. Both stay free parameters.
    """
    init_weights(model, seed)
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    with torch.no_grad():
        model.vision.pos_embedding.copy_(
            0.2 * _waves_2d(config.vision.grid, config.vision.width)[None]
        )
        width = config.text.width
        waves = _waves(torch.linspace(0, 1, NUM_LOC), width, octaves=8.0)
        rotation = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
        loc = waves @ rotation
        loc = loc / loc.norm(dim=1, keepdim=True)
        start = config.vocab.loc0
        model.text.embed.weight[start : start + NUM_LOC] = loc
        nn.init.trunc_normal_(
            model.projector.weight, std=config.vision.width**-0.5, generator=generator
        )


def _waves(x: Tensor, width: int, octaves: float) -> Tensor:
    """float[len(x), width]: waves over [0, 1] of half a period to 2^octaves half periods."""
    frequency = math.pi * 2 ** torch.linspace(0, octaves, width // 2)
    angle = x[:, None] * frequency
    return torch.cat((angle.sin(), angle.cos()), dim=1)


def _waves_2d(grid: int, width: int) -> Tensor:
    """float[grid*grid, width], raster order."""
    line = _waves(torch.linspace(0, 1, grid), width // 2, octaves=5.0)
    rows = line[:, None].expand(grid, grid, -1)
    columns = line[None].expand(grid, grid, -1)
    return torch.cat((rows, columns), dim=2).flatten(0, 1)


def make_tokenizer(path: Path, *, num_scenes: int = 3000, vocab_size: int = 512) -> None:
    """Train the small SentencePiece vocabulary on the prompts and answers of training scenes."""
    lines: list[str] = []
    rng = np.random.default_rng(TRAIN_SEED)
    for seed in range(TRAIN_SEED, TRAIN_SEED + num_scenes):
        for example in scene_examples(draw_scene(seed, SceneOptions(size_px=224)), rng):
            if example.kind not in ("ocr", "reading"):
                lines += [scene_prefix(example), example.suffix or " ; ".join(example.labels)]
    # Words on signs are spelled letter by letter: the model is to read, not to recall.
    lines = [line for line in lines if line and not any(c.isupper() for c in line)]
    train_tokenizer(lines, vocab_size=vocab_size, out_path=path)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training.

    Attributes:
        name: also the name of its folder.
        image_size_px: side of the pictures; small ones show fewer objects at the same scale.
        num_scenes: pictures a step.
        prompts_per_scene: examples asked of each picture; 0 trains the tower alone.
        patch_weight: factor of the auxiliary objective.
    """

    name: str
    image_size_px: int
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
    label_shares: tuple[float, float, float] = SceneOptions().label_shares
    max_signs: int | None = None

    def optim(self) -> OptimConfig:
        schedule = ScheduleConfig(decay_type="cosine", warmup_steps=self.warmup_steps)
        frozen = () if self.prompts_per_scene else (("(img/head|llm)/.*", None),)
        return OptimConfig(
            lr=self.lr,
            wd=2e-5,
            b2=0.98,
            schedule=(*frozen, (".*", schedule)),
            lr_mults=(("img/(?!head/).*", self.tower_lr_mult),),
        )


# Low resolution first, then full, as the original's stages do; before both, the tower alone.
STAGES: tuple[Stage, ...] = (
    Stage(
        name="tower-112",
        image_size_px=112,
        total_steps=600,
        num_scenes=96,
        prompts_per_scene=0,
        lr=1.4e-3,
        warmup_steps=100,
        label_shares=(0.34, 0.28, 0.38),
        max_signs=2,
    ),
)


def run_stage(
    stage: Stage,
    folder: Path,
    *,
    tokenizer: Tokenizer,
    codec: MaskCodec | None,
    before: Path | None,
    seed: int,
    num_workers: int = 1,
) -> PaliGemmaModel:
    """Run or resume one stage.

    Args:
        folder: of the whole training; the stage gets `folder/NAME`.
        before: checkpoint of the stage before, or None to start from `init_tiny`.
        seed: start of the scene seeds of this stage.
    """
    model = PaliGemmaModel(tiny_config(tokenizer.vocab, stage.image_size_px))
    objective = SceneObjective(
        model.config.vision.width,
        patch_weight=stage.patch_weight,
        loc_sigma_bins=stage.loc_sigma_bins,
    )
    init_tiny(model)
    if before is not None:
        tensors = load_file(before / "model.safetensors")
        tensors["vision.pos_embedding"] = resize_position_table(
            tensors["vision.pos_embedding"], model.config.num_image_tokens
        )
        model.load_state_dict(tensors)
        objective.load_state_dict(load_file(before / "objective.safetensors"))
    source = SceneSource(
        processor=Processor(tokenizer, stage.image_size_px),
        codec=codec,
        patch_px=PATCH_PX,
        num_scenes=stage.num_scenes,
        prompts_per_scene=stage.prompts_per_scene,
        text_len=_TEXT_LEN,
        weights=stage.weights,
        seed=seed,
        squashed_share=stage.squashed_share,
        label_shares=stage.label_shares,
        max_signs=stage.max_signs,
    )
    options = LoopOptions(total_steps=stage.total_steps, num_workers=num_workers)
    train(model, objective, source, stage.optim(), options, folder / stage.name)
    return model
