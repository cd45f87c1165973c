"""Training of the mask codec on masks of drawn scenes, and its measurement.

Recipe of SwinTransformer/AiT `vae/`: squared error on masks scaled to +-1 plus 0.25 times the
commitment loss, straight-through gradient, a codebook moved by running averages. The codec is
narrower than the original, because the masks are simpler; dead codewords are reseeded early on.

Axes: N masks, B masks of a batch.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from paligemma.errors import ConfigError
from paligemma.outputs.codec_file import require_codec_suffix
from paligemma.outputs.masks import MASK_SIZE_PX, crop_mask
from paligemma.outputs.vqvae import MaskCodec, MaskCodecConfig, load_mask_codec
from paligemma.scenes import LABELS, SceneOptions, draw_scene
from paligemma.train.schedule import ScheduleConfig, learning_rate_schedule
from paligemma.vocab import SEG_PER_MASK
from paligemma.whole_file import require_writable, write_json

logger = logging.getLogger(__name__)

# Thinner boxes are left out, as AiT leaves them out: their masks have no shape.
_MIN_SIDE_PX = 2
# torch's generators take no larger seed.
_MAX_SEED = 2**64 - 1
_CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class MaskCodecTraining:
    """How a codec is trained.

    Attributes:
        num_masks: number of masks that are drawn once and then shown repeatedly, 1..1_000_000.
        canvas_px: sides of the square scenes from which masks are cut, in turn.
        learning_rate: peak learning rate; the warm-up is linear and the decay a cosine.
        decay: share of the old codebook average that a step keeps, 0..1.
        reseed_below: uses a batch below which a codeword is moved onto a latent; 0 moves none.
        reseed_share: share of the run during which codewords are moved, 0..1.

    Raises:
        ConfigError: a number is out of bounds.
    """

    steps: int = 3600
    batch_size: int = 32
    num_masks: int = 16_000
    canvas_px: tuple[int, ...] = (112, 224)
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
    report_every: int = 200
    seed: int = 0
    first_scene: int = 5_000_000

    def __post_init__(self) -> None:
        rules = {
            "steps": (1, self.steps, 10_000_000),
            "batch_size": (1, self.batch_size, 65_536),
            "num_masks": (1, self.num_masks, 1_000_000),
            "warmup_steps": (0, self.warmup_steps, self.steps - 1),
            "report_every": (1, self.report_every, 10_000_000),
            "seed": (0, self.seed, _MAX_SEED),
        }
        for name, (low, value, high) in rules.items():
            if not low <= value <= high:
                raise ConfigError(
                    f"{name} of a codec training must be {low}..{high}, got {value}; change it"
                )
        if not self.canvas_px:
            raise ConfigError("a codec training needs at least one canvas_px, got none; name one")


@dataclass(frozen=True, kw_only=True)
class MaskCodecProgress:
    """One report of a training, averaged over the steps since the last report.

    Attributes:
        loss: reconstruction loss plus weighted commitment loss.
        iou: mean overlap of masks and reconstructions, both at 64x64, 0..1.
        num_live: number of codewords in use.
    """

    step: int
    loss: float
    iou: float
    num_live: int


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskSet:
    """Masks cut out by their boxes, as the codec reads them.

    Attributes:
        masks: uint8[N, 64, 64], 255 is foreground.
        labels: int64[N], indices into `paligemma.scenes.LABELS`.
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
    first_scene: int = 0,
    box_shift_px: int = 0,
) -> MaskSet:
    """Cut the masks of drawn objects out by their boxes, as `mask_to_codes` does.

    Args:
        split: handwriting that is shown, "train" or "heldout".
        box_shift_px: largest shift of each edge of a box in pixels, drawn from the scene's seed.
    """
    masks = np.empty((num_masks, MASK_SIZE_PX, MASK_SIZE_PX), np.uint8)
    labels = np.empty(num_masks, np.int64)
    seed, done = first_scene, 0
    while done < num_masks:
        size_px = canvas_px[seed % len(canvas_px)]
        scene = draw_scene(seed, SceneOptions(size_px=size_px, split=split))
        rng = np.random.default_rng(seed)
        for i, item in enumerate(scene.objects[: num_masks - done]):
            edges = np.round(np.array(item.box_yxyx) * size_px)
            edges += rng.integers(-box_shift_px, box_shift_px + 1, size=4)
            edges = edges.clip(0, size_px)
            if min(edges[2] - edges[0], edges[3] - edges[1]) < _MIN_SIDE_PX:
                continue
            crop = crop_mask(scene.mask(i), edges / size_px)
            masks[done] = np.round(crop * 255)
            labels[done] = LABELS.index(item.label)
            done += 1
        seed += 1
    return MaskSet(masks=masks, labels=labels)


def train_mask_codec(
    options: MaskCodecTraining,
    *,
    masks: MaskSet | None = None,
    on_step: Callable[[MaskCodecProgress], None] | None = None,
) -> MaskCodec:
    """Train a codec; equal options, machine and thread count give an equal codec.

    Args:
        masks: training masks; drawn by the options if None.

    Returns:
        The codec in evaluation mode, float32.
    """
    data = masks or collect_masks(
        options.num_masks, canvas_px=options.canvas_px, first_scene=options.first_scene
    )
    with torch.random.fork_rng(devices=[]):
        # The weights and `update_codebook` draw from torch's global generator.
        torch.manual_seed(options.seed)
        return _train(options, torch.from_numpy(data.masks), on_step)


def _train(
    options: MaskCodecTraining,
    masks: torch.Tensor,
    on_step: Callable[[MaskCodecProgress], None] | None,
) -> MaskCodec:
    """Run the training loop over masks uint8[N, 64, 64]."""
    codec = MaskCodec(
        MaskCodecConfig(
            channels=options.channels,
            hidden=options.hidden,
            code_dim=options.code_dim,
            num_codes=options.num_codes,
        )
    ).train()
    # Twice as fast on a CPU, with equal values.
    codec.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(
        codec.parameters(), lr=options.learning_rate, weight_decay=0.0, fused=True
    )
    schedule = learning_rate_schedule(
        ScheduleConfig(decay_type="cosine", warmup_steps=options.warmup_steps),
        total_steps=options.steps,
    )
    losses: list[float] = []
    ious: list[float] = []
    used = torch.zeros(options.num_codes, dtype=torch.bool)
    for step in range(options.steps):
        batch = masks[torch.randint(len(masks), (options.batch_size,))].float() / 255
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * schedule(step)
        out = codec(batch)
        loss = F.mse_loss(out.reconstruction, 2 * batch - 1)
        loss = loss + options.commitment * out.commitment_loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        is_young = step < options.reseed_share * options.steps
        codec.update_codebook(
            out.latents,
            out.codes,
            decay=options.decay,
            reseed_below=options.reseed_below if is_young else 0.0,
        )
        losses.append(loss.item())
        ious.append(float(_ious(out.reconstruction.detach(), batch).mean()))
        used[out.codes.flatten()] = True
        if (step + 1) % options.report_every == 0 or step + 1 == options.steps:
            progress = MaskCodecProgress(
                step=step + 1,
                loss=float(np.mean(losses)),
                iou=float(np.mean(ious)),
                num_live=int(used.sum()),
            )
            logger.info(
                "step %d loss %.4f IoU %.4f codes %d",
                *(progress.step, progress.loss, progress.iou, progress.num_live),
            )
            if on_step:
                on_step(progress)
            losses, ious = [], []
            used.zero_()
    codec.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return codec.eval()


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
    groups |= {name: data.labels == i for i, name in enumerate(LABELS)}
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


def train_codec_file(
    path: str | Path,
    options: MaskCodecTraining,
    *,
    command: str = "",
    num_heldout: int = 2000,
    on_step: Callable[[MaskCodecProgress], None] | None = None,
) -> dict[str, Any]:
    """Train a codec, measure it on held-out masks, and write it with its record.

    Args:
        path: file of the codec, ending in `.safetensors` or `.npz`; stored as float16, with the
            record beside it as `.json`.

    Returns:
        The record: command, options, wall time in seconds, curve and figures.

    Raises:
        CheckpointError: the path has another suffix.
        ConfigError: the folder cannot be made or written.
    """
    path = Path(path)
    # Drawing and training take minutes; a path that cannot be written is refused before them.
    require_codec_suffix(path)
    require_writable(path.parent)
    curve: list[dict[str, Any]] = []

    def record_step(progress: MaskCodecProgress) -> None:
        curve.append({k: round(v, 5) for k, v in asdict(progress).items()})
        if on_step:
            on_step(progress)

    began = time.monotonic()
    masks = collect_masks(
        options.num_masks, canvas_px=options.canvas_px, first_scene=options.first_scene
    )
    drawn = time.monotonic()
    codec = train_mask_codec(options, masks=masks, on_step=record_step)
    ended = time.monotonic()
    codec.save(path, dtype="float16")

    # Measured as stored: rounding to float16 moves codewords.
    heldout, shifted = (
        collect_masks(num_heldout, split="heldout", canvas_px=options.canvas_px, box_shift_px=px)
        for px in (0, 1)
    )
    record = {
        "command": command,
        "options": asdict(options),
        "drawing_s": round(drawn - began, 1),
        "training_s": round(ended - drawn, 1),
        "threads": torch.get_num_threads(),
        "num_parameters": sum(p.numel() for p in codec.parameters()),
        "heldout": measure_mask_codec(load_mask_codec(path), heldout, shifted=shifted),
        "curve": curve,
    }
    write_json(path.with_suffix(".json"), record)
    return record
