"""PaliGemma and PaliGemma 2 in PyTorch: a picture and a prompt in; text, boxes and masks out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
    from paligemma.batch import Batch
    from paligemma.client import Client
    from paligemma.config import PaliGemmaConfig
    from paligemma.errors import PaliGemmaError
    from paligemma.model.paligemma import PaliGemmaModel
    from paligemma.outputs.detections import Detections
    from paligemma.outputs.types import Detection, TextAnswer
    from paligemma.pipeline.options import AnswerOptions
    from paligemma.pipeline.paligemma import PaliGemma
    from paligemma.pipeline.pictures import EncodedImage
    from paligemma.processing.frames import Frames as Frames
    from paligemma.processing.processor import Processor
    from paligemma.processing.tokenizer import Tokenizer
    from paligemma.retrieval.colpali import ColPali as ColPali
    from paligemma.retrieval.index import PageIndex as PageIndex
    from paligemma.tuning.finetune import finetune
    from paligemma.weights.load import load_model

__all__ = [
    "AnswerOptions",
    "Batch",
    "Client",
    "Detection",
    "Detections",
    "EncodedImage",
    "PaliGemma",
    "PaliGemmaConfig",
    "PaliGemmaError",
    "PaliGemmaModel",
    "Processor",
    "TextAnswer",
    "Tokenizer",
    "finetune",
    "load_model",
]

# Where each name lives; importing the package alone imports neither torch nor numpy.
_HOMES = {
    "AnswerOptions": "paligemma.pipeline.options",
    "Batch": "paligemma.batch",
    "Client": "paligemma.client",
    "ColPali": "paligemma.retrieval.colpali",
    "Detection": "paligemma.outputs.types",
    "Detections": "paligemma.outputs.detections",
    "EncodedImage": "paligemma.pipeline.pictures",
    "Frames": "paligemma.processing.frames",
    "PageIndex": "paligemma.retrieval.index",
    "PaliGemma": "paligemma.pipeline.paligemma",
    "PaliGemmaConfig": "paligemma.config",
    "PaliGemmaError": "paligemma.errors",
    "PaliGemmaModel": "paligemma.model.paligemma",
    "Processor": "paligemma.processing.processor",
    "TextAnswer": "paligemma.outputs.types",
    "Tokenizer": "paligemma.processing.tokenizer",
    "finetune": "paligemma.tuning.finetune",
    "load_model": "paligemma.weights.load",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name == "__version__":
        from importlib.metadata import version

        return version("paligemma")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
