"""AI2D: questions about diagrams, some of which ask for letters painted over their labels.

Source: the builder ai2d in big_vision/datasets.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from paligemma.example import Example
from paligemma.scenes.assets import font
from paligemma.tasks.answers.files import option_of
from paligemma.tasks.reading.examples import SourceRow, example_of
from paligemma.tasks.reading.file_rows import FileRow, keyed_rows, read_object
from paligemma.tasks.reading.files import find_file, read_lines
from paligemma.tasks.reading.pictures import FilePicture, picture_in
from paligemma.tasks.reading.prefixes import choices_prefix

AI2D = "allenai.org/data/diagrams (ai2d-all.zip, ai2d_test_ids.csv)"
# The released builder takes DM Sans from the user's disk; ours comes with the package.
FONT_NAME = "DejaVuSans"
_LARGEST_FONT_PX = 100

Corner = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class PaintedLabel:
    """A white box with a letter in it.

    Attributes:
        corners_xy: left upper and right lower corner, in pixels.
    """

    corners_xy: tuple[Corner, Corner]
    text: str


@dataclass(frozen=True, kw_only=True)
class RelabelledPicture:
    """A picture whose labels are painted over."""

    picture: FilePicture
    labels: tuple[PaintedLabel, ...]

    def read(self, max_pixels: int) -> np.ndarray:
        """Decode and paint to uint8[H, W, 3], upright.

        Raises:
            ImageError: unreadable, or larger than the bound.
        """
        return paint_labels(self.picture.read(max_pixels), self.labels)


def paint_labels(image: np.ndarray, labels: tuple[PaintedLabel, ...]) -> np.ndarray:
    """Paint white boxes with black text from their upper edge, centred along x: uint8[H, W, 3]."""
    from PIL import Image, ImageDraw

    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    for label in labels:
        (x0, y0), (x1, y1) = label.corners_xy
        draw.rectangle((x0, y0, x1, y1), fill="white")
        size_px, width = _fitting(label.text, x1 - x0, y1 - y0)
        place = (x0 + (x1 - x0 - width) // 2, y0)
        draw.text(place, label.text, fill="black", font=font(FONT_NAME, size_px))
    return np.asarray(canvas)


def read_ai2d(data: Path, split: str) -> Iterator[Example]:
    """Read AI2D: one example a question with its options; files in the order of their names."""
    root = find_file(data, "ai2d", "questions", source=AI2D)
    root = root if root.name == "ai2d" else data
    questions = find_file(root, "questions", source=AI2D)
    annotations = find_file(root, "annotations", source=AI2D)
    images = find_file(root, "images", source=AI2D)
    listed = find_file(data, "ai2d_test_ids.csv", "ai2d/ai2d_test_ids.csv", source=AI2D)
    test_ids = {line.decode("utf-8", "replace") for _, line in read_lines(listed)}
    for path in sorted(questions.glob("*.json")):
        if (path.name.split(".")[0] in test_ids) == (split == "test"):
            yield from _examples(path, annotations / path.name, images)


def ai2d_examples(rows: Iterator[SourceRow], data: Path, split: str) -> Iterator[Example]:
    """Make the examples of a copy, whose pictures show the letters already."""
    for row, picture in rows:
        options = row.texts("answerTexts")
        yield example_of(
            str(row.number),
            choices_prefix(row.text("question"), options),
            picture=picture,
            answers=option_of(row, "correctAnswer", options),
        )


def _examples(path: Path, annotation: Path, images: Path) -> Iterator[Example]:
    table = read_object(path)
    picture = picture_in(images, table.text("imageName"))
    labels: tuple[PaintedLabel, ...] | None = None
    for question, row in keyed_rows(table.value("questions", dict), path):
        options = row.texts("answerTexts")
        asks_letters = row.value("abcLabel", bool)
        if asks_letters and labels is None:
            texts = read_object(annotation).value("text", dict)
            labels = tuple(_label(label) for _, label in keyed_rows(texts, annotation))
        relabelled = RelabelledPicture(picture=picture, labels=labels or ())
        yield example_of(
            row.text("questionId"),
            choices_prefix(question, options),
            picture=relabelled if asks_letters else picture,
            answers=option_of(row, "correctAnswer", options),
            slices={"labels": "letters" if asks_letters else "as drawn"},
        )


def _label(row: FileRow) -> PaintedLabel:
    rectangle = row.values("rectangle", list)
    corners = [
        FileRow({"rectangle": one}, row.where).values("rectangle", float) for one in rectangle
    ]
    if len(corners) != 2 or any(len(one) != 2 for one in corners):
        raise row.error(f"rectangle must be two corners (x, y), got {rectangle}")
    (x0, y0), (x1, y1) = corners
    if x1 < x0 or y1 < y0:
        raise row.error(f"rectangle must go from left upper to right lower, got {corners}")
    return PaintedLabel(corners_xy=((x0, y0), (x1, y1)), text=row.text("replacementText"))


@lru_cache(maxsize=4096)
def _fitting(text: str, width: float, height: float) -> tuple[int, float]:
    """Find the largest size in pixels at which the text fits, at least 1, and its width."""
    for size_px in range(_LARGEST_FONT_PX, 0, -1):
        _, _, right, lower = font(FONT_NAME, size_px).getbbox(text)
        if right <= width and lower <= height:
            break
    return size_px, right
