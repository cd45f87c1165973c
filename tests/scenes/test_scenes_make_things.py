"""The script that makes files of sprites: from an icon package, and from cut-out photographs."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from paligemma.scenes import THINGS
from paligemma.scenes.thing_names import ICONS
from paligemma.scenes.things import sprite_file

SCRIPT = Path(__file__).parents[2] / "examples" / "make_things.py"
HEX = re.compile(r"#(\w{6})")


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_things", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["make_things.py", *map(str, words)])
    script.main()


def test_an_icon_package_becomes_one_sprite_a_name_with_the_same_bytes_each_time(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [ICONS.get(name, name) for name in THINGS]
    icons = {
        name: {"body": f'<rect fill="#{number:06x}"/>'} for number, name in enumerate(names, 1)
    }
    # One of them stands under another name, as icon packages have it.
    icons["red-apple-2"] = icons.pop("red-apple")
    package = {"icons": icons, "aliases": {"red-apple": {"parent": "red-apple-2"}}, "width": 32}
    (tmp_path / "pack" / "package").mkdir(parents=True)
    (tmp_path / "pack" / "package" / "icons.json").write_text(json.dumps(package))

    def rendered(svg: str) -> Image.Image:
        """In the place of resvg: a plate of the colour, with a clear border."""
        (color,) = HEX.findall(svg)
        assert 'viewBox="0 0 32 16"' in svg
        picture = Image.new("RGBA", (192, 192))
        picture.paste(f"#{color}", (20, 40, 180, 120))
        return picture

    monkeypatch.setattr(script, "rendered", rendered)
    for file in ("one.zip", "again.zip"):
        write(script, monkeypatch, tmp_path / file, f"mine={tmp_path / 'pack'}")
    made = tmp_path / "one.zip"
    assert made.read_bytes() == (tmp_path / "again.zip").read_bytes()
    found = sprite_file(str(made))
    assert found.names == THINGS
    for name in ("apple", "zebra"):
        assert found.styles(name) == ("mine",)
        # Cut to what is visible, the longer side reduced to 96 px.
        assert found.sprite(name, "mine").size == (96, 48)

    del icons["zebra"]
    (tmp_path / "pack" / "package" / "icons.json").write_text(json.dumps(package))
    with pytest.raises(SystemExit, match="no icon zebra"):
        write(script, monkeypatch, tmp_path / "two.zip", f"mine={tmp_path / 'pack'}")


def test_photographs_are_taken_where_the_description_is_one_name_alone(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = {
        "animals/one": "A cat.\nmore",
        "animals/two": "Two cats.",
        "animals/three": "A cat.",
        "animals/cartoon/dog": "A dog.",
        "food/spoon": "A spoon.",
        "food/apple": "An apple.",
        "food/empty": "",
    }
    for name, text in described.items():
        path = tmp_path / "stamps" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".txt").write_text(text)
        Image.new("RGBA", (50, 200 if name.endswith("one") else 50), "red").save(f"{path}.png")
    write(script, monkeypatch, tmp_path / "made.zip", f"photograph={tmp_path / 'stamps'}")
    found = sprite_file(str(tmp_path / "made.zip"))
    assert found.names == ("apple", "cat")
    assert found.sprite("cat", "photograph").size == (24, 96)


def test_what_is_no_package_is_named_and_leaves_the_old_file_as_it_was(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "things.zip"
    out.write_bytes(b"old")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="empty holds neither an icon package nor stamps"):
        write(script, monkeypatch, out, f"mine={tmp_path / 'empty'}")
    with pytest.raises(SystemExit, match="2"):
        write(script, monkeypatch, out, tmp_path / "empty")
    # Two aliases that stand for each other.
    aliases = {"one": {"parent": "two"}, "two": {"parent": "one"}}
    with pytest.raises(SystemExit, match="no icon one"):
        script.svg_of({"icons": {}, "aliases": aliases}, "one")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["things.zip"]
    assert out.read_bytes() == b"old"
