"""Training of the mask codec on masks of drawn scenes, by the loop of `train`; its measurement.

Recipe of SwinTransformer/AiT `vae/`: squared error on masks scaled to +-1 plus 0.25 times the
commitment loss, straight-through gradient, a codebook moved by running averages. The codec is
narrower than the original, because the masks are simpler; dead codewords are reseeded early on.

Axes: N masks, B masks of a batch.
"""

import hashlib
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paligemma.errors import ConfigError
from paligemma.json_file import parse_json
from paligemma.outputs.codec_file import require_codec_suffix
from paligemma.outputs.masks import MASK_SIZE_PX, crop_mask
from paligemma.outputs.vqvae import MaskCodec, MaskCodecConfig, load_mask_codec
from paligemma.scenes import LABELS, SceneOptions, draw_scene
from paligemma.train.loop import METRICS_FILE, LoopOptions, train
from paligemma.train.mixture import MixedOrder
from paligemma.train.optim_config import OptimConfig
from paligemma.train.schedule import ScheduleConfig
from paligemma.vocab import SEG_PER_MASK
from paligemma.whole_file import require_writable, write_json

# All things count as one label of masks.
THING = "thing"
MASK_LABELS: tuple[str, ...] = (*LABELS, THING)
# Thinner boxes are left out, as AiT leaves them out: their masks have no shape.
_MIN_SIDE_PX = 2
# torch's generators take no larger seed.
_MAX_SEED = 2**64 - 1
_CHUNK = 256
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
class MaskSet:
    """Masks cut out by their boxes, as the codec reads them.

    Attributes:
        masks: uint8[N, 64, 64], 255 is foreground.
        labels: int64[N], indices into `MASK_LABELS`.
    """

    masks: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.masks)


def collect_masks(
    num_masks: int,
    *,
    split: str = "train",
    canvas_px: tuple[int, ...] = (112, 224),
    thing_share: float = 0.0,
    first_scene: int = 0,
    box_shift_px: int = 0,
) -> MaskSet:
    """Cut the masks of drawn objects out by their boxes, as `mask_to_codes` does.

    Args:
        split: handwriting that is shown, "train" or "heldout".
        thing_share: share of things among the objects.
        box_shift_px: largest shift of each edge of a box in pixels, drawn from the scene's seed.
    """
    masks = np.empty((num_masks, MASK_SIZE_PX, MASK_SIZE_PX), np.uint8)
    labels = np.empty(num_masks, np.int64)
    seed, done = first_scene, 0
    while done < num_masks:
        size_px = canvas_px[seed % len(canvas_px)]
        options = SceneOptions(size_px=size_px, split=split, thing_share=thing_share)
        scene = draw_scene(seed, options)
        rng = np.random.default_rng(seed)
        for i, item in enumerate(scene.objects[: num_masks - done]):
            edges = np.round(np.array(item.box_yxyx) * size_px)
            edges += rng.integers(-box_shift_px, box_shift_px + 1, size=4)
            edges = edges.clip(0, size_px)
            if min(edges[2] - edges[0], edges[3] - edges[1]) < _MIN_SIDE_PX:
                continue
            crop = crop_mask(scene.mask(i), edges / size_px)
            masks[done] = np.round(crop * 255)
            labels[done] = MASK_LABELS.index(THING if item.style else item.label)
            done += 1
        seed += 1
    return MaskSet(masks=masks, labels=labels)


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
        return loss, {"iou": _ious(out.reconstruction.detach(), masks).mean(), "codes": used}


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


def _ious(reconstruction: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Overlaps float[B] of reconstructions (> 0) and masks in [0, 1] (> 0.5), all [B, 64, 64]."""
    a, b = reconstruction.flatten(1) > 0, masks.flatten(1) > 0.5
    return (a & b).sum(1) / (a | b).sum(1).clamp(min=1)


@torch.no_grad()
def measure_mask_codec(
    codec: MaskCodec, data: MaskSet, *, shifted: MaskSet | None = None
) -> dict[str, Any]:
    """Measure how well a codec rebuilds masks and how hard its codewords are to predict.

    Args:
        data: masks that it was not trained on.
        shifted: the same objects cut out by boxes that are moved by a pixel; needed for `stable`.

    Returns:
        For "all" and each label that occurs: `num`; `iou` and `iou_p10` (mean and lowest tenth, at
        64x64); `perplexity` (2 to the entropy in bits of one codeword) and `perplexity_by_cell`
        (the same within each of the sixteen places, entropies averaged); `num_live` codewords in
        use; and with `shifted`, `stable`, the share of codewords that a moved box leaves equal.
    """
    codes, ious = _encode_all(codec, data)
    moved = _encode_all(codec, shifted)[0] if shifted is not None else None
    groups = {"all": np.ones(len(data), bool)}
    groups |= {name: data.labels == i for i, name in enumerate(MASK_LABELS)}
    report = {}
    for name, rows in groups.items():
        if not rows.any():
            continue
        chosen = codes[rows]
        cells = [_entropy_bits(chosen[:, c]) for c in range(SEG_PER_MASK)]
        figures: dict[str, Any] = {
            "num": int(rows.sum()),
            "iou": float(ious[rows].mean()),
            "iou_p10": float(np.quantile(ious[rows], 0.1)),
            "perplexity": float(2 ** _entropy_bits(chosen)),
            "perplexity_by_cell": float(2 ** np.mean(cells)),
            "num_live": len(np.unique(chosen)),
        }
        if moved is not None:
            figures["stable"] = float((chosen == moved[rows]).mean())
        report[name] = {k: round(v, 4) for k, v in figures.items()}
    return report


def _encode_all(codec: MaskCodec, data: MaskSet) -> tuple[np.ndarray, np.ndarray]:
    """Codewords int64[N, 16] and overlaps float[N] of a whole set."""
    codes, ious = [], []
    for start in range(0, len(data), _CHUNK):
        batch = torch.from_numpy(data.masks[start : start + _CHUNK]).float() / 255
        found = codec.encode(batch)
        codes.append(found.numpy())
        ious.append(_ious(codec.decode(found), batch).numpy())
    return np.concatenate(codes), np.concatenate(ious)


def _entropy_bits(values: np.ndarray) -> float:
    share = np.unique(values, return_counts=True)[1] / values.size
    return float(-(share * np.log2(share)).sum())


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
