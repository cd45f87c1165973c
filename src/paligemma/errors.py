"""The errors a user can cause; each message states rule, value and remedy."""

from __future__ import annotations


class PaliGemmaError(Exception):
    """Base of the errors that have a sentence; the CLI prints it and exits with 2."""


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
