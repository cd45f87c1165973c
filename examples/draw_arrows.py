"""Draw pictures with a class that the embedded model has never seen, as rows for `paligemma train`.

Writes train.jsonl and valid.jsonl beside a folder of pictures: drawn scenes with one or two arrows.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from paligemma.outputs.boxes import format_detections
from paligemma.scenes import COLORS, SceneOptions, draw_scene

LABEL = "arrow"
SIZE_PX = 224
_SCALE = 4


def arrow(size_px: int, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """An arrow, turned at random: its colours and its opacity."""
    side = size_px * _SCALE
    alpha = Image.new("L", (side, side), 0)
    corners = ((0, 38), (52, 38), (52, 16), (100, 50), (52, 84), (52, 62), (0, 62))
    ImageDraw.Draw(alpha).polygon([(x * side / 100, y * side / 100) for x, y in corners], fill=255)
    alpha = alpha.rotate(float(rng.uniform(0, 360)), resample=Image.Resampling.BICUBIC)
    alpha = alpha.resize((size_px, size_px), Image.Resampling.LANCZOS)
    color = np.array(COLORS[list(COLORS)[int(rng.integers(len(COLORS)))]])
    color = (color + rng.uniform(-12, 12, 3)).clip(0, 255).astype(np.uint8)
    return Image.new("RGB", (size_px, size_px), tuple(int(c) for c in color)), alpha


def draw_row(seed: int) -> tuple[Image.Image, list[tuple[float, float, float, float]]]:
    """A picture, and the normalised boxes (ymin, xmin, ymax, xmax) of its arrows."""
    rng = np.random.default_rng((seed, 7))
    scene = draw_scene(seed, SceneOptions(size_px=SIZE_PX, split="train"))
    image = Image.fromarray(scene.image)
    taken = [np.array(one.box_yxyx) * SIZE_PX for one in scene.objects]
    boxes = []
    for _ in range(int(rng.integers(1, 3))):
        for _attempt in range(200):
            size = round(math.exp(rng.uniform(math.log(30), math.log(64))))
            y, x = (int(rng.integers(2, SIZE_PX - size - 2)) for _ in range(2))
            box = np.array([y, x, y + size, x + size])
            if all(_apart(box, other) for other in taken):
                paint, alpha = arrow(size, rng)
                image.paste(paint, (x, y), alpha)
                rows, columns = np.nonzero(np.asarray(alpha) >= 128)
                tight = (
                    y + rows.min(),
                    x + columns.min(),
                    y + rows.max() + 1,
                    x + columns.max() + 1,
                )
                boxes.append(tuple(float(edge) / SIZE_PX for edge in tight))
                taken.append(box)
                break
    return image, boxes


def _apart(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a[:2] >= b[2:]).any() or (b[:2] >= a[2:]).any())


def write_rows(folder: Path, split: str, number: int, first_seed: int) -> None:
    """Write a split: `number` rows that all ask for arrows."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines, seed = [], first_seed
    while len(lines) < number:
        image, boxes = draw_row(seed)
        seed += 1
        if not boxes:
            continue
        name = f"{split}_{len(lines):04d}.png"
        image.save(folder / "images" / name)
        suffix = format_detections(sorted(boxes), [LABEL] * len(boxes))
        row = {"image": f"images/{name}", "prefix": f"detect {LABEL}", "suffix": suffix}
        lines.append(json.dumps(row) + "\n")
    (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--valid", type=int, default=60)
    options = parser.parse_args()
    write_rows(options.folder, "train", options.rows, 40_000_000)
    write_rows(options.folder, "valid", options.valid, 41_000_000)
    print(f"wrote {options.rows} and {options.valid} rows to {options.folder}")


if __name__ == "__main__":
    main()
