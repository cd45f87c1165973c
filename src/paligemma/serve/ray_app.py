"""Replicas of the server behind one address, as an application of Ray Serve.

serve run paligemma.serve.ray_app:build model=tiny replicas=2

Needs ray[serve]. Every replica holds the models itself; pictures are kept by the replica that
answered, so send a picture again where it answers 404 `image_not_found`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve

from paligemma.errors import ConfigError
from paligemma.serve.app import create_app
from paligemma.serve.asking import Service
from paligemma.serve.keys import Keys
from paligemma.serve.models import Models
from paligemma.serve.offered import Offered, loading_options
from paligemma.serve.options import ServerOptions, numbers, read_number

_OWN = ("model", "adapter", "replicas", "gpus", "api_key_file")


def build(args: Mapping[str, Any]) -> serve.Application:
    """The application.

    Args:
        args: texts, as of `serve run`, or the values of a YAML file.
            `model`: one or several as `paligemma serve --model` names them, the first being the
            default; a list, or a text with ";" between them.
            `adapter`: likewise, as `--adapter` names them; folders that every machine has.
            `replicas` (1), `gpus` of each (0), `api_key_file`.
            Any bound of `ServerOptions`, such as `max_rows`, and any other keyword of
            `PaliGemma.from_pretrained`, such as `quant`, goes for all models.

    Raises:
        ConfigError: a name that is none of these, or a value that does not fit.
    """
    bounds = {name: read_number(name, args[name]) for name in args if name in numbers()}
    others = {name: args[name] for name in args if name not in (*_OWN, *bounds)}
    offered = Offered.of(
        _several(args.get("model", "tiny")),
        _several(args.get("adapter", "")),
        loading_options(others),
    )
    options = ServerOptions(**bounds)  # type: ignore[arg-type]

    def make() -> FastAPI:  # a plain function, or else Ray takes it for the application itself
        return _replica(offered, options, args.get("api_key_file"))

    @serve.deployment(
        name="paligemma",
        num_replicas=int(_number(args, "replicas", 1)),
        max_ongoing_requests=options.max_waiting + options.max_rows,
        ray_actor_options={"num_gpus": _number(args, "gpus", 0)},
    )
    @serve.ingress(make)
    class Replica:
        """Answers as the server alone does."""

    return Replica.bind()  # type: ignore[attr-defined]


def _replica(offered: Offered, options: ServerOptions, api_key_file: str | None) -> FastAPI:
    """The server of one replica, in its own process."""
    service = Service.of(Models(offered.specs(), options), options)
    keys = Keys.from_file(Path(api_key_file)) if api_key_file else None
    return create_app(service, keys=keys)


def _several(names: str | Sequence[str]) -> list[str]:
    every = names.split(";") if isinstance(names, str) else names
    return [name for one in every if (name := str(one).strip())]


def _number(args: Mapping[str, Any], name: str, default: float) -> float:
    try:
        number = float(args.get(name, default))
    except (TypeError, ValueError):
        number = -1.0
    if not default <= number <= 10_000:
        raise ConfigError(f"{name} is a number from {default:g}, got {args[name]!r:.100}")
    return number
