"""How an answer is written: the options of every decoder, and the rules their values obey."""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import TypeVar

import numpy as np
import torch

from paligemma.errors import ConfigError
from paligemma.generate.sampling import Greedy, Sampler
from paligemma.vocab import Vocab

# What probabilities are over: every token, or those that the row's grammar allows.
PROBABILITIES = ("vocabulary", "allowed")
KV_CACHE_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.int8}
# The context that Gemma was trained on. A longer answer is a mistake, and its cache is allocated in
# advance.
MAX_NEW_TOKENS = 8192
MAX_BEAMS = 64
MAX_SAMPLES = 256
MAX_ALPHA = 5.0
MAX_ALTERNATIVES = 20
MAX_SEED = 2**63


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """How to write one answer token by token.

    Attributes:
        max_new_tokens: bound of the answer, EOS included.
        sampler: one of `paligemma.generate.sampling`.
        banned_ids: ids that are never chosen; their probability mass stays in the
            log-probabilities.
        kv_cache_dtype: "bfloat16", as in the original, "float32", or "int8" with a scale a token
            and key/value head.
        record_loc_probs: keep the probabilities of all 1,024 location tokens wherever the answer
            contains one.
        num_alternatives: of a queue: how many of the most probable tokens it tells of beside each
            that is chosen, at most 20.
        probabilities: "vocabulary" reports those of the model without a grammar; "allowed" those
            among the tokens that the grammar allows, for which a step need not compute the logits
            of others. Without a grammar the two are the same.
        eos_look_behind: number of steps by which the check for the end may lag, so that a GPU does
            not wait for the host; at least one on a GPU. It costs that many steps at the end and
            changes no answer.
    """

    max_new_tokens: int = 128
    sampler: Sampler = field(default_factory=Greedy)
    banned_ids: tuple[int, ...] = ()
    kv_cache_dtype: str = "bfloat16"
    record_loc_probs: bool = False
    seed: int = 0
    eos_look_behind: int = 0
    num_alternatives: int = 0
    probabilities: str = PROBABILITIES[0]

    def __post_init__(self) -> None:
        check_probabilities(self.probabilities)
        check_bounds(self.max_new_tokens, self.kv_cache_dtype)
        require_seed(self.seed)
        if self.eos_look_behind < 0:
            raise ConfigError(
                f"eos_look_behind must be 0 or more steps, got {self.eos_look_behind}"
            )
        require_whole("num_alternatives", self.num_alternatives)
        if not 0 <= self.num_alternatives <= MAX_ALTERNATIVES:
            raise ConfigError(
                f"num_alternatives must lie in 0..{MAX_ALTERNATIVES}, got {self.num_alternatives}"
            )

    def check_vocab(self, vocab: Vocab) -> None:
        """Check the options against the ids of a model.

        Raises:
            ConfigError: a banned id outside the vocabulary, or location tokens to record in a
                vocabulary without them.
        """
        for token in self.banned_ids:
            if not 0 <= token < vocab.size:
                raise ConfigError(f"banned ids must lie in 0..{vocab.size - 1}, got {token}")
        if self.record_loc_probs and not vocab.has_objects:
            raise ConfigError(
                "record_loc_probs needs location tokens, and this model's vocabulary has none; "
                "leave it off"
            )


@dataclass(frozen=True)
class LengthPenalty:
    """Divides the score of a finished hypothesis of n tokens (EOS included), so that long answers
    lose less.

    "gnmt" divides by ((5 + n) / 6)^alpha (arXiv:1609.08144, equation 14). "power" divides by
    n^alpha; with alpha = 1 that is the mean log-probability.
    """

    kind: str
    alpha: float

    def __post_init__(self) -> None:
        if self.kind not in ("gnmt", "power"):
            raise ConfigError(f"the length penalty must be gnmt or power, got {self.kind!r}")
        if not 0.0 <= self.alpha <= MAX_ALPHA:
            raise ConfigError(
                f"alpha must lie in [0, {MAX_ALPHA:g}], got {self.alpha}; 0 is no penalty"
            )

    def divisor(self, num_tokens: int) -> float:
        """The divisor of the sum of log-probabilities; it grows with the length."""
        base = (5 + num_tokens) / 6 if self.kind == "gnmt" else num_tokens
        return base**self.alpha


@dataclass(frozen=True, kw_only=True)
class BeamOptions:
    """How to search with beams.

    Attributes:
        num_beams: live hypotheses per prompt; the original uses 2 for COCO captions and 3 for
            TextCaps.
        max_new_tokens: bound of the answer, EOS included.
        length_penalty: None compares plain sums of log-probabilities, as the original does.
        kv_cache_dtype: "bfloat16", as in the original, "float32", or "int8" with a scale a token
            and key/value head.
    """

    num_beams: int
    max_new_tokens: int = 128
    length_penalty: LengthPenalty | None = None
    kv_cache_dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        check_bounds(self.max_new_tokens, self.kv_cache_dtype)
        if not 1 <= self.num_beams <= MAX_BEAMS:
            raise ConfigError(
                f"num_beams must lie in 1..{MAX_BEAMS}, got {self.num_beams}; 2 or 3 is usual"
            )

    def divisor(self, num_tokens: int) -> float:
        """The divisor of the score of a hypothesis of so many tokens."""
        return 1.0 if self.length_penalty is None else self.length_penalty.divisor(num_tokens)


@dataclass(frozen=True, kw_only=True)
class QueueOptions:
    """How many answers a queue writes side by side.

    Attributes:
        max_cache_tokens: bound of the cache: its rows times the tokens of the longest, image,
            prompt and `max_new_tokens` together.
        max_prefill_tokens: bound of the image and prompt tokens that are read in one pass, padding
            included; a single longer prompt is read alone.
        max_waiting_bytes: bound of the soft tokens that waiting rows hold; a tensor that rows
            share counts once.
        kv_cache_dtype: one of `KV_CACHE_DTYPES`; that of every row.
    """

    max_rows: int = 32
    max_cache_tokens: int = 65_536
    max_prefill_tokens: int = 16_384
    max_waiting_bytes: int = 1 << 30
    kv_cache_dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_cache_tokens", "max_prefill_tokens", "max_waiting_bytes"):
            value = getattr(self, name)
            require_whole(name, value)
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        check_kv_cache_dtype(self.kv_cache_dtype)


Options = TypeVar("Options", DecodeOptions, BeamOptions)


def per_row(options: Options | Sequence[Options], num_rows: int) -> list[Options]:
    """The options of each row of a batch: the given ones, or the same for every row.

    Raises:
        ConfigError: another number of options than of rows, or rows with caches of different
            dtypes, which cannot share one.
    """
    if not isinstance(options, Sequence):
        return [options] * num_rows
    if len(options) != num_rows:
        raise ConfigError(
            f"pass the options of all rows, or one for each of the {num_rows} rows, "
            f"got {len(options)}"
        )
    dtypes = sorted({own.kv_cache_dtype for own in options})
    if len(dtypes) > 1:
        raise ConfigError(
            f"the rows of a batch share one cache, so their kv_cache_dtype must be the same, "
            f"got {' and '.join(dtypes)}"
        )
    return list(options)


def require_whole(name: str, value: object) -> None:
    """Raise ConfigError unless a count or a seed is a whole number."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{name} must be a whole number, got {reprlib.repr(value)}")


def require_number(name: str, value: object) -> None:
    """Raise ConfigError unless a value is a number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(f"{name} must be a number, got {reprlib.repr(value)}")


def require_flag(name: str, value: object) -> None:
    """Raise ConfigError unless a value is True or False; the text "no" would count as yes."""
    if not isinstance(value, bool | np.bool_):
        raise ConfigError(f"{name} must be True or False, got {reprlib.repr(value)}")


def require_seed(value: object) -> None:
    """Raise ConfigError unless a seed is a whole number in [0, 2^63)."""
    require_whole("seed", value)
    if not 0 <= value < MAX_SEED:  # type: ignore[operator]
        raise ConfigError(f"the seed must lie in 0..{MAX_SEED - 1}, got {value}")


def check_bounds(max_new_tokens: int, kv_cache_dtype: str) -> None:
    """Check what the options of all decoders have in common.

    Raises:
        ConfigError: a length out of bounds, or an unknown cache dtype.
    """
    require_whole("max_new_tokens", max_new_tokens)
    if not 1 <= max_new_tokens <= MAX_NEW_TOKENS:
        raise ConfigError(
            f"max_new_tokens must lie in 1..{MAX_NEW_TOKENS}, got {max_new_tokens}; "
            "captions need about 64, dense detection about 512"
        )
    check_kv_cache_dtype(kv_cache_dtype)


def check_probabilities(name: object) -> None:
    """Raise ConfigError unless a name is one of `PROBABILITIES`."""
    if not isinstance(name, str) or name not in PROBABILITIES:
        raise ConfigError(
            f"probabilities must be over {' or '.join(PROBABILITIES)}, got {reprlib.repr(name)}"
        )


def check_kv_cache_dtype(kv_cache_dtype: str) -> None:
    """Raise ConfigError unless a name is a key of `KV_CACHE_DTYPES`."""
    if not isinstance(kv_cache_dtype, str) or kv_cache_dtype not in KV_CACHE_DTYPES:
        raise ConfigError(
            f"kv_cache_dtype must be one of {', '.join(KV_CACHE_DTYPES)}, got "
            f"{reprlib.repr(kv_cache_dtype)}"
        )
