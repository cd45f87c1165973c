"""Teach the embedded model a class that it has never seen, and show it before and after.

Draws 200 rows with arrows, trains an adapter, and writes demo/arrows/before.png and after.png.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from draw_arrows import LABEL, write_rows

from paligemma import PaliGemma, finetune
from paligemma.adapt.lora import LoraConfig

SHOWN = "images/valid_0002.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo/arrows"))
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    start = time.monotonic()
    data = options.output / "data"
    write_rows(data, "train", 200, 40_000_000)
    write_rows(data, "valid", 60, 41_000_000)
    run = finetune(
        "tiny",
        data=data,
        output=options.output / "run",
        lora=LoraConfig(rank=16, alpha=32, parts=("decoder", "vision", "projector")),
        steps=options.steps,
        lr=2e-3,
        eval_every=0.5,
    )
    for name, adapter in (("before", None), ("after", run.folder)):
        pg = PaliGemma.from_pretrained("tiny", adapter=adapter)
        found = pg.detect(data / SHOWN, LABEL, threshold=0.3, max_overlap=0.5)
        found.draw().save(options.output / f"{name}.png")
    for one in run.figures:
        print(f"{one.name:22} {one.before:6.1f} -> {one.after:6.1f}")
    print(f"{time.monotonic() - start:.0f} s; pictures in {options.output}; open {run.report}")


if __name__ == "__main__":
    main()
