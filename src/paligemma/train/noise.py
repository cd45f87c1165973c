"""Rows of `detect all classes`: the objects, then noise boxes up to the end of the row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from paligemma.batch import TokenRow
from paligemma.example import Asking, Example
from paligemma.outputs.boxes import decode_boxes
from paligemma.outputs.parse import parse_objects
from paligemma.processing.processor import Processor, layout
from paligemma.tasks.grounding.targets import noisy_target


def noisy_row(
    example: Example,
    target: str,
    asking: Asking,
    processor: Processor,
    rng: np.random.Generator,
    noise: str,
) -> TokenRow:
    """The tokens of a row without an end token; noise coordinates have no loss.

    Args:
        target: the objects as they are written elsewhere; those that do not fit are left out.
        rng: order of the objects, and where the noise boxes lie.
        noise: the class of a noise box; best one token of the model.
    """
    encode, vocab = processor.tokenizer.encode, processor.vocab
    prompt = layout(encode(example.prefix), (), vocab, add_eos=False)
    objects = parse_objects(target).objects
    pieces = noisy_target(
        [decode_boxes(one.loc).tolist() for one in objects],
        [one.label or "" for one in objects],
        rng,
        max_tokens=min(asking.max_new_tokens, asking.text_len + 1 - len(prompt)),
        count_tokens=lambda text: len(encode(text)),
        noise=noise,
    )
    ids = [(token, piece.has_loss) for piece in pieces for token in encode(piece.text)]
    row = layout(encode(example.prefix), [token for token, _ in ids], vocab, add_eos=False)
    return replace(row, mask_loss=(0,) * len(prompt) + tuple(int(has) for _, has in ids))
