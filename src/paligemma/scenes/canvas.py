"""A picture in the making: it places patches and records which object is visible where."""

import numpy as np

from paligemma.scenes.objects import Patch
from paligemma.scenes.scene import Scene, SceneObject

# Share of each object that later objects must leave visible. A digit that loses a stroke may look
# like another digit, so it may lose almost nothing.
MIN_VISIBLE: dict[str, float] = {"digit": 0.97}
MIN_VISIBLE_DEFAULT = 0.85


class Canvas:
    """A background that patches are pasted on, later ones on top."""

    def __init__(self, background: np.ndarray) -> None:
        """Start from a background uint8[H, W, 3], which is copied."""
        self.image = background.copy()
        self.height, self.width = background.shape[0], background.shape[1]
        self.object_map = np.zeros((self.height, self.width), dtype=np.uint8)
        # Writing stays uncovered entirely.
        self._is_writing = np.zeros((self.height, self.width), dtype=bool)
        self._placed: list[tuple[Patch, int, int]] = []
        self._area_full: list[int] = [0]
        self._area_visible: list[int] = [0]

    def __len__(self) -> int:
        return len(self._placed)

    def fits(self, patch: Patch, y0: int, x0: int) -> bool:
        """Whether a patch at (y0, x0) lies inside and leaves earlier objects visible enough."""
        height, width = patch.hw
        if y0 < 0 or x0 < 0:
            return False
        if y0 + height > self.height or x0 + width > self.width:
            return False
        window = (slice(y0, y0 + height), slice(x0, x0 + width))
        under = self.object_map[window]
        if not under.any():
            return True
        covers = patch.alpha >= 64
        if (self._is_writing[window] & covers).any():
            return False
        lost = np.bincount(under[covers], minlength=len(self._placed) + 1)
        for k in np.flatnonzero(lost[1:]) + 1:
            least = MIN_VISIBLE.get(self._placed[k - 1][0].label, MIN_VISIBLE_DEFAULT)
            if self._area_visible[k] - lost[k] < least * self._area_full[k]:
                return False
        return True

    def paste(self, patch: Patch, y0: int, x0: int) -> None:
        """Paint the patch with its upper left corner at (y0, x0), which must be inside."""
        height, width = patch.hw
        window = (slice(y0, y0 + height), slice(x0, x0 + width))
        alpha = patch.alpha[:, :, None].astype(np.uint16)
        below = self.image[window] * (255 - alpha)
        self.image[window] = (below + patch.paint * alpha + 127) // 255

        under = self.object_map[window]
        covers = patch.alpha >= 64
        for k, lost in enumerate(np.bincount(under[covers], minlength=len(self._area_full))):
            self._area_visible[k] -= int(lost)
        # A halo hides what is below it but belongs to no object.
        under[covers] = 0
        self._placed.append((patch, y0, x0))
        under[patch.mask] = len(self._placed)
        area = int(patch.mask.sum())
        self._area_full.append(area)
        self._area_visible.append(area)
        if patch.char_boxes:
            top = min(box[1] for box in patch.char_boxes)
            left = min(box[2] for box in patch.char_boxes)
            bottom = max(box[3] for box in patch.char_boxes)
            right = max(box[4] for box in patch.char_boxes)
            rows = slice(max(0, y0 + int(top) - 1), y0 + int(bottom) + 2)
            self._is_writing[rows, max(0, x0 + int(left) - 1) : x0 + int(right) + 2] = True

    def place(self, patch: Patch, rng: np.random.Generator, *, num_tries: int = 24) -> bool:
        """Paste the patch at a random position that fits; False if none was found."""
        free_y = self.height - patch.hw[0]
        free_x = self.width - patch.hw[1]
        if free_y < 0 or free_x < 0:
            return False
        for _ in range(num_tries):
            y0, x0 = int(rng.integers(free_y + 1)), int(rng.integers(free_x + 1))
            if self.fits(patch, y0, x0):
                self.paste(patch, y0, x0)
                return True
        return False

    def scene(self, seed: int) -> Scene:
        """Return the finished picture, with the box of every visible mask."""
        height, width = self.height, self.width
        objects = []
        for k, (patch, y0, x0) in enumerate(self._placed, start=1):
            window = self.object_map[y0 : y0 + patch.hw[0], x0 : x0 + patch.hw[1]] == k
            ys, xs = np.flatnonzero(window.any(axis=1)), np.flatnonzero(window.any(axis=0))
            box = (
                (y0 + int(ys[0])) / height,
                (x0 + int(xs[0])) / width,
                (y0 + int(ys[-1]) + 1) / height,
                (x0 + int(xs[-1]) + 1) / width,
            )
            chars = tuple((c, a + y0, b + x0, d + y0, e + x0) for c, a, b, d, e in patch.char_boxes)
            objects.append(
                SceneObject(
                    label=patch.label,
                    color=patch.color,
                    text=patch.text,
                    box_yxyx=box,
                    char_boxes=chars,
                    style=patch.style,
                )
            )
        return Scene(
            image=self.image, objects=tuple(objects), object_map=self.object_map, seed=seed
        )
