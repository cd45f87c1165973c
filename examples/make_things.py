"""Write a file of sprites for `paligemma.scenes` from icon packages of npm.

The package's own file, and one of the art style that its training never shows:

    npm pack @iconify-json/noto @iconify-json/fluent-emoji-flat @iconify-json/fluent-emoji
    npm pack @iconify-json/twemoji
    for pack in iconify-json-*.tgz; do mkdir ${pack%.tgz}; tar xzf $pack -C ${pack%.tgz}; done
    pip install resvg-py
    python examples/make_things.py things.zip noto=iconify-json-noto-1.2.9 \
        flat=iconify-json-fluent-emoji-flat-1.2.6 round=iconify-json-fluent-emoji-1.2.7
    python examples/make_things.py twemoji.zip twemoji=iconify-json-twemoji-1.2.5

Photographs that are cut out, where a stamp of Debian's tuxpaint-stamps-default has the name:

    apt-get download tuxpaint-stamps-default && dpkg-deb -x tuxpaint-stamps-default_*.deb stamps
    python examples/make_things.py photographs.zip photograph=stamps/usr/share/tuxpaint/stamps
"""

from __future__ import annotations

import argparse
import json
import re
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from paligemma.scenes import THINGS
from paligemma.scenes.thing_names import ICONS
from paligemma.whole_file import whole_file

SIDE_PX = 96
# Every entry has this date, so that the same icons give the same file.
_DATE = (2020, 1, 1, 0, 0, 0)


def svg_of(icons: dict[str, Any], name: str) -> str:
    """The SVG of one icon of a package's icons.json; an alias stands for its parent."""
    found, passed = name, set()
    while found not in icons["icons"]:
        passed.add(found)
        if icons.get("aliases", {}).get(found, {}).get("parent", found) in passed:
            raise SystemExit(f"the package has no icon {name}; use the version that --help names")
        found = icons["aliases"][found]["parent"]
    icon = icons["icons"][found]
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    left, top = icon.get("left", 0), icon.get("top", 0)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )


def rendered(svg: str) -> Image.Image:
    """An SVG as RGBA, twice as large as a sprite."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIDE_PX, height=2 * SIDE_PX))
    with Image.open(BytesIO(png)) as picture:
        return picture.convert("RGBA")


def icons_of(folder: Path) -> Iterator[tuple[str, Image.Image]]:
    """Name and picture of every thing, from an icon package."""
    icons = json.loads((folder / "package" / "icons.json").read_text())
    for name in THINGS:
        yield name, rendered(svg_of(icons, ICONS.get(name, name)))


def stamps_of(folder: Path) -> Iterator[tuple[str, Image.Image]]:
    """Name and photograph of the things that a stamp's description names, and nothing else."""
    found: set[str] = set()
    for path in sorted(folder.rglob("*.png")):
        text = path.with_suffix(".txt")
        if "cartoon" in path.parts or not text.is_file():
            continue
        first_line = text.read_text(errors="replace").partition("\n")[0].strip()
        match = re.fullmatch(r"An? (\w+)\.", first_line)
        if match and (name := match[1]) in THINGS and name not in found:
            found.add(name)
            with Image.open(path) as picture:
                yield name, picture.convert("RGBA")


def sprite(drawn: Image.Image) -> bytes:
    """WebP with transparency, cut to what is visible, at most SIDE_PX a side."""
    drawn = drawn.crop(drawn.getchannel("A").getbbox())
    drawn.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    file = BytesIO()
    drawn.save(file, "WEBP", quality=72, alpha_quality=70, method=6)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("styles", nargs="+", metavar="STYLE=FOLDER")
    args = parser.parse_args()
    styles = [part.partition("=") for part in args.styles]
    if not all(style and folder for style, _, folder in styles):
        parser.error(f"styles are STYLE=FOLDER, got {' '.join(args.styles)}")
    with whole_file(args.out) as partial, zipfile.ZipFile(partial, "w") as archive:
        for style, _, folder in styles:
            is_package = (Path(folder) / "package" / "icons.json").is_file()
            before = len(archive.infolist())
            for name, picture in (icons_of if is_package else stamps_of)(Path(folder)):
                entry = zipfile.ZipInfo(f"{style}/{name}.webp", _DATE)
                archive.writestr(entry, sprite(picture))
            if len(archive.infolist()) == before:
                raise SystemExit(f"{folder} holds neither an icon package nor stamps; unpack one")
    print(f"wrote {args.out}: {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
