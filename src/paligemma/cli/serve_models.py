"""Which models and adapters a server offers; as options of its command."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paligemma.cli.options import DEFAULT_MODEL, LOADING, ModelChoice, gathered_options

if TYPE_CHECKING:
    from paligemma.pipeline.paligemma import PaliGemma
    from paligemma.serve.models import ModelSpec

_QUANT = re.compile(r"(?P<model>.+?):(?P<quant>(?:int4|int8|fp8|bf16|nf4)\b.*)")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True, kw_only=True)
class Offered:
    """Models in order, the default first.

    Attributes:
        models: by the name under which they are offered.
        adapters: of each model, name -> folder.
        max_model_bytes: None is the server's default.
    """

    models: dict[str, ModelChoice]
    adapters: dict[str, dict[str, str]]
    max_model_bytes: int | None

    @property
    def bounds(self) -> dict[str, int]:
        """For the options of the server."""
        return {} if self.max_model_bytes is None else {"max_model_bytes": self.max_model_bytes}

    def specs(self) -> list[ModelSpec]:
        """For the server."""
        from paligemma.serve.models import ModelSpec

        return [
            ModelSpec(
                name=name,
                load=partial(_load, name, model, self.adapters[name]),
                adapters={adapter: adapter for adapter in self.adapters[name]},
                quant=model.options.get("quant"),
            )
            for name, model in self.models.items()
        ]


def _load(name: str, model: ModelChoice, adapters: dict[str, str]) -> PaliGemma:
    click.echo(f"paligemma: loading {name} …", err=True)
    before = time.monotonic()
    options = {**model.options, "adapters": adapters} if adapters else model.options
    loaded = ModelChoice(name=model.name, options=options).load()
    click.echo(f"paligemma: {name} is loaded, in {time.monotonic() - before:.1f} s", err=True)
    return loaded


class _Bytes(click.ParamType):
    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes of "12GB", "500M" or "1000000"."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([kKmMgGtT]?)[bB]?\s*", value)
        number = int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
        if not 0 < number < 1 << 62:
            self.fail(
                f"a number of bytes is written as 12GB or 500MB, got {value!r:.50}", param, ctx
            )
        return number


def _choose(values: dict[str, Any]) -> Offered:
    asked = values.pop("model_names")
    named, bound = values.pop("named_adapters"), values.pop("max_model_bytes")
    names = list(asked) or [os.environ.get("PALIGEMMA_MODEL") or DEFAULT_MODEL]
    stated = {key: value for key, value in values.items() if value is not None}
    models: dict[str, ModelChoice] = {}
    for name in names:
        if name in models:
            raise click.UsageError(f"every model is named once, got --model {name:.100} twice")
        found = _QUANT.fullmatch(name)
        model, quant = (found["model"], {"quant": found["quant"]}) if found else (name, {})
        models[name] = ModelChoice(name=model, options={**stated, **quant})
    adapters: dict[str, dict[str, str]] = {name: {} for name in models}
    for text in named:
        name, base, folder = _adapter(text, names)
        if base not in models:
            raise click.UsageError(
                f"adapter {name:.100} is for {base:.100}, which is not served; name it with "
                f"--model, or one of {', '.join(names):.200}"
            )
        if name in models or any(name in own for own in adapters.values()):
            raise click.UsageError(
                f"every model and adapter has a name of its own, got {name:.100} twice; name it "
                "with --adapter NAME=DIR"
            )
        adapters[base][name] = folder
    return Offered(models=models, adapters=adapters, max_model_bytes=bound)


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
        raise click.UsageError(
            f"an adapter is served as --adapter NAME=DIR or NAME@MODEL=DIR, got {text!r:.100}"
        )
    return name, base or names[0], folder


models_options = gathered_options(
    "offered",
    [
        click.option(
            "--model",
            "model_names",
            multiple=True,
            metavar="MODEL[:QUANT]",
            help='"tiny" (default), a hub id, a folder, or an .npz file; as tiny:int8, in fewer '
            "bits than --quant says for the others. May be repeated: the first is the default and "
            "loaded at once, another when it is first asked for.",
        ),
        click.option(
            "--adapter",
            "named_adapters",
            multiple=True,
            metavar="NAME=DIR",
            help="LoRA adapter, or a run of `train`, offered as a model of this name; of the first "
            "model, or as NAME@MODEL=DIR of another. May be repeated.",
        ),
        click.option(
            "--max-model-bytes",
            type=_Bytes(),
            metavar="SIZE",
            help="Forget models that were not asked for lately, beyond 12GB or so of weights.",
        ),
        *LOADING,
    ],
    _choose,
)
