"""`PaliGemma.map`: rows of a data set answered by the batch, in order, none lost."""

from __future__ import annotations

import io
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from paligemma.errors import ConfigError
from paligemma.outputs.detections import Detections
from paligemma.outputs.types import TextAnswer
from paligemma.pipeline.engine import Engine
from paligemma.pipeline.paligemma import PaliGemma

DESK = Path(__file__).parents[2] / "examples" / "desk.png"


@pytest.fixture(scope="module")
def pg() -> PaliGemma:
    return PaliGemma.from_pretrained("tiny")


def test_rows_come_back_in_order_with_the_answers_of_the_same_questions_asked_alone(
    pg: PaliGemma,
) -> None:
    desk = np.asarray(Image.open(DESK).convert("RGB"))
    half = np.ascontiguousarray(desk[:, : desk.shape[1] // 2])
    questions = ["what color is the star?", "how many hearts are there?", "is there a star?"]
    rows = [
        {"picture": (desk, half)[k % 2], "question": questions[k % 3], "number": k}
        for k in range(7)
    ]
    found = list(pg.map(rows, "answer en {question}", image="picture", batch_size=3))
    assert [one.row["number"] for one in found] == list(range(7))
    for one in found:
        assert isinstance(one.answer, TextAnswer)
        alone = pg.answer(one.row["picture"], one.row["question"])
        assert one.answer.text == alone.text
        assert one.prompt == f"answer en {one.row['question']}"


def test_pictures_alone_and_bad_rows_have_their_place(pg: PaliGemma, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    encoded = {"image": {"bytes": DESK.read_bytes(), "path": None}}
    rows: list[Any] = [DESK, tmp_path / "bad.png", {"other": 1}, encoded]
    found = list(pg.map(rows, "detect star", threshold=0.3))
    assert isinstance(found[0].answer, Detections)
    assert found[0].answer.text == pg.detect(DESK, "star").text
    assert all(one.score >= 0.3 for one in found[0].answer)
    assert "cannot be recognised" in str(found[1].error)
    assert found[2].error == "a row needs a picture in 'image', this one has none"
    assert isinstance(found[3].answer, Detections)
    (odd,) = pg.map([{"image": DESK, "q a": float("nan")}], "answer en {q a}")
    assert odd.error == "the prompt needs the text 'q a' of its row"
    (odd,) = pg.map([{"image": DESK}], "answer en {question}")
    assert odd.error == "the prompt needs the text 'question' of its row"


def test_rows_are_taken_as_they_are_needed(pg: PaliGemma) -> None:
    taken = []

    def endless() -> Iterator[Path]:
        while True:
            taken.append(None)
            yield DESK

    mapped = pg.map(endless(), "detect star", batch_size=2)
    assert next(mapped).error is None
    mapped.close()  # type: ignore[attr-defined]
    assert len(taken) <= 16


@pytest.fixture
def overflows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Black pictures are encoded as no numbers, as where float16 overflows."""
    encode = Engine.encode

    def encoded(self: Engine, pixels: Any, **more: Any) -> Any:
        pairs = zip(pixels, encode(self, pixels, **more), strict=True)
        return [soft * float("nan") if bool(one.max() < -0.99) else soft for one, soft in pairs]

    monkeypatch.setattr(Engine, "encode", encoded)


def test_a_row_that_makes_numbers_overflow_costs_no_other_its_answer(
    pg: PaliGemma, overflows: None
) -> None:
    black = np.zeros((40, 60, 3), np.uint8)
    bad, good, *_ = pg.map([black, DESK, DESK], "detect star", batch_size=3)
    assert "the model produced NaN" in str(bad.error)
    assert isinstance(good.answer, Detections)
    assert good.answer.text == pg.detect(DESK, "star").text


def test_a_model_that_answers_nothing_is_no_fault_of_its_rows(
    pg: PaliGemma, overflows: None
) -> None:
    black = [np.zeros((40, 60 + k, 3), np.uint8) for k in range(3)]
    with pytest.raises(ConfigError, match="the model produced NaN"):
        list(pg.map(black, "detect star"))


def test_an_option_that_is_out_of_range_is_refused_before_a_row_is_taken(pg: PaliGemma) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        pg.map([], "detect star", threshold=3)


def test_rows_before_an_error_of_their_iterator_are_answered_first(pg: PaliGemma) -> None:
    def rows() -> Iterator[Path]:
        yield from [DESK] * 3
        raise OSError("the connection was lost")

    answered = []

    def take_all() -> None:
        for one in pg.map(rows(), "caption en", batch_size=2):
            answered.append(one.answer)

    with pytest.raises(OSError, match="connection was lost"):
        take_all()
    assert len(answered) == 3
    assert None not in answered


def test_pictures_of_rows_that_nobody_takes_are_not_read(pg: PaliGemma) -> None:
    begun: set[int] = set()
    goes_on = threading.Event()

    class Slow(io.BytesIO):
        """A picture that does not come before it may, beyond those of the first batches."""

        number = 0

        def read(self, size: int | None = -1) -> bytes:
            begun.add(self.number)
            if self.number >= 4:
                goes_on.wait(60)
            return super().read(size)

    rows = [Slow(DESK.read_bytes()) for _ in range(8)]
    for number, row in enumerate(rows):
        row.number = number
    found = cast(
        Generator[Any, None, None], pg.map(rows, "caption en", batch_size=1, num_threads=1)
    )
    next(found)
    threading.Timer(0.2, goes_on.set).start()
    found.close()
    assert begun <= {0, 1, 2, 3, 4}  # of eight that were to be read ahead


@pytest.mark.parametrize("row", [str(DESK), DESK, {"image": DESK}, b"bytes", 3], ids=repr)
def test_one_row_is_not_taken_for_the_rows_that_are_its_parts(pg: PaliGemma, row: Any) -> None:
    with pytest.raises(ConfigError, match="put one row into a list"):
        pg.map(row, "detect star")


def test_a_batch_without_a_row_is_refused_at_the_call(pg: PaliGemma) -> None:
    with pytest.raises(ConfigError, match="batches of at least 1"):
        pg.map([DESK], "detect star", batch_size=0)
