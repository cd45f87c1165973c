"""Pictures of results: legible at any size, nothing outside the picture."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from paligemma.errors import ConfigError, DataError, ImageError
from paligemma.outputs import draw, fonts, lettering, plates
from paligemma.outputs.detections import Detections
from paligemma.outputs.draw import DrawStyle, draw_detections, draw_text_answer
from paligemma.outputs.lettering import Lettering
from paligemma.outputs.masks import MaskRegion
from paligemma.outputs.palette import PALETTE, label_colours
from paligemma.outputs.types import Box, Detection

GREY = (128, 128, 128)


def picture(wh: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", wh, GREY)


def found(
    wh: tuple[int, int], *boxes: Box, labels: tuple[str, ...] = ("cat",), mask: bool = False
) -> Detections:
    full = np.zeros((wh[1], wh[0]), bool)
    full[wh[1] // 4 : wh[1] // 2, wh[0] // 4 : wh[0] // 2] = True
    items = tuple(
        Detection(
            label=labels[i % len(labels)],
            box_yxyx=box,
            image_wh=wh,
            score=0.5,
            region=MaskRegion.from_array(full) if mask else None,
        )
        for i, box in enumerate(boxes)
    )
    return Detections(items=items, image_wh=wh)


def has_colour(image: Image.Image, colour: tuple[int, int, int]) -> bool:
    return bool((np.asarray(image) == colour).all(-1).any())


@pytest.mark.parametrize(
    ("wh", "factor"), [((32, 32), 20), ((224, 224), 3), ((640, 480), 1), ((3000, 20), 4)]
)
def test_small_pictures_are_enlarged_by_a_whole_factor(wh: tuple[int, int], factor: int) -> None:
    drawn = draw_detections(picture(wh), found(wh, (0.2, 0.2, 0.8, 0.8)))
    assert drawn.width == wh[0] * factor
    assert drawn.height > wh[1] * factor  # the legend comes below
    plain = draw_detections(picture(wh), found(wh), style=DrawStyle(min_side_px=0, legend=False))
    assert plain.size == wh


@pytest.mark.parametrize("side", [640, 2000, 8000])
def test_letters_and_lines_grow_with_the_picture(side: int) -> None:
    sizes = plates.Sizes.of((side, side), [], scale=1.0, font_path=None)
    assert sizes.letters.size_px / side == pytest.approx(0.022, rel=0.05)
    assert sizes.line / side == pytest.approx(0.004, rel=0.25)


BOXES: list[Box] = [
    (0, 0, 1, 1),
    (0, 0, 0.02, 0.02),
    (0.98, 0.98, 1, 1),
    (0.5, 0.95, 0.6, 1.0),
    (0, 0.4, 0.01, 0.6),
]


@pytest.mark.parametrize("wh", [(640, 480), (60, 900), (900, 60)])
def test_plates_stay_inside_the_picture_and_off_each_other(
    wh: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[plates.Rect] = []
    original = plates._place

    def recording(
        box: plates.Rect,
        size: tuple[int, int],
        canvas: tuple[int, int],
        taken: list[plates.Rect],
        line: int,
    ) -> tuple[int, int]:
        x, y = original(box, size, canvas, taken, line)
        assert 0 <= x <= canvas[0] - size[0]
        assert 0 <= y <= canvas[1] - size[1]
        placed.append((x, y, x + size[0], y + size[1]))
        return x, y

    monkeypatch.setattr(plates, "_place", recording)
    draw_detections(picture(wh), found(wh, *BOXES, labels=("a rather long label", "cat")))
    assert len(placed) == 5
    if wh == (640, 480):
        for one, other in itertools.combinations(placed, 2):
            assert plates._hidden(one, np.array([other])) == 0


def test_thousands_of_boxes_are_drawn_in_seconds() -> None:
    wh = (320, 240)
    began = time.perf_counter()
    draw_detections(picture(wh), found(wh, *[(0.1, 0.1, 0.5, 0.9)] * 2000))
    assert time.perf_counter() - began < 20  # about a minute, where each looks at each in Python


def test_each_label_has_one_colour_told_apart_from_the_others() -> None:
    boxes: list[Box] = [(0.1, 0.1, 0.4, 0.4), (0.5, 0.1, 0.9, 0.4), (0.5, 0.5, 0.9, 0.9)]
    drawn = draw_detections(
        picture((640, 480)), found((640, 480), *boxes, labels=("cat", "dog", "cat"))
    )
    colours = label_colours(["cat", "dog"])
    shown = [colour for colour in PALETTE if has_colour(drawn, colour)]
    assert sorted(shown) == sorted(colours.values())
    assert len(set(label_colours(f"label {k}" for k in range(21)).values())) == 21
    assert len(label_colours(f"label {k}" for k in range(50))) == 50


def test_a_label_has_its_colour_whatever_else_is_in_the_picture() -> None:
    names = ["cat", "dog", "car", "person", "猫", ""]
    alone = {name: label_colours([name])[name] for name in names}
    assert alone == {  # as they were once drawn, in all runs to come
        "cat": (230, 188, 211),
        "dog": (242, 207, 128),
        "car": (86, 180, 233),
        "person": (240, 228, 66),
        "猫": (0, 87, 63),
        "": (132, 125, 36),
    }
    assert label_colours(names) == label_colours(reversed(names)) == alone


@pytest.mark.skipif(shutil.which("node") is None, reason="the page's colours need node")
def test_the_page_of_the_server_gives_a_label_the_same_colour() -> None:
    labels = [*(f"label {k}" for k in range(12)), "猫", "naïve 🐈", "object"]
    colours = Path(draw.__file__).parents[1] / "serve" / "page" / "colours.js"
    source = colours.read_text().replace("export ", "")
    code = (
        f"{source}\nconst all = {json.dumps([{'label': one} for one in labels])};\n"
        "console.log(JSON.stringify(all.map(({label}) => colourOf(label, all))));"
    )
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    ours = label_colours(labels)
    assert json.loads(done.stdout) == ["#" + bytes(ours[one]).hex() for one in labels]


@pytest.mark.parametrize("label", ["cat", "dog", "car", "person"])
@pytest.mark.parametrize("mask", [False, True])
def test_a_box_and_a_mask_stand_out_from_a_ground_of_their_own_colour(
    label: str, mask: bool
) -> None:
    wh, own = (640, 640), label_colours([label])[label]
    ground = Image.new("RGB", wh, own)
    box: Box = (0.0, 0.0, 1.0, 1.0) if mask else (0.25, 0.25, 0.5, 0.5)
    items = found(wh, box, labels=(label,), mask=mask)
    drawn = np.asarray(draw_detections(ground, items, style=DrawStyle(legend=False)), float)
    # Across the left edge of the box, or of the mask, both of which lie at 160.
    across = drawn[240, 150:170]
    assert np.abs(across - own).sum(-1).max() > 150


def test_a_mask_is_translucent_inside_and_has_an_outline() -> None:
    wh = (640, 640)
    style = DrawStyle(legend=False)
    drawn = np.asarray(
        draw_detections(picture(wh), found(wh, (0.1, 0.1, 0.9, 0.9), mask=True), style=style)
    )
    middle, outside = drawn[240, 240].astype(int), drawn[400, 400].astype(int)
    colour = label_colours(["cat"])["cat"]
    fill = 0.6 * np.array(GREY) + 0.4 * np.array(colour)
    assert np.abs(middle - fill).max() <= 2
    assert np.array_equal(outside, GREY)
    assert np.abs(drawn[240, 160].astype(int) - colour).max() < 30  # on its left edge


def test_a_thin_mask_does_not_vanish() -> None:
    full = np.zeros((640, 640), bool)
    full[:, 320] = True
    item = Detection(
        label=None,
        box_yxyx=(0.0, 0.2, 1.0, 0.8),
        image_wh=(640, 640),
        region=MaskRegion.from_array(full),
    )
    drawn = draw_detections(picture((640, 640)), Detections(items=(item,), image_wh=(640, 640)))
    assert np.abs(np.asarray(drawn)[300, 320].astype(int) - GREY).max() > 20


def test_boxes_without_size_are_not_drawn_and_the_legend_says_nothing_was_found() -> None:
    swapped = draw_detections(picture((640, 480)), found((640, 480), (0.9, 0.1, 0.1, 0.9)))
    none = draw_detections(picture((640, 480)), found((640, 480)))
    assert swapped.tobytes() == none.tobytes()
    assert np.array_equal(np.asarray(none)[:480], np.full((480, 640, 3), 128))
    assert none.height > 480


def test_more_labels_than_the_legend_has_room_for_do_not_swallow_the_picture() -> None:
    labels = tuple(f"label number {i}" for i in range(60))
    boxes: list[Box] = [(0.1, 0.1, 0.5, 0.5)] * 60
    drawn = draw_detections(picture((640, 480)), found((640, 480), *boxes, labels=labels))
    assert drawn.height < 480 * 1.35


def test_drawing_on_another_image_is_refused() -> None:
    with pytest.raises(ImageError, match="10x10"):
        draw_detections(picture((640, 480)), found((10, 10), (0.1, 0.1, 0.9, 0.9)))
    with pytest.raises(ImageError, match="10x10"):
        found((10, 10)).draw(picture((640, 480)))


@pytest.mark.parametrize("image", ["desk.png", b"PNG", 3])
def test_what_is_no_image_cannot_be_drawn_on(image: Any) -> None:
    with pytest.raises(ImageError, match="a Pillow image or uint8"):
        found((64, 64)).draw(image)
    with pytest.raises(ImageError, match="a Pillow image or uint8"):
        draw_text_answer(image, "yes")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": float("nan")}, r"in \(0, 10\], got nan"),
        ({"scale": 0}, r"in \(0, 10\], got 0"),
        ({"scale": 1e9}, r"in \(0, 10\], got 1000000000.0"),
        ({"scale": "big"}, "got 'big'"),
        ({"mask_opacity": 1.5}, r"in \[0, 1\], got 1.5"),
        ({"mask_opacity": -0.1}, r"in \[0, 1\], got -0.1"),
        ({"min_side_px": -1}, r"in 0\.\.12000, got -1"),
        ({"min_side_px": float("inf")}, "got inf"),
    ],
)
def test_a_style_out_of_bounds_says_rule_and_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DrawStyle(**options)


def test_arrays_grey_alpha_and_16_bit_images_are_drawn() -> None:
    detections = found((64, 48), (0.1, 0.1, 0.9, 0.9))
    images = [
        np.zeros((48, 64, 3), np.uint8),
        np.zeros((48, 64), np.uint8),
        Image.new("RGBA", (64, 48)),
        Image.new("P", (64, 48)),
        Image.fromarray(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64)),
    ]
    for image in images:
        assert draw_detections(image, detections).mode == "RGB"
    with pytest.raises(ImageError, match="float64"):
        draw_detections(np.zeros((48, 64, 3)), detections)


def test_the_input_image_is_left_alone() -> None:
    image = picture((640, 480))
    draw_detections(image, found((640, 480), (0.1, 0.1, 0.9, 0.9)))
    assert np.array_equal(np.asarray(image), np.full((480, 640, 3), 128))


def test_an_answer_stands_below_the_picture_on_as_many_lines_as_it_needs() -> None:
    image = picture((640, 480))
    short = draw_text_answer(image, "two", prompt="answer en how many?")
    long = draw_text_answer(image, "many words " * 40, prompt="caption en")
    endless = draw_text_answer(image, "x" * 100_000)
    assert 480 < short.height < long.height
    assert endless.height < 2 * 480
    assert np.array_equal(np.asarray(long)[:480], np.asarray(image))


def test_words_are_wrapped_broken_and_cut_to_the_room() -> None:
    letters = Lettering.for_texts([], size_px=20)
    lines = letters.wrap("one two three " + "w" * 60, 150, max_lines=4)
    assert lines[0].startswith("one two")
    assert all(letters.width(line) <= 150 for line in lines)
    assert lines[-1].endswith("...")
    assert len(lines) == 4
    assert letters.wrap("one two", 150, max_lines=4) == ["one two"]
    assert letters.wrap("", 150, max_lines=4) == []
    assert letters.fit("one two three four", 80).endswith("...")
    assert letters.wrap("www", 1, max_lines=5) == ["w", "w", "w"]


def test_control_characters_and_letters_no_font_has_do_not_reach_the_picture() -> None:
    letters = Lettering.for_texts([], size_px=20)  # Pillow's own font: hardly more than ASCII
    assert letters.spell("a\x00b\nc\u200bd") == "ab cd"
    assert letters.spell("é") in ("é", "e")
    assert letters.spell("\U000f1234x") == "x"


def font_of(characters: str, path: Path) -> Path:
    """A font whose only letters are bars, of these characters."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    def bar(width: int) -> Any:
        pen = TTGlyphPen(None)
        pen.moveTo((0, 0))
        for corner in ((0, 800), (width, 800), (width, 0)):
            pen.lineTo(corner)
        pen.closePath()
        return pen.glyph()

    names = {ord(c): f"c{k}" for k, c in enumerate(characters)}
    order = [".notdef", *names.values()]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(order)
    font.setupCharacterMap(names)
    font.setupGlyf({name: bar(100 if name == ".notdef" else 900) for name in order})
    font.setupHorizontalMetrics(dict.fromkeys(order, (1000, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Bars", "styleName": "Regular"})
    font.setupPost()
    path.parent.mkdir(parents=True, exist_ok=True)
    font.save(path)
    return path


@pytest.fixture
def own_fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only place of fonts on this system."""
    monkeypatch.setattr(fonts, "_folders", lambda: (str(tmp_path / "fonts"),))
    lettering._warn.cache_clear()
    return tmp_path / "fonts"


def test_letters_come_from_any_installed_font_that_has_them(
    own_fonts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    font_of("猫犬", own_fonts / "deep" / "Some CJK.ttf")
    font_of("ж", own_fonts / "Cyrillic.otf")
    letters = Lettering.for_texts(["cat 猫", "ж"], size_px=20)
    assert letters.spell("cat 猫犬 ж") == "cat 猫犬 ж"
    assert letters.width("cat 猫") == letters.width("cat ") + 20  # of the installed font
    strip = Image.new("RGB", (200, 40))
    letters.draw(ImageDraw.Draw(strip), (4, 20), "cat 猫", fill=(255, 255, 255))
    ink = np.flatnonzero(np.asarray(strip)[..., 0].max(0) > 128)
    start = 4 + letters.width("cat ")
    assert ink.max() == pytest.approx(start + 18, abs=2)  # the bar, 0.9 of its width
    assert ink.min() < 10
    assert not caplog.records


def test_letters_that_no_font_has_are_named_in_a_notice_once(
    own_fonts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    item = found((640, 480), (0.1, 0.1, 0.9, 0.9), labels=("猫と犬",))
    for _ in range(2):
        draw_detections(picture((640, 480)), item)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2  # a script each
    assert told[0].startswith("no font of this system has CJK letters such as 犬猫, so pictures")
    assert "HIRAGANA letters such as と" in told[1]
    assert "Noto Sans CJK" in told[0]


def test_a_long_label_does_not_cover_the_objects_beside_its_own() -> None:
    label = "a very long label that says all there is to say about the object in question"
    items = found((640, 480), (0.3, 0.0, 0.9, 0.3), labels=(label,))
    drawn = np.asarray(draw_detections(picture((640, 480)), items, style=DrawStyle(legend=False)))
    assert (drawn[:, 210:] == GREY).all()


def test_a_wrong_font_path_is_an_error(tmp_path: Path) -> None:
    style = DrawStyle(font_path=str(tmp_path / "absent.ttf"))
    with pytest.raises(DataError, match="font_path"):
        draw_detections(picture((640, 480)), found((640, 480)), style=style)


def test_detections_draw_and_save_themselves(tmp_path: Path) -> None:
    detections = found((640, 480), (0.1, 0.1, 0.9, 0.9))
    detections.save_png(tmp_path / "out.png", picture((640, 480)))
    with Image.open(tmp_path / "out.png") as saved:
        assert saved.tobytes() == detections.draw(picture((640, 480))).tobytes()
