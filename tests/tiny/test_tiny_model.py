"""The model in the package answers as its card says, on a few of the pictures that the card counts.

Bounds lie a little below what it reaches on these pictures, so that they hold where rounding
differs; the figures of the card are those of a thousand pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paligemma import PaliGemma
from paligemma.eval.options import EvalOptions
from paligemma.eval.runner import evaluate
from paligemma.tasks.scenes.rows import scenes_task

NUM_PICTURES = 32


@pytest.fixture(scope="module")
def tiny() -> PaliGemma:
    return PaliGemma.from_pretrained("tiny", device="cpu")


def measured(tiny: PaliGemma, folder: Path, **options: Any) -> dict[str, float]:
    """Each figure, in percent."""
    task = scenes_task(limit=NUM_PICTURES, **options)
    run = evaluate(task, tiny, None, "heldout", EvalOptions(), folder, model="tiny")
    return {one.name: 100 * one.value for one in task.score(*run.answered())}


def test_it_finds_tells_and_reads_shapes_digits_and_signs(tiny: PaliGemma, tmp_path: Path) -> None:
    found = measured(tiny, tmp_path)
    assert found["detect_ap50"] > 92
    assert found["detect_ap"] > 82
    assert found["segment_miou"] > 72
    # Masks are worth more than their boxes, painted full.
    assert found["segment_miou"] > found["segment_miou_filled_boxes"] + 9
    assert found["answer_accuracy"] > 90
    assert found["ocr_cer"] < 11
    assert found["caption_exact_match"] > 80
    assert found["caption_exact_match/1 object"] == 100
    assert found["caption_region_exact_match"] > 95


def test_it_finds_things_among_them(tiny: PaliGemma, tmp_path: Path) -> None:
    kinds = ("detect", "segment", "answer")
    found = measured(tiny, tmp_path, kinds=kinds, things="known")
    assert found["detect_ap50/things"] > 73
    assert found["segment_miou/things"] > 62
    assert found["segment_miou/things"] > found["segment_miou_filled_boxes/things"] + 6
    assert found["answer_accuracy"] > 90
