"""A script as a user of the installed package writes it; mypy --strict checks it, a test runs it.

`assert_type` holds what each call returns: an `Any` that leaks out of the package is an error here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_type

import numpy as np
from PIL import Image

from paligemma import (
    AnswerOptions,
    Detection,
    Detections,
    EncodedImage,
    Frames,
    PaliGemma,
    PaliGemmaConfig,
    PaliGemmaError,
    PaliGemmaModel,
    Processor,
    TextAnswer,
)


def load() -> PaliGemma:
    """A model by its name, with options of loading."""
    model = PaliGemma.from_pretrained("tiny", mode="exact", kv_cache_dtype="float32", device="cpu")
    assert_type(model, PaliGemma)
    assert_type(model.config, PaliGemmaConfig)
    assert_type(model.model, PaliGemmaModel)
    assert_type(model.processor, Processor)
    return model


def ask(model: PaliGemma, picture: Path) -> TextAnswer:
    """Every way of asking for words."""
    answers = (
        model.caption(
            picture, lang="en", style="caption", box_yxyx=(0.1, 0.1, 0.9, 0.9), max_new_tokens=6
        ),
        model.read(picture, max_new_tokens=8),
        model.generate(None, "caption en", max_new_tokens=4),
        model.generate(Frames(picture, picture), "caption en", max_new_tokens=4),
        model.answer(picture, "how many digits are there?", lang="en", max_new_tokens=6),
    )
    for answer in answers:
        assert_type(answer, TextAnswer)
        assert_type(answer.text, str)
        assert_type(answer.score, float | None)
        assert_type(answer.token_logprobs, tuple[float, ...])
    assert_type(answers[0].to_json(), dict[str, Any])
    return answers[-1]


def draw_answers(model: PaliGemma, picture: Path) -> list[str]:
    """Options of decoding, as keywords and as one value."""
    drawn = model.caption(picture, temperature=0.8, top_p=0.9, seed=1, max_new_tokens=6)
    narrow = model.caption(picture, top_k=3, best_of=2, max_new_tokens=6)
    beams = model.caption(picture, num_beams=2, length_penalty=0.5, max_new_tokens=6)
    options = AnswerOptions(temperature=0.7, seed=3)
    assert_type(options.temperature, float | None)
    return [answer.text for answer in (drawn, narrow, beams)]


def detect(model: PaliGemma, picture: Path) -> Detections:
    """Boxes of named things, and what can be done with them."""
    found = model.detect(
        picture,
        ["star", "digit"],
        threshold=0.2,
        max_overlap=0.5,
        constrain=True,
        max_new_tokens=24,
    )
    assert_type(found, Detections)
    assert_type(found.asked_labels, tuple[str, ...])
    for item in found:
        assert_type(item, Detection)
        assert_type(item.label, str | None)
        assert_type(item.score, float | None)
        assert_type(item.box_xyxy_px, tuple[float, float, float, float])
    assert_type(found[:1], Detections)
    assert_type(found[np.array([True] * len(found), bool)], Detections)
    stars: Detections = found[
        found.labels == "star"
    ]  # NumPy types a comparison for equality as Any.
    assert_type(stars.items, tuple[Detection, ...])
    assert_type(found[found.scores >= 0.5], Detections)
    assert_type(found.filter(label="star", score=0.3), Detections)
    assert_type(found.above(0.5).distinct(0.5), Detections)
    if found:
        assert_type(found[0], Detection)
    return found


def export(found: Detections, folder: Path) -> None:
    """Files of other tools, and the picture with its boxes."""
    yolo: str = found.to_yolo()
    coco: list[dict[str, Any]] = found.to_coco(image_id=7)
    (folder / "labels.txt").write_text(yolo)
    (folder / "coco.json").write_text(str(coco))
    drawn: Image.Image = found.draw()
    assert_type(drawn.size, tuple[int, int])
    found.save_png(folder / "found.png")


def segment(model: PaliGemma, picture: Path) -> int:
    """Masks of named things: their foreground in pixels."""
    area_px = 0
    for item in model.segment(picture, "star", max_new_tokens=32):
        if item.region is not None:
            area_px += item.region.area_px
            rings = item.region.to_polygons(tolerance_px=1.0)
            area_px -= sum(len(ring) for ring in rings)
    return area_px


def ask_whatever(model: PaliGemma, picture: Path, prompt: str) -> str:
    """The prompt decides what comes back."""
    answer = model.ask(picture, prompt, threshold=0.2, max_new_tokens=12)
    assert_type(answer, TextAnswer | Detections)
    if isinstance(answer, Detections):
        return ", ".join(item.name for item in answer)
    return answer.text


def batch(model: PaliGemma, pictures: list[str]) -> list[str]:
    """Many pictures, each with its prompt."""
    answers = model.generate_batch(pictures, ["caption en"] * len(pictures), max_new_tokens=6)
    assert_type(answers, list[TextAnswer])
    assert_type(model.caption(pictures, max_new_tokens=6), list[TextAnswer])
    tiled = model.detect(pictures[:1], "star", tile="1x2", tile_overlap=0.1, max_new_tokens=6)
    assert_type(tiled, list[Detections])
    assert_type(model.detect(pictures, "star", max_new_tokens=6), list[Detections])
    for _, found in model.detect_many(pictures, "star", max_new_tokens=6):
        assert_type(found, Detections)
        assert_type(found.image_wh, tuple[int, int])
    return [answer.text for answer in answers]


def stream(model: PaliGemma, picture: Path) -> str:
    """An answer piece by piece."""
    pieces = model.stream(picture, "caption en", max_new_tokens=8)
    assert_type(pieces, Iterator[str])
    return "".join(pieces)


def encode_once(model: PaliGemma, picture: Path) -> list[str]:
    """One picture, many questions."""
    desk = model.encode_image(Image.open(picture))
    assert_type(desk, EncodedImage)
    assert_type(desk.image_wh, tuple[int, int])
    assert_type(desk.ask("detect star", constrain=True, max_new_tokens=8), TextAnswer | Detections)
    first = model.answer(desk, "where is the heart?", max_new_tokens=6)
    rest = model.generate_batch(desk, ["caption en", "ocr"], max_new_tokens=6)
    return [answer.text for answer in (first, *rest)]


def mistakes(model: PaliGemma, picture: Path) -> list[str]:
    """Mistakes that the type checker finds and that the package reports in a sentence.

    An ignored error that is none is an error of its own under --strict.
    """
    reports = []
    try:
        model.answer(picture, "why?", new_tokens=3)  # type: ignore[call-overload]
    except PaliGemmaError as error:
        reports.append(str(error))
    try:
        model.caption(picture, threshold=0.5)  # type: ignore[call-overload]
    except PaliGemmaError as error:
        reports.append(str(error))
    try:
        model.detect(picture, "star", threshold="high")  # type: ignore[call-overload]
    except PaliGemmaError as error:
        reports.append(str(error))
    try:
        PaliGemma.from_pretrained("tiny", dtype="bf16")  # type: ignore[call-arg]
    except PaliGemmaError as error:
        reports.append(str(error))
    return reports


def main(picture: Path, folder: Path) -> dict[str, str]:
    """Everything once; a line for each part."""
    model = load()
    found = detect(model, picture)
    export(found, folder)
    return {
        "answer": ask(model, picture).text,
        "drawn": " | ".join(draw_answers(model, picture)),
        "found": repr(found),
        "area": str(segment(model, picture)),
        "asked": ask_whatever(model, picture, "detect star"),
        "batch": " | ".join(batch(model, [str(picture)] * 2)),
        "stream": stream(model, picture),
        "encoded": " | ".join(encode_once(model, picture)),
        "mistakes": "\n".join(mistakes(model, picture)),
    }


if __name__ == "__main__":
    for name, line in main(Path(sys.argv[1]), Path(sys.argv[2])).items():
        print(f"{name}: {line}")
