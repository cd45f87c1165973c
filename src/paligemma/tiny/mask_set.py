"""Masks of drawn objects as the mask codec reads them.

Axes: N masks.
"""

from dataclasses import dataclass

import numpy as np

from paligemma.outputs.masks import MASK_SIZE_PX, crop_mask
from paligemma.scenes import LABELS, SceneOptions, draw_scene

# All things count as one label of masks.
THING = "thing"
MASK_LABELS: tuple[str, ...] = (*LABELS, THING)
# Thinner boxes are left out, as AiT leaves them out: their masks have no shape.
_MIN_SIDE_PX = 2


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
