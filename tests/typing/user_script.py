"""A script as a user writes it; `test_typing_user_script.py` checks its types, nothing runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paligemma import (
    AnswerOptions,
    Detection,
    Detections,
    EncodedImage,
    PaliGemma,
    PaliGemmaError,
    PaliGemmaModel,
    TextAnswer,
    load_model,
)


def labels_of(found: Detections) -> list[str | None]:
    best: Detections = found.filter(score=0.3)[:5]
    first: Detection = best[0]
    print(first.box_xyxy_px, first.score, len(best))
    return [item.label for item in best]


def main(folder: Path) -> None:
    pg = PaliGemma.from_pretrained("tiny", mode="exact", device="cpu", image_size_px=224)
    answer: TextAnswer = pg.answer("desk.png", "what color is the star?", max_new_tokens=8)
    print(answer.text, answer.score)
    found: Detections = pg.detect("desk.png", ["star", "heart"], threshold=0.3, constrain=True)
    print(labels_of(found), found.to_coco(), found.to_yolo())
    found.draw().save(folder / "found.png")
    encoded: EncodedImage = pg.encode_image(np.zeros((8, 8, 3), np.uint8))
    for one in pg.generate_batch(encoded, ["ocr", "caption en"], temperature=0.7, seed=1):
        print(one.text)
    for piece in pg.stream(encoded, "caption en", max_new_tokens=4):
        print(piece.upper())
    either: TextAnswer | Detections = pg.ask(encoded, "detect star", max_overlap=0.5)
    if isinstance(either, Detections):
        print(labels_of(either))
    print(AnswerOptions(num_beams=2, length_penalty=0.5).num_beams)
    try:
        model: PaliGemmaModel = load_model("tiny", dtype="float32")
        print(model.config.text.width)
    except PaliGemmaError as error:
        print(error)
