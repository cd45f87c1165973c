"""The error for a missing optional package."""

from paligemma.errors import MissingExtraError


def missing_extra(package: str, extra: str, what: str) -> MissingExtraError:
    """Build the error to raise from an ImportError."""
    return MissingExtraError(f"{what} needs {package}; run pip install 'paligemma[{extra}]'")
