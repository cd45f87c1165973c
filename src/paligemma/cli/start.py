"""A quick start: what a command that only answers need not wait for."""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

# Shape functions in Python, registered while torch is imported. Tracing and random generators need
# them, greedy answers do not; with what they import they are a quarter of torch's import time.
_SHAPE_FUNCTIONS = "torch._meta_registrations"
# Versions in which that was tested; any other is imported whole.
_TESTED = "2.13."


@contextmanager
def quick_start(*, greedy: bool) -> Iterator[None]:
    """Import and load without looking for garbage.

    Args:
        greedy: no random numbers will be drawn: import torch without its shape functions. They stay
            importable: `import torch._meta_registrations` registers them later.
    """
    gc.disable()
    try:
        if greedy and importlib.metadata.version("torch").startswith(_TESTED):
            _import_torch()
        yield
    finally:
        gc.freeze()
        gc.enable()


def _import_torch() -> None:
    if "torch" in sys.modules:
        return
    sys.modules[_SHAPE_FUNCTIONS] = ModuleType(_SHAPE_FUNCTIONS)
    try:
        torch = importlib.import_module("torch")
    finally:
        del sys.modules[_SHAPE_FUNCTIONS]
    package, _, leaf = _SHAPE_FUNCTIONS.partition(".")
    if hasattr(torch, leaf):
        delattr(sys.modules[package], leaf)
