"""A model whose layers are of another type is asked as any other."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from opaque_layers import make_opaque
from tiny_folder import DESK, EMBEDDED

from paligemma.pipeline.paligemma import PaliGemma


@pytest.mark.parametrize("mode", ["exact", "mixed", "bf16"])
def test_layers_of_another_type_give_the_same_answers(mode: str) -> None:
    pg = PaliGemma.from_pretrained(EMBEDDED, mode=mode)
    answers = answers_of(pg)
    pg.model = deepcopy(pg.model)
    assert make_opaque(pg.model) > 50
    assert answers_of(pg) == answers


def answers_of(pg: PaliGemma) -> list[Any]:
    desk = pg.encode_image(DESK)
    found = pg.detect(desk, ["star", "heart"])
    assert len(found) > 0
    return [
        pg.answer(desk, "what color is the star?").text,
        pg.answer(desk, "what color is the star?", num_beams=2).text,
        [(item.label, item.box_yxyx, item.score) for item in found],
        list(pg.stream(desk, "caption en", max_new_tokens=4)),
    ]
