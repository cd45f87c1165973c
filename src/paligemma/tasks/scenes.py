"""The bundled task: pictures drawn by `paligemma.scenes`, asked in the words of pre-training."""

from __future__ import annotations

import numpy as np

from paligemma.outputs.boxes import encode_boxes, format_detections, format_loc
from paligemma.outputs.vqvae import MaskCodec, mask_to_codes
from paligemma.scenes import Scene, SceneExample


def scene_prefix(example: SceneExample) -> str:
    """The prompt as the model reads it; a region to caption follows as location tokens."""
    if example.prefix_box is None:
        return example.prefix
    return example.prefix + format_loc(encode_boxes(example.prefix_box).tolist())


def scene_suffix(scene: Scene, example: SceneExample, codec: MaskCodec) -> str:
    """The true answer: text, or boxes and masks as location and mask tokens."""
    if example.suffix is not None:
        return example.suffix
    boxes = [scene.objects[k].box_yxyx for k in example.objects]
    codes = None
    if example.task == "segment":
        codes = [
            mask_to_codes(codec, scene.mask(k), np.asarray(scene.objects[k].box_yxyx)).tolist()
            for k in example.objects
        ]
    return format_detections(boxes, example.labels, codes)
