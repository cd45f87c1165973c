"""The `tokenizer.model` file: adding the 1,152 object pieces, and training a small one.

A SentencePiece model is a protobuf message whose repeated field 1 holds the pieces. Bytes of
further entries may simply follow the message, so pieces are appended without a protobuf library.
"""

from __future__ import annotations

import io
import re
import string
import struct
from collections.abc import Iterable
from pathlib import Path

from paligemma.vocab import NUM_LOC, NUM_SEG

PAD_PIECE = "<pad>"
EOS_PIECE = "<eos>"
BOS_PIECE = "<bos>"
UNK_PIECE = "<unk>"
SEPARATOR_PIECE = "\n"

_USER_DEFINED = 4  # ModelProto.SentencePiece.Type
_MAX_LINE_BYTES = 1 << 16


def object_pieces() -> list[str]:
    """`<loc0000>`..`<loc1023>` and `<seg000>`..`<seg127>`, in the order of their ids."""
    locations = [f"<loc{index:04d}>" for index in range(NUM_LOC)]
    return locations + [f"<seg{index:03d}>" for index in range(NUM_SEG)]


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _user_defined_piece(text: str) -> bytes:
    """One entry of ModelProto.pieces: field 1 text, field 2 score (float), field 3 type."""
    data = text.encode()
    message = b"\x0a" + _varint(len(data)) + data
    message += b"\x15" + struct.pack("<f", 0.0)
    message += b"\x18" + _varint(_USER_DEFINED)
    return b"\x0a" + _varint(len(message)) + message


def append_object_pieces(model: bytes) -> bytes:
    """The same model with the 1,152 location and mask pieces after its last piece, score 0.

    Source: big_vision pp/ops_text.py _add_pieces; order of the pieces from pp/tokenizer.py.
    """
    return model + b"".join(map(_user_defined_piece, object_pieces()))


def _training_lines(lines: Iterable[str]) -> Iterable[str]:
    """Lines without newlines and object tokens, which have pieces of their own."""
    for line in lines:
        for part in re.split(r"\n|<loc\d{4}>|<seg\d{3}>", line):
            if part:
                yield part


def train_tokenizer(
    lines: Iterable[str], *, vocab_size: int, out_path: str | Path, byte_fallback: bool = False
) -> Path:
    """Trains a small tokenizer with Gemma's conventions; the same lines give the same bytes.

    Ids are pad 0, eos 1, bos 2, unk 3, then "\\n", the learned pieces and all printable ASCII,
    and at the end the 1,152 location and mask pieces.

    Args:
        lines: text to learn from; object tokens within are left out.
        vocab_size: pieces before the 1,152 are appended; fewer if the text does not yield as many.
        out_path: file to write, usually named tokenizer.model.
        byte_fallback: spell unknown characters by 256 byte pieces (counted in `vocab_size`)
            instead of unk.

    Returns:
        The path written.
    """
    import sentencepiece

    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_training_lines(lines)),
        model_writer=buffer,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=byte_fallback,
        character_coverage=1.0,
        required_chars=string.digits + string.ascii_letters + string.punctuation,
        user_defined_symbols=[SEPARATOR_PIECE],
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        max_sentence_length=_MAX_LINE_BYTES,
        shuffle_input_sentence=False,
        num_threads=1,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece=PAD_PIECE,
        eos_piece=EOS_PIECE,
        bos_piece=BOS_PIECE,
        unk_piece=UNK_PIECE,
        minloglevel=2,
    )
    out_path = Path(out_path)
    out_path.write_bytes(append_object_pieces(buffer.getvalue()))
    return out_path
