"""Damaged and hostile checkpoints: config, weights, index and mask codec of three layouts."""

from __future__ import annotations

import random

from fuzz.folders import Files, changed, program
from fuzz.models import damaged_model, model_folder
from PIL import Image

NAME = "checkpoints"
MAX_MB = 1024

Given = tuple[str, Files, int]


def make(rng: random.Random) -> tuple[str, Given]:
    """A folder with one or two damaged files, and how it is used."""
    kind = rng.choice(("hf", "hf", "sharded", "npz"))
    what, files = damaged_model(kind, rng)
    way = rng.randrange(4)
    return f"{kind}, {('load', 'ask', 'doctor', 'convert')[way]}, {what}", (kind, files, way)


def attempt(given: Given) -> None:
    """Load it and ask it, check it, or convert it."""
    from paligemma.outputs.vqvae import load_mask_codec
    from paligemma.pipeline.paligemma import PaliGemma

    kind, files, way = given
    with changed(model_folder(kind), files) as folder:
        if way == 2:
            program("doctor", folder)
        elif way == 3:
            program("convert", folder, folder.parent / "out", "--dtype", "float32")
        else:
            for codec in folder.glob("mask_codec.*"):
                load_mask_codec(codec)
            pg = PaliGemma.from_pretrained(folder)
            if way == 1:
                pg.segment(Image.new("RGB", (40, 30)), "star", max_new_tokens=2)
