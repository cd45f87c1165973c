"""Things: sprites in every style, exact masks, sentences, and pictures without things unchanged."""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paligemma.errors import DataError
from paligemma.scenes import (
    KINDS,
    LABELS,
    THINGS,
    SceneOptions,
    detect_all,
    draw_scene,
    plural,
    sample_example,
    scene_examples,
)
from paligemma.scenes.language import describe, is_are, with_article
from paligemma.scenes.questions import MIN_OFFSET_PX
from paligemma.scenes.thing_names import ICONS, PAIRS, UNCOUNTED
from paligemma.scenes.things import Jitter, draw_thing, sprite_file
from paligemma.scenes.words import WORDS

STYLES = ("flat", "noto", "round")
OPTIONS = SceneOptions(thing_share=0.7)


def test_two_hundred_names_have_a_sprite_in_each_style() -> None:
    assert len(THINGS) == len(set(THINGS)) == 200
    assert not set(THINGS) & {*LABELS, *(plural(label) for label in LABELS)}
    assert set(ICONS) <= set(THINGS)
    assert all(name.isalpha() and name.islower() for name in THINGS)
    known = sprite_file()
    assert known.names == THINGS
    for name in THINGS:
        assert known.styles(name) == STYLES
        for style in STYLES:
            sprite = known.sprite(name, style)
            assert sprite.mode == "RGBA"
            assert 40 <= max(sprite.size) <= 96
    assert known.path.stat().st_size < 1_300_000


def test_a_thing_is_drawn_with_its_exact_mask_at_the_side_that_was_asked() -> None:
    for seed, name in enumerate(THINGS[::10]):
        rng = np.random.default_rng(seed)
        patch = draw_thing(name, "noto", 60.0, rng, jitter=Jitter(degrees=0.0))
        assert max(patch.hw) == pytest.approx(62, abs=4)
        assert np.array_equal(patch.mask, patch.alpha >= 128)
        assert patch.mask.any(axis=1)[1:-1].all()
        assert (patch.label, patch.color, patch.style) == (name, "", "noto")


def test_no_two_drawings_of_a_thing_are_alike_and_one_seed_draws_one() -> None:
    def drawn(seed: int) -> bytes:
        return draw_thing("cat", "flat", 50.0, np.random.default_rng(seed)).paint.tobytes()

    assert len({drawn(seed) for seed in range(10)}) == 10
    assert drawn(3) == drawn(3)


def test_pictures_without_things_are_those_of_earlier_releases() -> None:
    found = hashlib.sha256()
    for seed in range(40):
        scene = draw_scene(seed, SceneOptions(split="heldout" if seed % 2 else "train"))
        found.update(scene.image.tobytes())
        for example in scene_examples(scene, np.random.default_rng(seed)):
            if example.kind != "neighbour":
                found.update(repr((example.prefix, example.suffix, example.labels)).encode())
    assert found.hexdigest() == "e09913841eeeb169597bce27cea463c08ccc92c4de752965389d84bac2d13361"


def test_scenes_show_things_among_the_others_with_boxes_of_their_masks() -> None:
    labels = set()
    for seed in range(60):
        scene = draw_scene(seed, OPTIONS)
        for k, item in enumerate(scene.objects):
            labels.add(item.label)
            assert (item.style in STYLES, item.color == "") == ((item.label in THINGS),) * 2
            rows, columns = np.nonzero(scene.mask(k))
            side = scene.image.shape[0]
            extent = (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
            assert np.array(item.box_yxyx) * side == pytest.approx(extent)
    assert len(labels & set(THINGS)) > 60
    assert set(LABELS) <= labels


@pytest.mark.parametrize(
    ("label", "many"),
    [
        ("pizza", "pizzas"),
        ("mouse", "mice"),
        ("butterfly", "butterflies"),
        ("cactus", "cactuses"),
        ("fox", "foxes"),
        ("peach", "peaches"),
        ("toothbrush", "toothbrushes"),
        ("tomato", "tomatoes"),
        ("cross", "crosses"),
        ("scissors", "scissors"),
        ("popcorn", "popcorn"),
        ("deer", "deer"),
        ("monkey", "monkeys"),
        ("turkey", "turkeys"),
    ],
)
def test_plurals(label: str, many: str) -> None:
    assert plural(label) == many


def test_sentences_about_things_are_english() -> None:
    assert with_article("umbrella") == "an umbrella"
    assert with_article("unicorn") == "a unicorn"
    assert with_article("scissors") == "scissors"
    assert is_are("jeans") == "are"
    assert is_are("sushi") == "is"
    seen = set()
    for seed in range(150):
        scene = draw_scene(seed, OPTIONS)
        rng = np.random.default_rng(seed)
        for example in scene_examples(scene, rng):
            text = f"{example.prefix} {example.suffix}"
            assert "  " not in text.replace("caption  ", "")
            for name in PAIRS:
                assert f"is the {name}" not in text
                assert f"is there {name}" not in text
                assert f" a {name}" not in text
            if "how many" in text:
                assert not any(f"many {name} are" in text for name in (*PAIRS, *UNCOUNTED))
            if example.kind == "caption_region":
                (item,) = [o for o in scene.objects if o.box_yxyx == example.prefix_box]
                assert example.suffix == describe(item)
            seen.add(example.kind)
        assert sample_example(scene, rng, {"neighbour": 1.0}).kind in ("neighbour", "caption")
    assert seen == set(KINDS)


def test_what_lies_beside_an_object_is_asked_only_where_one_answer_is_right() -> None:
    num = 0
    for seed in range(200):
        scene = draw_scene(seed, OPTIONS)
        side = scene.image.shape[0]
        for example in scene_examples(scene, np.random.default_rng(seed)):
            if example.kind != "neighbour":
                continue
            num += 1
            question = example.prefix.removeprefix("answer en what is ").removesuffix("?")
            relation, phrase = question.split(" the ")
            axis = 0 if relation in ("above", "below") else 1
            named = [
                o for o in scene.objects if phrase in (o.label, f"{o.color} {o.label}".strip())
            ]
            (start,) = named
            centre = {
                id(o): (o.box_yxyx[axis] + o.box_yxyx[axis + 2]) / 2 * side for o in scene.objects
            }
            sign = -1 if relation in ("above", "left of") else 1
            there = [o for o in scene.objects if sign * (centre[id(o)] - centre[id(start)]) > 0]
            assert [o.label for o in there] == [example.suffix]
            assert scene.objects[example.objects[0]] is there[0]
            others = [o for o in scene.objects if o is not start]
            assert all(abs(centre[id(o)] - centre[id(start)]) >= MIN_OFFSET_PX for o in others)
    assert num > 80


def test_things_are_asked_for_only_where_some_are_shown() -> None:
    asked = {
        has: {
            phrase
            for seed in range(60)
            for scene in [draw_scene(seed, SceneOptions(thing_share=share))]
            if any(o.style for o in scene.objects) == has
            for phrase in detect_all(scene, np.random.default_rng(seed)).prefix[7:].split(" ; ")
        }
        for has, share in ((False, 0.0), (True, 0.7))
    }
    assert asked[False] <= set(LABELS)
    assert len(asked[True] & set(THINGS)) > 80


def stored(path: Path, **pictures: Image.Image | bytes) -> Path:
    """A file of sprites of the style "mine"."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, picture in pictures.items():
            data = picture
            if isinstance(picture, Image.Image):
                file = BytesIO()
                picture.save(file, "WEBP", lossless=True)
                data = file.getvalue()
            archive.writestr(f"mine/{name}.webp", data)
    return path


def test_scenes_take_sprites_from_another_file(tmp_path: Path) -> None:
    red = Image.new("RGBA", (40, 30), (250, 10, 10, 255))
    path = stored(tmp_path / "mine.zip", cat=red, unknown=red)
    options = SceneOptions(thing_share=1.0, things=str(path), min_objects=1, max_objects=3)
    for seed in range(5):
        scene = draw_scene(seed, options)
        assert {(o.label, o.style) for o in scene.objects} == {("cat", "mine")}
        assert scene.image[scene.mask(0)].mean(axis=0)[0] > 180


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "zip archive"),
        ({"unknown": Image.new("RGBA", (4, 4))}, "no sprite of a known thing"),
        ({"cat": Image.new("RGBA", (8, 8))}, "is transparent"),
        ({"cat": Image.new("RGBA", (600, 8), "red")}, "512 px a side"),
        ({"cat": b"no picture"}, "cannot be read"),
    ],
)
def test_a_broken_file_of_sprites_is_named(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "mine.zip"
    if content is None:
        path.write_bytes(b"nothing")
    else:
        assert isinstance(content, dict)
        stored(path, **content)
    with pytest.raises(DataError, match=message):
        draw_scene(0, SceneOptions(thing_share=1.0, things=str(path)))


def damaged(path: Path, *, local: int, central: int, value: int) -> Path:
    """A file of one sprite with a field changed in both headings of its entry."""
    stored(path, cat=Image.new("RGBA", (40, 30), "red"))
    data = bytearray(path.read_bytes())
    data[local] = data[data.index(b"PK\1\2") + central] = value
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("local", "central", "value", "message"),
    [
        (6, 8, 1, "without a password"),
        (8, 10, 12, "stored or deflated, mine/cat.webp"),
        (8, 10, 14, "stored or deflated"),
        (8, 10, 97, "stored or deflated"),
        (8, 10, 8, "zip archive of STYLE/NAME.webp"),
    ],
)
def test_an_archive_that_is_packed_in_another_way_is_refused(
    tmp_path: Path, local: int, central: int, value: int, message: str
) -> None:
    path = damaged(tmp_path / "mine.zip", local=local, central=central, value=value)
    with pytest.raises(DataError, match=message):
        sprite_file(str(path))


def png_heading(width: int, height: int) -> bytes:
    """A PNG that states its size and holds nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        whole = name + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    size = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IEND", b"")


def test_hostile_pictures_in_a_file_of_sprites_are_named(tmp_path: Path) -> None:
    dots = Image.new("RGBA", (200, 200))
    for corner in (0, 199):
        dots.putpixel((corner, corner), (255, 0, 0, 255))
    script = BytesIO()
    Image.new("RGB", (30, 30)).save(script, "EPS")
    for number, (picture, message) in enumerate(
        [
            (png_heading(60_000, 60_000), "mine/cat .* cannot be read"),
            (script.getvalue(), "mine/cat .* cannot be read: no WebP"),
            (b"x" * ((1 << 20) + 1), "1,048,576 bytes, mine/cat.webp"),
            (dots, "mine/cat .* too thin"),
        ]
    ):
        path = stored(tmp_path / f"{number}.zip", cat=picture)
        with pytest.raises(DataError, match=message):
            draw_scene(0, SceneOptions(thing_share=1.0, things=str(path)))


def test_a_file_of_sprites_is_bounded_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "mine.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for style in range(65):
            archive.writestr(f"{style}/cat.webp", b"\0" * (1 << 20))
    with pytest.raises(DataError, match="67,108,864 bytes, packed and unpacked"):
        sprite_file(str(path))


def test_a_file_of_sprites_is_a_file_with_each_picture_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "none.zip", ".", "a\0b"):
        with pytest.raises(DataError, match="is no file; check the path"):
            sprite_file(str(tmp_path / name))
    red = Image.new("RGBA", (40, 30), "red")
    path = stored(tmp_path / "mine.zip", cat=red)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("mine/cat.webp", b"another")
    with pytest.raises(DataError, match=r"holds mine/cat\.webp twice"):
        sprite_file(str(path))


def test_pictures_under_other_names_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = stored(tmp_path / "mine.zip", cat=Image.new("RGBA", (40, 30), "red"))
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("dog.webp", "mine/", "mine/dog.png", "mine/Dog.webp"):
            archive.writestr(name, b"picture")
    assert sprite_file(str(path)).names == ("cat",)
    (record,) = caplog.records
    assert "3 of 4 files are not named STYLE/NAME.webp" in record.getMessage()
    assert "'dog.webp'" in record.getMessage()


def test_things_are_drawn_at_every_scale() -> None:
    for size_px, scale in ((64, 8.0), (64, 0.5), (224, 8.0), (300, 6.0)):
        options = SceneOptions(
            size_px=size_px, thing_share=1.0, object_scale=scale, min_objects=2, max_objects=3
        )
        low, high = options.thing_range_px
        assert 0 < low <= high <= 0.6 * size_px
        assert draw_scene(3, options).objects


def test_a_file_of_sprites_has_a_name() -> None:
    with pytest.raises(DataError, match="needs a name"):
        draw_scene(0, SceneOptions(thing_share=1.0, things=""))


@pytest.mark.parametrize("bad", [{"thing_share": 1.5}, {"thing_jitter": -1.0}])
def test_shares_and_jitter_have_bounds(bad: dict[str, float]) -> None:
    with pytest.raises(DataError, match="thing_share must be"):
        SceneOptions(**bad)  # type: ignore[arg-type]


def test_names_of_things_may_stand_on_signs_but_in_capitals() -> None:
    assert {"PIZZA", "CAT"} <= set(WORDS)
    scene = draw_scene(11, OPTIONS)
    assert all(o.text == o.text.upper() for o in scene.objects)
