"""Training of the mask codec on masks of drawn scenes, by the loop of `train`.

Recipe of SwinTransformer/AiT `vae/`: squared error on masks scaled to +-1 plus 0.25 times the
commitment loss, straight-through gradient, a codebook moved by running averages. The codec is
narrower than the original, because the masks are simpler; dead codewords are reseeded early on.

Axes: B masks of a batch.
"""

import hashlib
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paligemma.errors import ConfigError
from paligemma.json_file import parse_json
from paligemma.outputs.codec_file import require_codec_suffix
from paligemma.outputs.vqvae import MaskCodec, MaskCodecConfig, load_mask_codec
from paligemma.tiny.mask_codec_scores import measure_mask_codec, overlaps
from paligemma.tiny.mask_set import MaskSet, collect_masks
from paligemma.train.loop import METRICS_FILE, LoopOptions, train
from paligemma.train.mixture import MixedOrder
from paligemma.train.optim_config import OptimConfig
from paligemma.train.schedule import ScheduleConfig
from paligemma.whole_file import require_writable, write_json

# torch's generators take no larger seed.
_MAX_SEED = 2**64 - 1
# What the record shows of each line of metrics.
_CURVE = ("step", "loss", "iou", "codes")


@dataclass(frozen=True, kw_only=True)
class MaskCodecTraining:
    """How a codec is trained.

    Attributes:
        num_masks: number of masks that are drawn once and then shown repeatedly, 1..1_000_000.
        canvas_px: sides of the square scenes from which masks are cut, in turn.
        thing_share: share of things among the objects of these scenes.
        learning_rate: peak learning rate; the warm-up is linear and the decay a cosine.
        decay: share of the old codebook average that a step keeps, 0..1.
        reseed_below: uses a batch below which a codeword is moved onto a latent; 0 moves none.
        reseed_share: share of the run during which codewords are moved, 0..1.

    Raises:
        ConfigError: a number is out of bounds.
    """

    steps: int = 6000
    batch_size: int = 32
    num_masks: int = 32_000
    canvas_px: tuple[int, ...] = (112, 224)
    thing_share: float = 0.5
    channels: tuple[int, int, int] = (8, 16, 32)
    hidden: int = 56
    code_dim: int = 32
    num_codes: int = 32
    learning_rate: float = 1.5e-3
    warmup_steps: int = 200
    commitment: float = 0.25
    decay: float = 0.99
    reseed_below: float = 0.5
    reseed_share: float = 0.5
    seed: int = 0
    first_scene: int = 5_000_000

    def __post_init__(self) -> None:
        rules = {
            "steps": (1, self.steps, 10_000_000),
            "batch_size": (1, self.batch_size, 65_536),
            "num_masks": (1, self.num_masks, 1_000_000),
            "warmup_steps": (0, self.warmup_steps, self.steps - 1),
            "seed": (0, self.seed, _MAX_SEED),
        }
        for name, (low, value, high) in rules.items():
            if not low <= value <= high:
                raise ConfigError(
                    f"{name} of a codec training must be {low}..{high}, got {value}; change it"
                )
        if not self.canvas_px:
            raise ConfigError("a codec training needs at least one canvas_px, got none; name one")


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskBatch:
    """Masks of a step.

    Attributes:
        masks: uint8[B, 64, 64], 255 is foreground.
        reseed_below: uses a batch below which a codeword is moved onto a latent; 0 moves none.
    """

    masks: Tensor
    reseed_below: float


@dataclass(frozen=True)
class MaskSource:
    """Makes the batch of any step; an epoch shows every mask once, in an order of its own."""

    options: MaskCodecTraining
    data: MaskSet

    def batch(self, step: int) -> MaskBatch:
        """The batch of a step, counted from 0."""
        options = self.options
        places = range(step * options.batch_size, (step + 1) * options.batch_size)
        rows = [self._order.at(place)[1] for place in places]
        is_young = step < options.reseed_share * options.steps
        return MaskBatch(
            masks=torch.from_numpy(self.data.masks[rows]),
            reseed_below=options.reseed_below if is_young else 0.0,
        )

    @cached_property
    def _order(self) -> MixedOrder:
        return MixedOrder([len(self.data)], [1.0], (self.options.seed,))


class MaskObjective(nn.Module):
    """Objective of the loop: masks are rebuilt, latents stay near their codewords."""

    def __init__(self, options: MaskCodecTraining) -> None:
        super().__init__()
        self.options = options

    def forward(self, codec: MaskCodec, batch: MaskBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss float32[], with the overlap and the number of codewords in use."""
        masks = batch.masks.float() / 255
        out = codec(masks)
        loss = F.mse_loss(out.reconstruction, 2 * masks - 1)
        loss = loss + self.options.commitment * out.commitment_loss
        # No gradient reaches the codebook or is made of it, so it may move before the update.
        codec.update_codebook(
            out.latents,
            out.codes,
            decay=self.options.decay,
            reseed_below=batch.reseed_below,
        )
        used = torch.tensor(float(len(out.codes.unique())))
        return loss, {"iou": overlaps(out.reconstruction.detach(), masks).mean(), "codes": used}


def train_mask_codec(
    options: MaskCodecTraining,
    folder: Path,
    *,
    masks: MaskSet | None = None,
    progress: bool = False,
) -> MaskCodec:
    """Train a codec, or go on; equal options, machine and thread count give an equal codec.

    Args:
        folder: folder of the checkpoints and of metrics.jsonl.
        masks: training masks; drawn by the options if None.

    Returns:
        The codec in evaluation mode, float32.

    Raises:
        CheckpointError: the folder holds a training with other options or masks.
        RunError: a loss or a gradient is not finite.
    """
    data = masks or _drawn(options)
    with torch.random.fork_rng(devices=[]):
        # The weights, and codewords that are moved, draw from torch's global generator.
        torch.manual_seed(options.seed)
        codec = MaskCodec(
            MaskCodecConfig(
                channels=options.channels,
                hidden=options.hidden,
                code_dim=options.code_dim,
                num_codes=options.num_codes,
            )
        )
        # Twice as fast on a CPU, with equal values.
        codec.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        schedule = ScheduleConfig(decay_type="cosine", warmup_steps=options.warmup_steps)
        train(
            codec,
            MaskObjective(options),
            MaskSource(options, data),
            OptimConfig(
                lr=options.learning_rate, grad_clip_norm=None, schedule=((".*", schedule),)
            ),
            LoopOptions(
                total_steps=options.steps,
                log_every=max(1, min(50, options.steps // 20)),
                save_every=max(10, min(250, options.steps // 10)),
                num_workers=0,
                progress=progress,
                dropout_seed=options.seed,
            ),
            folder,
            settings={**asdict(options), "masks": hashlib.sha256(data.masks.tobytes()).hexdigest()},
        )
    codec.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return codec


def _drawn(options: MaskCodecTraining) -> MaskSet:
    return collect_masks(
        options.num_masks,
        canvas_px=options.canvas_px,
        thing_share=options.thing_share,
        first_scene=options.first_scene,
    )


def run_folder(path: Path) -> Path:
    """Where the training of a codec keeps checkpoints and metrics: beside the codec's file."""
    return path.with_suffix(".train")


def train_codec_file(
    path: str | Path,
    options: MaskCodecTraining,
    *,
    command: str = "",
    num_heldout: int = 2000,
    progress: bool = False,
) -> dict[str, Any]:
    """Train a codec, measure it on held-out masks, and write it with its record.

    The same call goes on with a training that was stopped; see `run_folder`.

    Args:
        path: file of the codec, ending in `.safetensors` or `.npz`; stored as float16, with the
            record beside it as `.json`.

    Returns:
        The record: command, options, seconds of drawing and of training, curve and figures.

    Raises:
        CheckpointError: the path has another suffix, or a training with other options began there.
        ConfigError: the folder cannot be made or written, or another process writes to it.
        RunError: a loss or a gradient is not finite.
    """
    path = Path(path)
    folder = run_folder(path)
    # Drawing and training take minutes; a path that cannot be written is refused before them.
    require_codec_suffix(path)
    require_writable(folder)
    began = time.monotonic()
    masks = _drawn(options)
    drawn = time.monotonic()
    codec = train_mask_codec(options, folder, masks=masks, progress=progress)
    codec.save(path, dtype="float16")

    # Measured as stored: rounding to float16 moves codewords.
    heldout, shifted = (
        collect_masks(
            num_heldout,
            split="heldout",
            canvas_px=options.canvas_px,
            thing_share=options.thing_share,
            box_shift_px=px,
        )
        for px in (0, 1)
    )
    metrics = folder / METRICS_FILE
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    curve = [parse_json(line) for line in lines]
    record = {
        "command": command,
        "options": asdict(options),
        "drawing_s": round(drawn - began, 1),
        "training_s": round(sum(point.get("seconds", 0.0) for point in curve), 1),
        "threads": torch.get_num_threads(),
        "num_parameters": sum(p.numel() for p in codec.parameters()),
        "heldout": measure_mask_codec(load_mask_codec(path), heldout, shifted=shifted),
        "curve": [{name: point[name] for name in _CURVE if name in point} for point in curve],
    }
    write_json(path.with_suffix(".json"), record)
    return record
