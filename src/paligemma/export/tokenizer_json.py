"""A SentencePiece model as the tokenizer.json that transformers and transformers.js read.

A SentencePiece BPE joins the two neighbours whose union has the best score; the same in a list of
merges is: all ways to cut a piece into two pieces, in the order of the piece's score.
Source: the published tokenizer.json of Gemma, whose steps these are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from paligemma.errors import TokenizerError
from paligemma.processing.added_tokens import IMAGE_PIECE, AddedToken
from paligemma.processing.sentencepiece_model import UNK_PIECE

# ModelProto.SentencePiece.Type and TrainerSpec.ModelType
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_BPE = 2
_REMEDY = "use the tokenizer that was published with the checkpoint"


@dataclass(frozen=True, kw_only=True)
class _Piece:
    text: str
    score: float = 0.0
    kind: int = _NORMAL


def tokenizer_json(
    model: bytes, *, image_id: int, added: Sequence[AddedToken] = ()
) -> dict[str, Any]:
    """The content of a tokenizer.json.

    Args:
        model: a SentencePiece model with the location and mask pieces.
        image_id: id of `<image>`.
        added: tokens behind the model's own.

    Raises:
        TokenizerError: the bytes are no SentencePiece model of kind BPE.
    """
    pieces = _read_pieces(model)
    ids = {piece.text: token for token, piece in enumerate(pieces)}
    listed = [
        _listed(token, piece.text, special=piece.kind in (_CONTROL, _UNKNOWN))
        for token, piece in enumerate(pieces)
        if piece.kind in (_CONTROL, _UNKNOWN, _USER_DEFINED)
    ]
    behind = [one for one in added if one.id >= len(pieces) and one.text != IMAGE_PIECE]
    listed += [_listed(one.id, one.text, special=False, token=one) for one in behind]
    listed += [_listed(image_id, IMAGE_PIECE, special=True)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(listed, key=lambda one: one["id"]),
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": UNK_PIECE,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": any(piece.kind == _BYTE for piece in pieces),
            "ignore_merges": False,
            "vocab": ids,
            "merges": list(_merges(pieces)),
        },
    }


def _listed(
    number: int, text: str, *, special: bool, token: AddedToken | None = None
) -> dict[str, Any]:
    return {
        "id": number,
        "content": text,
        "single_word": token is not None and token.single_word,
        "lstrip": token is not None and token.lstrip,
        "rstrip": token is not None and token.rstrip,
        "normalized": False,
        "special": special,
    }


def _merges(pieces: Iterable[_Piece]) -> Iterator[tuple[str, str]]:
    """Both halves of every cut, the best piece first."""
    normal = [piece for piece in pieces if piece.kind == _NORMAL]
    known = {piece.text for piece in normal}
    for piece in sorted(normal, key=lambda one: -one.score):
        for cut in range(1, len(piece.text)):
            halves = piece.text[:cut], piece.text[cut:]
            if known.issuperset(halves):
                yield halves


def _read_pieces(model: bytes) -> list[_Piece]:
    pieces, kind = [], _BPE
    try:
        for field, value in _fields(model):
            if field == 1 and isinstance(value, bytes):
                pieces.append(_read_piece(value))
            elif field == 2 and isinstance(value, bytes):  # TrainerSpec
                kind = next((v for f, v in _fields(value) if f == 3 and isinstance(v, int)), 1)
    except (IndexError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise TokenizerError(
            f"tokenizer.model must be a SentencePiece model, it is not ({error}); {_REMEDY}"
        ) from error
    if kind != _BPE:
        raise TokenizerError(
            f"tokenizer.model must be of kind BPE ({_BPE}), as Gemma's is, got {kind}; {_REMEDY}"
        )
    return pieces


def _read_piece(data: bytes) -> _Piece:
    text, score, kind = "", 0.0, _NORMAL
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            text = value.decode()
        elif field == 2 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif field == 3 and isinstance(value, int):
            kind = value
    return _Piece(text=text, score=score, kind=kind)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of the fields of a protobuf message, in order."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError("a number has more than 64 bits")

    while place < len(data):
        key = varint()
        field, wire = key >> 3, key & 7
        if wire == 0:
            yield field, varint()
            continue
        sizes = {1: 8, 5: 4}
        if wire not in (2, *sizes):
            raise ValueError(f"a field has the unknown wire type {wire}")
        size = varint() if wire == 2 else sizes[wire]
        if place + size > len(data):
            raise ValueError("it is cut off")
        yield field, data[place : place + size]
        place += size
