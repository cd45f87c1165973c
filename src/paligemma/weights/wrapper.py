"""Models of which PaliGemma is a part, with layers beside it."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from paligemma.errors import ConfigError

# Models around PaliGemma: model_type -> field of config.json with PaliGemma's own.
WRAPPERS = {"colpali": "vlm_config"}


def without_wrapper(raw: Mapping[str, Any]) -> dict[str, Any]:
    """PaliGemma's part of the config of a model that has a layer beside it; other configs as they
    are.

    Raises:
        ConfigError: the part is no object.
    """
    field = WRAPPERS.get(str(raw.get("model_type")))
    if field is None:
        return dict(raw)
    inner = raw.get(field)
    if not isinstance(inner, dict):
        raise ConfigError(
            f"{field} of config.json must be an object, got {reprlib.repr(inner)}; use the "
            "config.json that was published with the weights"
        )
    return inner


@dataclass(frozen=True, kw_only=True)
class Wrapper:
    """A model around PaliGemma, with layers beside it, as it is written.

    Attributes:
        prefix: what stands in front of PaliGemma's names.
        field: of config.json with PaliGemma's own.
        config: other fields of config.json.
        tensors: those beside PaliGemma's, by name.
    """

    prefix: str
    field: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
