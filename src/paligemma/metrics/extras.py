"""What to say where an optional package is missing."""

from __future__ import annotations

from paligemma.errors import MissingExtraError


def missing_extra(package: str, extra: str, what: str) -> MissingExtraError:
    """The error to raise from an ImportError."""
    return MissingExtraError(f"{what} needs {package}; run pip install 'paligemma[{extra}]'")
