"""Text to ids and back; text can never produce a control id.

Reads `tokenizer.model` (SentencePiece, with or without the location and mask pieces) and, through
the `tokenizers` package, `tokenizer.json`. BOS, separator and EOS are added as ids by the
processor, never through text.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from paligemma import json_file
from paligemma.errors import MissingExtraError, PromptError, TokenizerError
from paligemma.processing.added_tokens import (
    ADDED_NAME,
    IMAGE_PIECE,
    MAX_JSON_BYTES,
    AddedPattern,
    AddedToken,
    added_tokens,
)
from paligemma.processing.hub_json import vetted
from paligemma.processing.sentencepiece_model import (
    BOS_PIECE,
    EOS_PIECE,
    PAD_PIECE,
    SEPARATOR_PIECE,
    UNK_PIECE,
    append_object_pieces,
    object_pieces,
)
from paligemma.stand_ins import stand_in
from paligemma.vocab import NUM_LOC, NUM_SEG, Vocab
from paligemma.whole_file import write_json

CONTROL_PIECES = (PAD_PIECE, EOS_PIECE, BOS_PIECE, IMAGE_PIECE)
MAX_FILE_BYTES = 128 << 20
_REMEDY = "use the tokenizer that was published with the checkpoint"

# Between "<" and the rest of a typed control piece: encoded apart, the halves cannot match it.
_INSIDE_CONTROL = re.compile(r"(?<=<)(?=(?:pad|eos|bos|image)>)")
_BYTE_PIECE = re.compile(rb"<0x[0-9A-F]{2}>")


class _Backend(Protocol):
    """What a tokenizer library must offer."""

    file_name: str

    @property
    def size(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...
    def piece(self, token: int) -> str: ...
    def find(self, piece: str) -> int | None: ...
    def to_bytes(self) -> bytes: ...


class _SentencePiece:
    file_name = "tokenizer.model"

    def __init__(self, model: bytes, listed: Sequence[AddedToken] = ()) -> None:
        self._ids: dict[str, int] = {}
        self._processor = self._load(model)
        if self.find("<loc0000>") is None:
            self._processor = self._load(append_object_pieces(model))
        self._num_pieces = self._processor.get_piece_size()
        added = [token for token in listed if token.id >= self._num_pieces]
        self.added = {token.id: token.text for token in added}
        self._ids |= {token.text: token.id for token in added}
        typed = [token for token in added if token.text not in CONTROL_PIECES]
        self._pattern = AddedPattern(typed) if typed else None

    @staticmethod
    def _load(model: bytes) -> Any:
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor()
        processor.LoadFromSerializedProto(model)
        return processor

    @property
    def size(self) -> int:
        return max((self._num_pieces - 1, *self.added)) + 1

    def encode(self, text: str) -> list[int]:
        if self._pattern is None:
            return self._processor.encode(text)
        ids: list[int] = []
        for part in self._pattern.split(text):
            ids += [part] if isinstance(part, int) else self._processor.encode(part)
        return ids

    def decode(self, ids: list[int]) -> str:
        runs = itertools.groupby(ids, key=lambda token: token < self._num_pieces)
        return "".join(
            self._processor.decode(list(run)) if ordinary else "".join(map(self.piece, run))
            for ordinary, run in runs
        )

    def piece(self, token: int) -> str:
        if token >= self._num_pieces:
            return self.added.get(token, "")
        return self._processor.id_to_piece(token)

    def find(self, piece: str) -> int | None:
        if piece in self._ids:
            return self._ids[piece]
        token = self._processor.piece_to_id(piece)  # unk for what it does not know
        return token if self._processor.id_to_piece(token) == piece else None

    def to_bytes(self) -> bytes:
        return self._processor.serialized_model_proto()


class _HubJson:
    file_name = "tokenizer.json"

    def __init__(self, text: str) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise MissingExtraError(
                "tokenizer.json needs the package `tokenizers`, which is not installed; "
                "run pip install 'paligemma[hub]' or place tokenizer.model beside it"
            ) from error
        content = vetted(json_file.parse_json(text))
        listed = content["added_tokens"]
        self._num_ids = max((token["id"] for token in listed), default=-1) + 1
        # Hub files mark some pieces as special that SentencePiece matches in text; undo that.
        for token in listed:
            token["special"] = token["content"] in (*CONTROL_PIECES, UNK_PIECE)
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
        self._tokenizer.encode_special_tokens = True  # a typed special token is ordinary text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @property
    def size(self) -> int:
        return max(self._tokenizer.get_vocab_size(with_added_tokens=True), self._num_ids)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def piece(self, token: int) -> str:
        return self._tokenizer.id_to_token(token) or ""

    def find(self, piece: str) -> int | None:
        return self._tokenizer.token_to_id(piece)

    def to_bytes(self) -> bytes:
        return self._tokenizer.to_str().encode()


class Tokenizer:
    """Gemma's tokenizer with the location and mask pieces.

    Attributes:
        vocab: id ranges found in the file; `size` counts the ids that text or the model may use.
    """

    def __init__(self, backend: _Backend) -> None:
        self._backend = backend
        self.vocab = _find_vocab(backend)
        controls = (backend.find(piece) for piece in CONTROL_PIECES)
        self._control_ids = frozenset(token for token in controls if token is not None)

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Reads `tokenizer.model`, or `tokenizer.json` by its ending.

        Raises:
            TokenizerError: missing, too large or unreadable file, or one without the pieces
                that PaliGemma needs.
            MissingExtraError: a tokenizer.json without the `tokenizers` package.
        """
        path = Path(path)
        data = _read_bounded(path, MAX_JSON_BYTES if path.suffix == ".json" else MAX_FILE_BYTES)
        try:
            if path.suffix == ".json":
                return cls(_HubJson(data.decode()))
            return cls(_SentencePiece(data, added_tokens(path.parent)))
        except (TokenizerError, MissingExtraError):
            raise
        # Both libraries raise bare Exception or RuntimeError; a panic of Rust is no Exception.
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise TokenizerError(
                f"a tokenizer must be a SentencePiece model or a tokenizer.json, "
                f"but {path} cannot be read as one ({stand_in(data) or str(error)[:200]}); "
                "download it again"
            ) from error

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no BOS, no EOS, never a control id.

        Raises:
            PromptError: the text holds half a surrogate pair, which is no character.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"text must be valid Unicode, got a lone surrogate at character {error.start}; "
                "decode the input as UTF-8"
            ) from error
        ids = self._backend.encode(text)
        if self._control_ids.isdisjoint(ids):
            return ids
        # Only a file that lets text match its control pieces gets here.
        parts = _INSIDE_CONTROL.split(text)
        return list(itertools.chain.from_iterable(map(self._backend.encode, parts)))

    def spell(self, text: str) -> list[int]:
        """Ids of text that a model is to write, see `encode`.

        Raises:
            PromptError: half a surrogate pair, or a character that the vocabulary lacks.
        """
        ids = self.encode(text)
        if self._backend.find(UNK_PIECE) in ids:
            raise PromptError(
                f"an answer must be of characters that the vocabulary has, got {text!r:.100}; name "
                "other answers or labels"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first EOS; location and mask pieces are spelt out, controls left out.

        Raises:
            TokenizerError: an id outside the vocabulary.
        """
        kept = []
        for token in map(int, ids):
            if token == self.vocab.eos:
                break
            self._require_known(token)
            if token not in self._control_ids:
                kept.append(token)
        return self._backend.decode(kept)

    def piece(self, token: int) -> str:
        """The piece of one id, as the file spells it (a leading space is "▁")."""
        self._require_known(int(token))
        return self._backend.piece(int(token))

    def pieces_in_bytes(self) -> list[bytes]:
        """What each id writes; empty for control, location and mask ids and what has no text."""
        vocab = self.vocab
        mute = {*self._control_ids, self._backend.find(UNK_PIECE)}
        if vocab.has_objects:
            mute |= {*range(vocab.loc0, vocab.loc0 + NUM_LOC)}
            mute |= {*range(vocab.seg0, vocab.seg0 + NUM_SEG)}
        pieces = (b"" if k in mute else self._backend.piece(k).encode() for k in range(vocab.size))
        return [
            bytes.fromhex(piece[3:5].decode())
            if _BYTE_PIECE.fullmatch(piece)
            else piece.replace("▁".encode(), b" ")
            for piece in pieces
        ]

    def check(self, expected: Vocab) -> None:
        """Compares the ids found in the file with those the model was trained with.

        Raises:
            TokenizerError: an id differs, or text may yield ids beyond the embedding table.
        """
        for name in ("pad", "eos", "bos", "sep", "loc0", "seg0"):
            found, wanted = getattr(self.vocab, name), getattr(expected, name)
            if found != wanted:
                raise TokenizerError(
                    f"the tokenizer must give {name} the id {wanted} that the model was trained "
                    f"with, got {found}; {_REMEDY}"
                )
        if self.vocab.size > expected.size:
            raise TokenizerError(
                f"the tokenizer must not have more pieces than the model has embedding rows "
                f"({expected.size}), got {self.vocab.size}; {_REMEDY}"
            )

    def save(self, folder: str | Path) -> Path:
        """Writes the file the tokenizer was read from, object pieces included, into a folder.

        Tokens that a SentencePiece model cannot hold go into added_tokens.json beside it.
        """
        path = Path(folder) / self._backend.file_name
        path.write_bytes(self._backend.to_bytes())
        if isinstance(self._backend, _SentencePiece) and self._backend.added:
            names = {text: token for token, text in self._backend.added.items()}
            write_json(path.with_name(ADDED_NAME), names)
        return path

    def _require_known(self, token: int) -> None:
        if not 0 <= token < self.vocab.size:
            raise TokenizerError(
                f"a token id must lie in 0..{self.vocab.size - 1}, got {token}; "
                "the model and the tokenizer do not belong together"
            )


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a model folder: `tokenizer.model` if there is one, else `tokenizer.json`.

    Args:
        folder: a folder, or the file itself.

    Raises:
        TokenizerError: neither file is there, or it is unreadable.
        MissingExtraError: only tokenizer.json is there and `tokenizers` is not installed.
    """
    folder = Path(folder)
    if os.path.isfile(folder):  # pathlib raises for an impossible name
        return Tokenizer.from_file(folder)
    for name in (_SentencePiece.file_name, _HubJson.file_name):
        if os.path.isfile(folder / name):
            return Tokenizer.from_file(folder / name)
    raise TokenizerError(
        f"a model folder must hold tokenizer.model or tokenizer.json, "
        f"{folder!s:.200} holds neither; "
        "copy the file that was published with the checkpoint there"
    )


def _read_bounded(path: Path, max_bytes: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise TokenizerError(
                f"this tokenizer file may have {max_bytes} bytes, {path} has {size}; "
                "Gemma's has 4 to 35 million"
            )
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"the tokenizer file {path} cannot be read ({error.strerror}); check the path"
        ) from error


def _find_vocab(backend: _Backend) -> Vocab:
    special = {
        name: _find_piece(backend, piece)
        for name, piece in (
            ("pad", PAD_PIECE),
            ("eos", EOS_PIECE),
            ("bos", BOS_PIECE),
            ("sep", SEPARATOR_PIECE),
            ("loc0", "<loc0000>"),
            ("seg0", "<seg000>"),
        )
    }
    starts = [special["loc0"] + index for index in range(NUM_LOC)]
    starts += [special["seg0"] + index for index in range(NUM_SEG)]
    _require_runs(backend, object_pieces(), starts)
    size = backend.size
    while backend.piece(size - 1) == IMAGE_PIECE:  # an id of transformers, not of the model
        size -= 1
    image = backend.find(IMAGE_PIECE)
    if image is not None and image >= size:
        image = None
    return Vocab(size=size, image=image, **special)


def _find_piece(backend: _Backend, piece: str) -> int:
    token = backend.find(piece)
    if token is None:
        raise TokenizerError(
            f"a PaliGemma tokenizer must hold the piece {piece!r}, this one does not; {_REMEDY}"
        )
    return token


def _require_runs(backend: _Backend, pieces: Sequence[str], ids: Sequence[int]) -> None:
    for piece, token in zip(pieces, ids, strict=True):
        if backend.find(piece) != token:
            raise TokenizerError(
                f"location and mask pieces must have consecutive ids, {piece} should be {token} "
                f"but is {backend.find(piece)}; {_REMEDY}"
            )
