"""The model: SigLIP tower, linear projector, Gemma decoder. Torch only: no files, no tokenizer."""

from paligemma.model.kv_cache import KVCache
from paligemma.model.paligemma import PaliGemmaModel

__all__ = ["KVCache", "PaliGemmaModel"]
