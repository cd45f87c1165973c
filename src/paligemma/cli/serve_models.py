"""Which models and adapters a server offers; as options of its command."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click

from paligemma.cli.options import DEFAULT_MODEL, LOADING, gathered_options
from paligemma.cli.start import without_garbage_collection
from paligemma.errors import ConfigError

if TYPE_CHECKING:
    from paligemma.pipeline.paligemma import PaliGemma
    from paligemma.serve.offered import Named, Offered


def load_aloud(model: Named) -> PaliGemma:
    """Load a model, and say so on standard error."""
    quant = f":{model.options['quant']}" if "quant" in model.options else ""
    name = f"{model.name}{quant}"
    click.echo(f"paligemma: loading {name} …", err=True)
    before = time.monotonic()
    with without_garbage_collection():
        loaded = model.load()
    click.echo(f"paligemma: {name} is loaded, in {time.monotonic() - before:.1f} s", err=True)
    return loaded


class _Bytes(click.ParamType):
    name = "bytes"

    def __init__(self, lowest: int = 1) -> None:
        self._lowest = lowest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes; see `num_bytes`."""
        from paligemma.serve.options import num_bytes

        try:
            return num_bytes(value, lowest=self._lowest)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


def _choose(values: dict[str, Any]) -> Offered:
    from paligemma.serve.offered import Offered

    asked = values.pop("model_names")
    named, bound = values.pop("named_adapters"), values.pop("max_model_bytes")
    names = list(asked) or [os.environ.get("PALIGEMMA_MODEL") or DEFAULT_MODEL]
    stated = {key: value for key, value in values.items() if value is not None}
    bounds = {} if bound is None else {"max_model_bytes": bound}
    try:
        return Offered.of(names, named, stated, bounds)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None


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
        click.option(
            "--picture-cache",
            "picture_cache_bytes",
            type=_Bytes(0),
            metavar="SIZE",
            help="Encoded pictures that each model keeps, so that asking one again does not encode "
            "it again; 64MB by default, 0 keeps none.",
        ),
        *LOADING,
    ],
    _choose,
)
