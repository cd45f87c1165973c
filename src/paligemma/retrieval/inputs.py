"""Pictures and texts as the batches that ColPali reads, by a preset.

    page    [image x I] [BOS] page prompt [line feed]
    query   [BOS] prefix + query [augmentation x A] [line feed, if the preset has one]

All of a page see each other, and so do all of a query unless its preset is causal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate

from paligemma.batch import Batch, TokenRow
from paligemma.errors import ConfigError, ImageError, PromptError
from paligemma.processing.pixels import ExampleImages, stack_pixels
from paligemma.processing.processor import Processor
from paligemma.processing.prompts import require_bounded
from paligemma.retrieval.presets import CAUSAL, PAD, Preset

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def page_batch(preset: Preset, processor: Processor, pictures: Sequence[ExampleImages]) -> Batch:
    """Pages to be read.

    Args:
        preset: the model's.
        processor: the model's.
        pictures: one of each page, as `Processor.pixels` takes them.

    Raises:
        ImageError: a bad picture, one of several frames, or none at all.
    """
    if not pictures:
        raise ImageError("a batch of pages needs at least one picture, got none")
    vocab = processor.vocab
    ids = (vocab.bos, *processor.tokenizer.encode(preset.page_prompt), vocab.sep)
    images = stack_pixels([processor.pixels(picture) for picture in pictures])
    if images.ndim != 4:
        raise ImageError(
            f"a page is one picture, got {images.shape[1]} frames as one; pass each as a page"
        )
    return Batch.from_rows([_row(ids, step=0)] * len(pictures), pad=vocab.pad, images=images)


def query_batch(preset: Preset, processor: Processor, texts: Sequence[str]) -> Batch:
    """Queries to be read; see `query_ids`."""
    step = int(preset.query_attention == CAUSAL)
    rows = [_row(query_ids(preset, processor, text), step) for text in texts]
    return Batch.from_rows(rows, pad=processor.vocab.pad)


def query_ids(preset: Preset, processor: Processor, text: str) -> tuple[int, ...]:
    """Token ids of one query with all that its preset adds.

    Raises:
        PromptError: the query is no text, is empty, or has more than 10,000 characters.
        ConfigError: the tokenizer lacks the preset's augmentation token.
    """
    require_bounded("query", text)
    if not text.strip():
        raise PromptError("a query must have words, got none; leave it out")
    vocab = processor.vocab
    ids = processor.tokenizer.encode(preset.read_as(text))
    added = [_augmentation_id(preset, processor)] * preset.num_augmentation
    return (vocab.bos, *ids, *added, *((vocab.sep,) if preset.newline else ()))


def query_pieces(preset: Preset, processor: Processor, text: str) -> tuple[str, ...]:
    """The text of each of a query's tokens; "" for those that the preset adds.

    Joined, they are the query. A character of several tokens stands with the last of them.
    """
    tokenizer = processor.tokenizer
    ids = tokenizer.encode(preset.read_as(text))
    left = len(preset.query_prefix.encode())
    pieces, unread = [], b""
    for token in ids:
        read = unread + _bytes_of(tokenizer.piece(token))
        # What belongs to the prefix is left out, byte by byte.
        skipped = min(left, len(read))
        left -= skipped
        try:
            pieces.append(read[skipped:].decode())
            unread = b""
        except UnicodeDecodeError:
            pieces.append("")
            unread = read[skipped:]
    if preset.plain_words:  # shown as they were written, not as they are read
        ends = list(accumulate(map(len, pieces)))
        pieces = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    num_added = preset.num_augmentation + preset.newline
    return ("", *pieces, *[""] * num_added)


def _bytes_of(piece: str) -> bytes:
    """What a piece of SentencePiece stands for."""
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes.fromhex(byte[1]) if byte else piece.replace("▁", " ").encode()


def _augmentation_id(preset: Preset, processor: Processor) -> int:
    if preset.augmentation_token == PAD:
        return processor.vocab.pad
    ids = processor.tokenizer.encode(preset.augmentation_token)
    if len(ids) != 1:
        raise ConfigError(
            f"the augmentation token of a preset must be one token of the model, preset "
            f"{preset.name} has {preset.augmentation_token!r}, which is {len(ids)}; take another "
            "preset"
        )
    return ids[0]


def _row(ids: tuple[int, ...], step: int) -> TokenRow:
    return TokenRow(
        tokens=ids,
        mask_ar=(step,) * len(ids),
        mask_input=(1,) * len(ids),
        mask_loss=(0,) * len(ids),
    )
