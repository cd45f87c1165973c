"""JSON by a schema, as the library llguidance follows it.

The room of an answer is unknown to it: an answer that its bound cuts is no whole JSON.

Axes: V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paligemma.errors import ConfigError, MissingExtraError
from paligemma.vocab import Vocab

MAX_SCHEMA_CHARACTERS = 1 << 16
# As Python's json writes: models have seen more of it than of any other spacing.
_SPACING: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class JsonTokens:
    """A vocabulary as llguidance reads it: built once, it serves any schema.

    Args:
        pieces: what each id writes, in bytes; empty for ids that no JSON may hold.
        encode: ids of text; what a schema leaves no choice in is written with these.

    Raises:
        MissingExtraError: llguidance is not installed.
    """

    def __init__(
        self, vocab: Vocab, pieces: Sequence[bytes], encode: Callable[[str], list[int]]
    ) -> None:
        try:
            import llguidance
        except ImportError as error:
            raise MissingExtraError(
                "json_schema needs llguidance, which is not installed; run "
                "pip install 'paligemma[json]'"
            ) from error
        self.vocab = vocab
        self.matcher = llguidance.LLMatcher
        # Of a tokenizer llguidance reads these names, and calls it on text.
        self.eos_token_id, self.bos_token_id = vocab.eos, vocab.bos
        self.tokens = [piece or b"<%d>" % token for token, piece in enumerate(pieces)]
        self.special_token_ids = [token for token, piece in enumerate(pieces) if not piece]
        self._encode = encode
        self.compiled = llguidance.LLTokenizer(llguidance.TokenizerWrapper(self))

    def __call__(self, text: str) -> list[int]:
        """Ids of text."""
        return self._encode(text)


class JsonGrammar:
    """The answer is JSON that obeys a schema, followed by EOS; a `Constraint`.

    Raises:
        ConfigError: llguidance cannot read the schema.
    """

    min_tokens = 1

    def __init__(self, tokens: JsonTokens, schema: Mapping[str, Any]) -> None:
        matcher = tokens.matcher
        self._tokens = tokens
        self._grammar = matcher.grammar_from_json_schema(json.dumps(schema), overrides=_SPACING)
        self._start = matcher(tokens.compiled, self._grammar, log_level=0)
        if self._start.is_error():
            raise ConfigError(f"json_schema cannot be followed: {_reason(self._start)}")

    def start(self) -> Any:
        return self._start

    def allowed(self, state: Any, room: int) -> Tensor:
        vocab = self._tokens.vocab
        mask = torch.zeros(vocab.size, dtype=torch.bool)
        if state.is_stopped() and not state.is_error():
            mask[vocab.eos] = True
            return mask
        bits = np.frombuffer(state.compute_bitmask(), np.uint8)
        found = np.unpackbits(bits, bitorder="little")[: vocab.size].astype(bool)
        mask[: len(found)] = torch.from_numpy(found)
        if state.is_error() or not found.any():
            raise ConfigError(
                "json_schema leaves nothing to write that the vocabulary can spell "
                f"({_reason(state)}); simplify it"
            )
        return mask

    def ample_room(self, state: Any) -> int:
        return 1

    def advance(self, state: Any, token: int) -> Any:
        after = state.deep_copy()
        after.consume_token(token)
        return after


def _reason(matcher: Any) -> str:
    return " ".join(matcher.get_error().split())[:200] or "no token follows"


def require_schema(schema: object) -> None:
    """Raise ConfigError unless a value is a JSON schema of bounded size."""
    if not isinstance(schema, Mapping):
        raise ConfigError(f"json_schema must be an object of JSON, got {type(schema).__name__}")
    try:
        text = json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"json_schema must be JSON, but {str(error)[:200]}") from error
    if len(text) > MAX_SCHEMA_CHARACTERS:
        raise ConfigError(
            f"json_schema must have at most {MAX_SCHEMA_CHARACTERS} characters, got {len(text)}"
        )
