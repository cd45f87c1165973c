"""The errors a user can cause; each message states rule, value and remedy."""

from __future__ import annotations

import re

# A path may have 4,096 characters; what is longer came from a file, and nobody reads it.
_LONG_WORD = re.compile(r"\S{4200,}")
_MAX_CHARS = 12_000


def bounded(sentence: str) -> str:
    """The sentence for a person, whatever a file made it repeat; its middle goes first."""
    sentence = _LONG_WORD.sub(lambda word: f"{word[0][:200]}...{word[0][-40:]}", sentence)
    if len(sentence) <= _MAX_CHARS:
        return sentence
    left_out = len(sentence) - _MAX_CHARS
    return f"{sentence[: _MAX_CHARS - 2_000]}... ({left_out:,} characters) ...{sentence[-2_000:]}"


class PaliGemmaError(Exception):
    """Base of the errors that have a sentence; the CLI prints it and exits with 2."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(bounded(one) if isinstance(one, str) else one for one in args))


class ConfigError(PaliGemmaError):
    """A model, training or task configuration breaks a rule."""


class ImageError(PaliGemmaError):
    """An image cannot be read, is too large, or has the wrong shape for the model."""


class PromptError(PaliGemmaError):
    """A prompt is empty, too long, or breaks the rules of its task."""


class TokenizerError(PaliGemmaError):
    """A tokenizer file is unreadable or its special ids differ from what the model expects."""


class CheckpointError(PaliGemmaError):
    """A checkpoint is unreadable, incomplete, or does not fit the model."""


class ModelNotFoundError(PaliGemmaError):
    """No model has this name, folder or file."""


class AccessError(PaliGemmaError):
    """A hub refused the download: licence not accepted, token missing, or offline."""


class MissingExtraError(PaliGemmaError):
    """An optional dependency is needed for this call."""


class DataError(PaliGemmaError):
    """A dataset row or file breaks the documented format."""


class RunError(PaliGemmaError):
    """A run failed through nothing that was asked for; the CLI exits with 1."""
