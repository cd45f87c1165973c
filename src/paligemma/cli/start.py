"""A quick start: what a command that only answers need not wait for."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

# Shape functions in Python, registered while torch is imported, which only tracing and compiling
# use. They and what they import are a quarter of torch's import time.
_SHAPE_FUNCTIONS = "torch._meta_registrations"


@contextmanager
def quick_start() -> Iterator[None]:
    """Import and load without looking for garbage, and torch without its shape functions.

    The shape functions stay importable: `import torch._meta_registrations` registers them later.
    """
    gc.disable()
    try:
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
