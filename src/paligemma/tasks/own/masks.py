"""Answers that hold masks: sixteen codewords an object, for which a mask codec is needed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from paligemma.errors import DataError
from paligemma.example import Example
from paligemma.outputs.boxes import format_detections
from paligemma.outputs.masks import paste_mask
from paligemma.outputs.parse import parse_objects
from paligemma.outputs.rle import encode_rle
from paligemma.processing.prompts import detect_prompt, object_prompt
from paligemma.tasks.own.labels import OwnExample, RowError, object_references, size_of

if TYPE_CHECKING:
    from paligemma.outputs.vqvae import MaskCodec


def answered(example: OwnExample, codec: MaskCodec | None) -> OwnExample:
    """Write the answer of an example that needs masks: with codewords, or without a codec as boxes.

    Raises:
        DataError: the size of the picture is needed and cannot be read, or a mask is damaged.
    """
    labels = [one.label for one in example.objects]
    boxes = [tuple(one["box_yxyx"]) for one in example.references["objects"]]
    codes = None
    if codec is None:
        asked = object_prompt(example.prefix)
        assert asked is not None
        example = replace(
            example,
            prefix=detect_prompt(asked.labels),
            references=object_references(labels, boxes, "detect"),
        )
    else:
        from paligemma.outputs.vqvae import mask_to_codes

        size_hw = size_of(example)
        try:
            codes = [
                mask_to_codes(codec, one.mask(size_hw), np.array(box)).tolist()
                for one, box in zip(example.objects, boxes, strict=True)
            ]
        except DataError as error:
            raise RowError("mask", f"{example.where}: {error}") from error
    target = format_detections(np.array(boxes), labels, codes)
    return replace(example, targets=(target,), needs_masks=False)


def with_masks(example: Example, codec: MaskCodec | None) -> Example:
    """The example of a `segment` prompt with the masks of its objects in its references, where all
    of them are known: from outlines and run lengths, and with a codec from codewords."""
    if not isinstance(example, OwnExample) or example.references.get("slice") != "segment":
        return example
    try:
        size_hw = size_of(example)
        known = with_decoded_masks(example, size_hw, codec) if codec else example
        if not all(one.has_mask for one in known.objects):
            return example
        masks = [encode_rle(one.mask(size_hw)) for one in known.objects]
    except DataError:  # such a picture is asked in vain, and named then
        return example
    objects = [
        {**row, "mask": mask}
        for row, mask in zip(example.references["objects"], masks, strict=True)
    ]
    return replace(example, references={**example.references, "objects": objects})


def with_decoded_masks(
    example: OwnExample, size_hw: tuple[int, int], codec: MaskCodec
) -> OwnExample:
    """An example whose objects have the masks of the codewords in its answer, on a picture of that
    size; objects whose masks are known, or without codewords, stay as they are."""
    import torch

    if not example.objects or "<seg" not in "".join(example.targets[:1]):
        return example
    parsed = parse_objects(example.targets[0]).objects
    if len(parsed) != len(example.objects):
        return example
    height, width = size_hw
    objects = []
    for one, found in zip(example.objects, parsed, strict=True):
        region = None
        if found.seg is not None and not one.has_mask:
            values = codec.decode(torch.tensor([found.seg]))[0].detach().numpy()
            region = paste_mask(values, one.box_yxyx, (width, height))
        rle = one.rle if region is None else region.to_rle()
        objects.append(replace(one, rle=rle))
    return replace(example, objects=tuple(objects))
