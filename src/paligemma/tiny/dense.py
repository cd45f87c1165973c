"""First auxiliary loss of the embedded model: every patch predicts what it shows.

The original has no such loss, because its tower comes pre-trained from SigLIP. A tower that starts
from random weights learns locations far sooner with a loss on every patch. The head is dropped
from the saved model.

Axes: B pictures, I patches of a picture in raster order, D width of the tower.
"""

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from paligemma.scenes import COLORS, LABELS, THINGS, Scene

# Labels that a patch can have.
ALL_LABELS: tuple[str, ...] = (*LABELS, *THINGS)
CHARS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
MAX_CHARS = 6
# A patch shows the object that covers most of it, if that is more than this share of the patch.
_MIN_SHARE = 0.12
BOX_UNIT_PX = 32.0
# Stands for a target that does not apply.
NO_TARGET = -1


@dataclass(frozen=True, kw_only=True)
class PatchTargets:
    """Targets of each patch; NO_TARGET where a target does not apply.

    Attributes:
        owner: int64[I], index of the object that the patch shows.
        label: int64[I], 0 for the background, k for ALL_LABELS[k - 1].
        color: int64[I], index into COLORS; a thing has none.
        value: int64[I], value of a handwritten digit.
        chars: int64[I, 2], character left and right of the patch centre, index into CHARS.
        order: int64[I, 2], place of that character in its word, MAX_CHARS where there is none.
        box: float32[I, 4], top, left, bottom and right edge of the object's box from the field's
            upper left corner, in units of BOX_UNIT_PX. Targets relative to the patch would cost the
            tower the place of a patch, which the decoder needs.
    """

    owner: np.ndarray
    label: np.ndarray
    color: np.ndarray
    value: np.ndarray
    chars: np.ndarray
    order: np.ndarray
    box: np.ndarray


def patch_targets(scene: Scene, patch_px: int, corner: tuple[int, int] = (0, 0)) -> PatchTargets:
    """Compute the targets of every patch of a square scene.

    Args:
        corner: (row, column) of the scene's first patch in the field.
    """
    grid = scene.image.shape[0] // patch_px
    cut = scene.object_map.reshape(grid, patch_px, grid, patch_px)
    blocks = cut.transpose(0, 2, 1, 3).reshape(grid * grid, -1)
    counts = np.stack([(blocks == k).sum(1) for k in range(1, len(scene.objects) + 1)], axis=1)
    owner = np.where(counts.max(1) > _MIN_SHARE * patch_px**2, counts.argmax(1), -1)

    names, hues = ALL_LABELS, ["", *COLORS]
    # The last row of each table stands for "no object", which has the index -1.
    label = np.array([names.index(o.label) + 1 for o in scene.objects] + [0])[owner]
    color = np.array([hues.index(o.color) - 1 for o in scene.objects] + [-1])[owner]
    value = np.array([int(o.text) if o.label == "digit" else -1 for o in scene.objects] + [-1])[
        owner
    ]

    size = scene.image.shape[0]
    boxes = np.array([o.box_yxyx for o in scene.objects] + [(0, 0, 0, 0)])[owner] * size
    box = (boxes + np.tile(corner, 2) * patch_px) / BOX_UNIT_PX

    centre = (np.arange(grid) + 0.5) * patch_px
    chars, order = _char_targets(scene, centre, patch_px)
    order[label == 0] = -1
    return PatchTargets(
        owner=owner,
        label=label.astype(np.int64),
        color=color.astype(np.int64),
        value=value.astype(np.int64),
        chars=chars,
        order=order,
        box=box.astype(np.float32),
    )


def _char_targets(scene: Scene, centre: np.ndarray, patch_px: int) -> tuple[np.ndarray, np.ndarray]:
    grid = len(centre)
    chars = np.full((grid, grid, 2), -1, dtype=np.int64)
    order = np.full((grid, grid, 2), MAX_CHARS, dtype=np.int64)
    for obj in scene.objects:
        for place, (char, top, left, bottom, right) in enumerate(obj.char_boxes[:MAX_CHARS]):
            # Rows of patches that hold most of the glyph: it spans their centre or fits inside.
            rows = np.abs(centre - (top + bottom) / 2) <= max((bottom - top) / 2, patch_px / 2)
            for side, shift in enumerate((-patch_px / 4, patch_px / 4)):
                columns = (centre + shift >= left - 1) & (centre + shift < right + 1)
                spot = np.ix_(rows, columns, np.array([side]))
                chars[spot] = CHARS.index(char)
                order[spot] = place
    return chars.reshape(-1, 2), order.reshape(-1, 2)


class PatchHeads(nn.Module):
    """One linear layer on the tower's patch features that predicts all of `PatchTargets`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = {
            "label": len(ALL_LABELS) + 1,
            "color": len(COLORS),
            "value": 10,
            "char_left": len(CHARS),
            "char_right": len(CHARS),
            "order_left": MAX_CHARS + 1,
            "order_right": MAX_CHARS + 1,
            "box": 4,
        }
        self.proj = nn.Linear(width, sum(self.sizes.values()))
        nn.init.normal_(self.proj.weight, std=0.02)
        nn.init.zeros_(self.proj.bias)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Map features float[B, I, D] to float[B, I, size] of each target by name."""
        parts = self.proj(features).split(list(self.sizes.values()), dim=-1)
        return dict(zip(self.sizes, parts, strict=True))


def patch_losses(answers: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Compute the mean loss of each target over the patches that have it: float32[] by name.

    Args:
        targets: fields of `PatchTargets`, each stacked over the batch.
    """
    losses = {
        name: masked_cross_entropy(answers[name], targets[name])
        for name in ("label", "color", "value")
    }
    for side, name in enumerate(("left", "right")):
        losses[f"char_{name}"] = masked_cross_entropy(
            answers[f"char_{name}"], targets["chars"][..., side]
        )
        losses[f"order_{name}"] = masked_cross_entropy(
            answers[f"order_{name}"], targets["order"][..., side]
        )
    shown = targets["label"] > 0
    losses["box"] = F.smooth_l1_loss(
        answers["box"][shown], targets["box"][shown], beta=0.1, reduction="sum"
    ) / shown.sum().clamp(min=1)
    return losses


def masked_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of float[..., K] and int64[...] without NO_TARGET."""
    total = F.cross_entropy(
        logits.flatten(0, -2), target.flatten(), ignore_index=NO_TARGET, reduction="sum"
    )
    return total / (target != NO_TARGET).sum().clamp(min=1)
