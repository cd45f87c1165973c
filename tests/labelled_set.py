"""A small labelled set, written in each format that is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from task_files import write_json, write_pixels, write_text

CLASSES = ("cup", "tea pot")
SIZE_WH = (200, 120)

Ring = list[tuple[float, float]]


@dataclass(frozen=True)
class Marked:
    """One object: class and outline in pixels."""

    label: str
    ring: Ring

    @property
    def xywh(self) -> list[float]:
        xs, ys = zip(*self.ring, strict=True)
        return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def drawn_set(num: int, seed: int = 0) -> list[list[Marked]]:
    """Objects of some pictures, the second of which has none."""
    rng = np.random.default_rng(seed)
    found = []
    for k in range(num):
        marked = []
        for _ in range(0 if k == 1 else int(rng.integers(1, 4))):
            x, y = rng.integers(0, 120), rng.integers(0, 60)
            w, h = rng.integers(24, 70), rng.integers(24, 50)
            ring = [(x, y), (x + w, y + 5), (x + w - 6, y + h), (x + 4, y + h - 8)]
            label = CLASSES[int(rng.integers(2))]
            marked.append(Marked(label, [(float(a), float(b)) for a, b in ring]))
        found.append(marked)
    return found


def picture(seed: int) -> np.ndarray:
    rng = np.random.default_rng((77, seed))
    return rng.integers(0, 256, (SIZE_WH[1], SIZE_WH[0], 3), np.uint8)


def write_coco(root: Path, split: str, pictures: list[list[Marked]], *, masks: bool = True) -> Path:
    """Roboflow's layout, with its class of the group in front."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for k, marked in enumerate(pictures):
        name = f"{split}{k}.png"
        write_pixels(root / split / name, picture(len(split) * 100 + k))
        images.append({"id": k, "file_name": name, "width": SIZE_WH[0], "height": SIZE_WH[1]})
        for one in marked:
            outline = [[n for corner in one.ring for n in corner]] if masks else []
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": k,
                    "category_id": 1 + CLASSES.index(one.label),
                    "bbox": one.xywh,
                    "area": 1.0,
                    "iscrowd": 0,
                    "segmentation": outline,
                }
            )
    group = {"id": 0, "name": "things", "supercategory": "none"}
    categories = [
        {"id": k, "name": name, "supercategory": "things"} for k, name in enumerate(CLASSES, 1)
    ]
    return write_json(
        root / split / "_annotations.coco.json",
        {
            "info": {},
            "images": images,
            "categories": [group, *categories],
            "annotations": annotations,
        },
    )


def write_yolo(root: Path, split: str, pictures: list[list[Marked]], *, masks: bool = True) -> Path:
    """The layout that Roboflow and ultralytics share."""
    width, height = SIZE_WH
    for k, marked in enumerate(pictures):
        write_pixels(root / split / "images" / f"{k}.png", picture(len(split) * 100 + k))
        lines = []
        for one in marked:
            x, y, w, h = one.xywh
            values = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
            if masks:
                values = [n for a, b in one.ring for n in (a / width, b / height)]
            numbers = " ".join(f"{value:.6f}" for value in values)
            lines.append(f"{CLASSES.index(one.label)} {numbers}\n")
        if lines:
            write_text(root / split / "labels" / f"{k}.txt", "".join(lines))
    return write_text(
        root / "data.yaml",
        "train: ../train/images\nval: ../valid/images\n\nnc: 2\n"
        f"names: ['{CLASSES[0]}', \"{CLASSES[1]}\"]  # two\nroboflow:\n  license: CC BY 4.0\n",
    )


def write_voc(root: Path, split: str, pictures: list[list[Marked]], *, masks: bool = True) -> Path:
    """Roboflow's layout: XML beside the pictures."""
    for k, marked in enumerate(pictures):
        write_pixels(root / split / f"{k}.png", picture(len(split) * 100 + k))
        objects = ""
        for one in marked:
            x, y, w, h = one.xywh
            corners = "".join(
                f"<x{i}>{a:g}</x{i}><y{i}>{b:g}</y{i}>" for i, (a, b) in enumerate(one.ring, 1)
            )
            objects += (
                f"<object><name>{one.label}</name><bndbox><xmin>{x:g}</xmin><xmax>{x + w:g}</xmax>"
                f"<ymin>{y:g}</ymin><ymax>{y + h:g}</ymax></bndbox>"
                f"{f'<polygon>{corners}</polygon>' if masks else ''}</object>"
            )
        size = f"<size><width>{SIZE_WH[0]}</width><height>{SIZE_WH[1]}</height></size>"
        write_text(
            root / split / f"{k}.xml",
            f"<annotation><filename>{k}.png</filename>{size}{objects}</annotation>",
        )
    return root


def write_labelme(
    root: Path, split: str, pictures: list[list[Marked]], *, masks: bool = True
) -> Path:
    """JSON beside the pictures."""
    for k, marked in enumerate(pictures):
        write_pixels(root / split / f"{k}.png", picture(len(split) * 100 + k))
        shapes = []
        for one in marked:
            x, y, w, h = one.xywh
            points = [list(corner) for corner in one.ring] if masks else [[x + w, y], [x, y + h]]
            kind = "polygon" if masks else "rectangle"
            shapes.append({"label": one.label, "points": points, "shape_type": kind})
        content = {
            "version": "5.0.1",
            "shapes": shapes,
            "imagePath": f"..\\images\\{k}.png",
            "imageData": None,
            "imageHeight": SIZE_WH[1],
            "imageWidth": SIZE_WH[0],
        }
        write_json(root / split / f"{k}.json", content)
    return root
