"""Write a contact sheet of drawn scenes: python examples/scene_sheet.py OUT.png --boxes."""

from __future__ import annotations

import argparse

import numpy as np
from PIL import Image, ImageDraw

from paligemma.scenes import SceneOptions, draw_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--split", default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--thing-share", type=float, default=0.6, help="share of things, 0..1")
    parser.add_argument("--boxes", action="store_true", help="draw boxes, characters and masks")
    args = parser.parse_args()
    options = SceneOptions(size_px=args.size, split=args.split, thing_share=args.thing_share)
    gap = 6
    step = args.size + gap
    sheet = Image.new("RGB", (args.columns * step, args.rows * step), "white")
    for k in range(args.columns * args.rows):
        scene = draw_scene(args.seed + k, options)
        pixels = scene.image.copy()
        if args.boxes:
            edge = np.zeros(scene.object_map.shape, dtype=bool)
            edge[:, 1:] |= scene.object_map[:, 1:] != scene.object_map[:, :-1]
            edge[1:] |= scene.object_map[1:] != scene.object_map[:-1]
            pixels[edge] = (255, 0, 255)
        tile = Image.fromarray(pixels)
        pen = ImageDraw.Draw(tile)
        for item in scene.objects if args.boxes else ():
            y0, x0, y1, x1 = (v * args.size for v in item.box_yxyx)
            pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=(0, 255, 255))
            for _, a, b, c, d in item.char_boxes:
                pen.rectangle((b, a, d - 1, c - 1), outline=(0, 255, 0))
        sheet.paste(tile, ((k % args.columns) * step, (k // args.columns) * step))
    sheet.save(args.out)


if __name__ == "__main__":
    main()
