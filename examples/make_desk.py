"""Write examples/desk.png, the picture of the demo, as `scenes` draws it."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from paligemma.scenes.desk import draw_desk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("desk.png"))
    Image.fromarray(draw_desk().image).save(parser.parse_args().out)


if __name__ == "__main__":
    main()
