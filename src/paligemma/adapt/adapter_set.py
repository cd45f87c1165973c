"""Several adapters of one model by name, attached in turn."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import torch
from torch import nn

from paligemma.adapt.lora import Adapter, attach, detach
from paligemma.errors import ConfigError


class AdapterSet:
    """Named adapters of one model, of which at most one is attached at a time.

    Attaching takes milliseconds and copies no weights. As with the model itself, callers in several
    threads take turns.

    Args:
        model: without an adapter of the set attached; without any names it is left as it is.
        adapters: name -> adapter.
    """

    def __init__(self, model: nn.Module, adapters: Mapping[str, Adapter] | None = None) -> None:
        self._model = model
        self._adapters = dict(adapters or {})
        self._attached: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._adapters)

    def require(self, name: str | None) -> None:
        """Raise ConfigError unless it is None, the model itself, or one of the names."""
        if name is None or name in self._adapters:
            return
        if not self._adapters:
            raise ConfigError(
                f"an adapter is named where the model was loaded with adapters={{name: folder}}, "
                f"got {name!r:.100} for a model without"
            )
        near = difflib.get_close_matches(name, self._adapters, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"the adapter must be one of {', '.join(self._adapters)[:200]}, or None for the model "
            f"itself, got {name!r:.100}{hint}"
        )

    def of_pictures(self, name: str | None) -> str | None:
        """The adapter that soft tokens depend on: this one if it changes the tower or projector."""
        adapter = None if name is None else self._adapters[name]
        changed = () if adapter is None else (*adapter.updates, *adapter.layers)
        return name if any(not layer.startswith("text.") for layer in changed) else None

    def use(self, name: str | None) -> None:
        """Attach an adapter; None gives the model its own layers back.

        Raises:
            ConfigError: none has the name.
        """
        self.require(name)
        if name == self._attached:
            return
        with torch.inference_mode(False):
            if name is None:
                detach(self._model)
            else:
                attach(self._model, self._adapters[name])
        self._attached = name
