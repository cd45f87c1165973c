"""Small files in official layouts, for tests of the benchmark readers."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_picture(
    path: Path, *, size_wh: tuple[int, int] = (12, 8), color: tuple[int, int, int] = (40, 90, 200)
) -> Path:
    """A picture of one colour; the format follows the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size_wh, color).save(path)
    return path


def write_pixels(path: Path, pixels: np.ndarray, *, orientation: int = 1) -> Path:
    """uint8[H, W, 3] as a picture; choose PNG where the pixels matter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, content: Any) -> Path:
    return write_text(path, json.dumps(content, ensure_ascii=False))


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """One object a line; compressed where the name ends in .gz or .bz2."""
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".bz2":
        data = bz2.compress(data)
    path.write_bytes(data)
    return path


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path
