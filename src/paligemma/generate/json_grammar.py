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
# llguidance reads numbers as float64, which would take a larger whole number for a neighbour.
MAX_SCHEMA_NUMBER = (1 << 53) - 1
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
        try:
            self._grammar = matcher.grammar_from_json_schema(json.dumps(schema), overrides=_SPACING)
        except ValueError as error:  # half a surrogate pair, too many levels
            raise ConfigError(f"json_schema cannot be followed: {error!s:.200}") from error
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
    words = matcher.get_error().partition("<state>")[0]
    return " ".join(words.split())[:200] or "no token follows"


def require_schema(schema: object) -> None:
    """Raise ConfigError unless a value is a JSON schema of bounded size and numbers."""
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
    json.loads(text, parse_int=_followed, parse_float=_followed, parse_constant=_followed)


def _followed(number: str) -> float:
    """A number of a schema, if llguidance follows it and not a neighbour."""
    found = float(number)
    if not abs(found) <= MAX_SCHEMA_NUMBER:
        raise ConfigError(
            f"numbers of json_schema must lie within {MAX_SCHEMA_NUMBER} of 0, as larger ones are "
            f"not told apart, got {number:.30}; choose a smaller one"
        )
    return found
