"""Which models and adapters a server offers, by the names that its user states."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from paligemma.errors import ConfigError
from paligemma.serve.options import num_bytes

if TYPE_CHECKING:
    from paligemma.pipeline.paligemma import PaliGemma
    from paligemma.serve.models import ModelSpec

_QUANT = re.compile(r"(?P<model>.+?):(?P<quant>(?:int4|int8|fp8|bf16|nf4)\b.*)")


@dataclass(frozen=True, kw_only=True)
class Named:
    """A model by its name, and the keywords of `PaliGemma.from_pretrained`."""

    name: str
    options: Mapping[str, Any]

    def load(self) -> PaliGemma:
        """Load the model; torch is imported here and not before."""
        from paligemma.pipeline.paligemma import PaliGemma

        return PaliGemma.from_pretrained(self.name, **self.options)


Load: TypeAlias = "Callable[[Named], PaliGemma]"


@dataclass(frozen=True, kw_only=True)
class Offered:
    """Models in order, the default first.

    Attributes:
        models: by the name under which they are offered, with their adapters among the options.
        adapters: of each model, name -> folder.
        bounds: for the options of the server.
    """

    models: Mapping[str, Named]
    adapters: Mapping[str, Mapping[str, str]]
    bounds: Mapping[str, int]

    @classmethod
    def of(
        cls,
        models: Sequence[str],
        adapters: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
        bounds: Mapping[str, int] | None = None,
    ) -> Offered:
        """What some texts name.

        Args:
            models: each as MODEL or MODEL:QUANT.
            adapters: each as DIR, NAME=DIR or NAME@MODEL=DIR; of the first model unless one is
                named.
            options: how all models are loaded, keywords of `PaliGemma.from_pretrained`.

        Raises:
            ConfigError: a name that stands twice, or an adapter of a model that is not offered.
        """
        found: dict[str, tuple[str, dict[str, Any]]] = {}
        for name in models:
            if name in found:
                raise ConfigError(f"every model is named once, got --model {name:.100} twice")
            parts = _QUANT.fullmatch(name)
            quant = {"quant": parts["quant"]} if parts else {}
            found[name] = parts["model"] if parts else name, {**(options or {}), **quant}
        of_models: dict[str, dict[str, str]] = {name: {} for name in found}
        for text in adapters:
            name, base, folder = _adapter(text, models)
            if base not in found:
                raise ConfigError(
                    f"adapter {name:.100} is for {base:.100}, which is not served; name it with "
                    f"--model, or one of {', '.join(models):.200}"
                )
            if name in found or any(name in own for own in of_models.values()):
                raise ConfigError(
                    f"every model and adapter has a name of its own, got {name:.100} twice; name "
                    "it with --adapter NAME=DIR"
                )
            of_models[base][name] = folder
        return cls(
            models={
                name: Named(name=model, options=own | _if_any(adapters=of_models[name]))
                for name, (model, own) in found.items()
            },
            adapters=of_models,
            bounds=bounds or {},
        )

    def specs(self, load: Load = Named.load) -> list[ModelSpec]:
        """For the server.

        Args:
            load: loads a model.
        """
        from paligemma.serve.models import ModelSpec

        return [
            ModelSpec(
                name=name,
                load=partial(load, model),
                adapters={adapter: adapter for adapter in self.adapters[name]},
                quant=model.options.get("quant"),
            )
            for name, model in self.models.items()
        ]


def _if_any(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value}


def _adapter(text: str, names: Sequence[str]) -> tuple[str, str, str]:
    """Name, model and folder of "DIR", "NAME=DIR" or "NAME@MODEL=DIR"."""
    name, is_named, folder = text.partition("=")
    if not is_named:
        name, folder = Path(text).name, text
    name, is_of_other, base = name.partition("@")
    if is_of_other:
        # Names of models may have a "=" themselves, as tiny:int4,head=bf16.
        rest = text.partition("@")[2]
        whole = [one for one in names if rest.startswith(f"{one}=")]
        if whole:
            base = max(whole, key=len)
            folder = rest.removeprefix(f"{base}=")
    if not (name and folder):
        raise ConfigError(
            f"an adapter is served as --adapter NAME=DIR or NAME@MODEL=DIR, got {text!r:.100}"
        )
    return name, base or names[0], folder


# Keywords of loading that are numbers.
_NUMBERS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("attn_softcap", "final_softcap"), float),
    **dict.fromkeys(("image_size_px", "sliding_window"), int),
    "picture_cache_bytes": partial(num_bytes, lowest=0),
}


def loading_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of `PaliGemma.from_pretrained` from texts, as of a command line.

    Raises:
        ConfigError: an unknown keyword, or a value that does not fit.
    """
    from paligemma.pipeline.habits import for_loading
    from paligemma.pipeline.loading import LoadOptions
    from paligemma.pipeline.options import chosen

    found = dict(values)
    for name in found.keys() & _NUMBERS.keys():
        try:
            found[name] = _NUMBERS[name](found[name])
        except (TypeError, ValueError):
            raise ConfigError(f"{name} is a number, got {found[name]!r:.100}") from None
    chosen(LoadOptions, for_loading(found))
    return found
