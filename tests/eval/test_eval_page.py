"""The page: complete in itself, harmless whatever a model wrote, and with everything on it."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from fake_runs import COMMAND, boxes, found, quiz
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from paligemma.errors import ImageError
from paligemma.eval import page_parts as parts
from paligemma.eval.charts import histogram, interval_chart
from paligemma.eval.page import report_page
from paligemma.eval.report import make_report
from paligemma.eval.scored import Scored
from paligemma.outputs.html import el, text

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</pre></details><iframe src=http://evil.example>",
    "&lt;b&gt; & ' \" \x00 \u202e \ud800",
    "<style>*{display:none}</style>",
)


def none_published(task: object, *, our_split: str | None = None) -> list[object]:
    return []


def page_of(scored: Scored, **more: object) -> str:
    report = make_report(scored, published=none_published, num_resamples=20)  # type: ignore[arg-type]
    return report_page(report, **more)  # type: ignore[arg-type]


def grey(name: str) -> list[np.ndarray]:
    return [np.full((60, 80, 3), 128, np.uint8)]


class Reader(HTMLParser):
    """Collects elements and whether every one is closed."""

    VOID = frozenset({"meta", "img", "br", "wbr"})

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_whatever_a_model_wrote_stays_text() -> None:
    scored = quiz(list("abcde"), HOSTILE, slices=HOSTILE, model=HOSTILE[1], command=HOSTILE[2])
    scored = replace(scored, examples=[replace(one, prefix=HOSTILE[0]) for one in scored.examples])
    read = Reader(page_of(scored, pictures=lambda ids: grey))
    assert read.open == []
    names = {tag for tag, _ in read.tags}
    assert not names & {"script", "iframe", "object", "link", "a", "form", "input"}
    assert [tag for tag, _ in read.tags].count("style") == 1
    assert not [key for _, attrs in read.tags for key in attrs if key.startswith("on")]
    words = " ".join(read.texts)
    assert HOSTILE[0] in words
    assert HOSTILE[2] in words
    # What no page may hold, or what turns text around, is shown by number.
    assert "\\u0000 \\u202e \\ud800" in words


@given(st.text(max_size=40))
@settings(max_examples=30, deadline=None)
def test_escaped_text_never_opens_an_element_and_is_written_as_utf8(value: str) -> None:
    made = el("p", value, title=value)
    read = Reader(made)
    assert [tag for tag, _ in read.tags] == ["p"]
    assert read.open == []
    made.encode()
    assert "".join(read.texts) == read.tags[0][1]["title"]


def test_an_element_inside_an_element_is_not_escaped_but_text_is() -> None:
    assert el("p", el("b", "<x>"), "<y>") == "<p><b>&lt;x&gt;</b>&lt;y&gt;</p>"
    assert text("a\u00a0b") == "a b"


def test_the_page_asks_for_nothing() -> None:
    page = page_of(quiz(["a", "b"], ["a", "x"]), pictures=lambda ids: grey)
    read = Reader(page)
    policy = next(attrs["content"] for _, attrs in read.tags if "http-equiv" in attrs)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    for _, attrs in read.tags:
        assert not {"href", "srcset", "action", "data"} & set(attrs)
        assert (attrs.get("src") or "data:").startswith("data:")
    style = page.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme:dark" in style


def test_the_page_says_what_was_run_and_how_to_repeat_it() -> None:
    page = page_of(quiz(["a", "b"], ["a", "x"], confidence=[0.9, 0.6]))
    words = " ".join(Reader(page).texts)
    for part in (
        "Quiz (val)",
        "some/model",
        "2 of 2 examples",
        "50.0",
        COMMAND,
        "torch 2.13.0",
        "ids in order",
        '"num_beams": 1',
        "Expected calibration error",
        "answer en what is 1?",
        "(limit 4, seed 0)",
    ):
        assert part in words


def test_pictures_are_small_jpegs_with_boxes_and_reference_beside_answer() -> None:
    scored = boxes(
        [[("cat", (0.1, 0.1, 0.9, 0.9))]],
        [[found("dog", (0.2, 0.2, 0.8, 0.8), 0.7), found("dog", (0.0, 0.0, 0.3, 0.3), 0.6)]],
    )

    def large(name: str) -> list[np.ndarray]:
        return [np.full((1200, 1600, 3), 128, np.uint8)]

    page = page_of(scored, pictures=lambda ids: large)
    images = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(images) == 2
    there, said = (np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in images)
    assert there.shape == said.shape == (336, 448, 3)
    # The box of the reference is drawn at its edge, that of the answer elsewhere.
    assert abs(there[168, 45].astype(int) - 128).max() > 40
    assert abs(said[168, 45].astype(int) - 128).max() < 20
    words = " ".join(Reader(page).texts)
    assert "reference: 1" in words
    assert "answer: 2" in words
    assert "2 dog" in words


def test_a_picture_that_cannot_be_read_again_is_told_and_spoils_nothing() -> None:
    def gone(name: str) -> list[np.ndarray]:
        raise ImageError(f"{name}.jpg is no picture")

    page = page_of(quiz(["a", "b"], ["x", "b"]), pictures=lambda ids: gone)
    assert "the picture cannot be shown: q0.jpg is no picture" in page
    assert "no picture" in page_of(quiz(["a"], ["x"]), pictures=lambda ids: lambda name: [])


def test_a_clip_is_shown_by_four_frames() -> None:
    def clip(name: str) -> list[np.ndarray]:
        return [np.full((20, 20, 3), 10 * k, np.uint8) for k in range(16)]

    page = page_of(quiz(["a"], ["x"]), pictures=lambda ids: clip)
    assert page.count("data:image/jpeg") == 4


@pytest.mark.parametrize("value", [0.0, 0.4, 55.0, 141.9, 1234.0])
def test_a_figure_lies_on_its_line(value: float) -> None:
    chart = interval_chart(value, value * 0.9, value * 1.1, None)
    for x in re.findall(r'c?x="([\d.]+)"', chart):
        assert 0 <= float(x) <= 320
    assert Reader(chart).open == []


def test_a_histogram_counts_every_value_once() -> None:
    chart = histogram([0, 1, 1, 2, 2, 2], "words")
    heights = [float(h) for h in re.findall(r'height="([\d.]+)"', chart)]
    assert len(heights) == 3
    assert heights[2] == pytest.approx(3 * heights[0], rel=0.01)
    assert ">3<" in chart
    assert "(longest 9,999)" in histogram([1] * 500 + [9999], "words")
    assert Reader(histogram([], "words")).open == []


def test_the_worst_answers_are_wrong_ones() -> None:
    page = page_of(quiz(["a"] * 6, ["a", "x", "a", "a", "x", "a"]))
    worst = page.split("The worst answers")[1].split("Command")[0]
    assert "2 of 2 answers that are not wholly right" in worst
    assert worst.count("<article") == 2
    assert "The worst answers" not in page_of(quiz(["a", "b"], ["a", "b"]))


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (80.0, 96.0, "88.2"),
        (87.9, 88.6, "88.25"),
        (88.2, 88.3, "88.247"),
        (88.0, 88.0, "88.25"),
        (88.0, 88.0 + 1e-13, "88.25"),
    ],
)
def test_a_figure_has_the_decimals_that_its_interval_makes_sense_of(
    low: float, high: float, shown: str
) -> None:
    assert parts.figure_words(88.247, low, high) == shown


def test_charts_name_their_axes_and_their_marks() -> None:
    scored = quiz(["a"] * 4, ["a", "x", "a", "x"], confidence=[0.9, 0.6, 0.7, 0.2])
    words = Reader(page_of(scored)).texts
    for name in ("confidence", "share that was right", "words in an answer", "answers"):
        assert name in words
    for mark in ("score", "95 % interval", "distance from the confidence"):
        assert mark in words
    assert "published" not in words


def test_no_table_hides_rows_and_names_break_between_their_words() -> None:
    """Groups of a long report stood in a box of 46 rem, whose end nobody saw."""
    page = page_of(quiz(["a"] * 4, ["a", "x", "a", "x"]))
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.S)
    assert "max-height:46rem" not in style
    assert "tall" not in page
    assert str(parts.name_words("detect_ap50/sign")) == "detect_<wbr>ap50/<wbr>sign"
    assert str(parts.name_words("a<b/_c")) == "a&lt;b/<wbr>_<wbr>c"
