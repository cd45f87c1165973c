"""Replicas of the server behind one address, as an application of Ray Serve.

serve run paligemma.serve.ray_app:build model=tiny replicas=2

Needs ray[serve]. Every replica holds the model itself; pictures are kept by the replica that
answered, so send a picture again where it answers 404 `image_not_found`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve

from paligemma.serve.app import create_app
from paligemma.serve.asking import Service
from paligemma.serve.keys import Keys
from paligemma.serve.models import Models, ModelSpec
from paligemma.serve.options import ServerOptions


def build(args: dict[str, str]) -> serve.Application:
    """The application.

    Args:
        args: `model`, `quant` and `device` of `PaliGemma.from_pretrained`; `replicas` (1), `gpus`
            of each (0) and `api_key_file`.
    """
    options: dict[str, Any] = {key: args[key] for key in ("quant", "device") if key in args}

    def make() -> FastAPI:
        return _replica(args.get("model", "tiny"), options, args.get("api_key_file"))

    @serve.deployment(
        name="paligemma",
        num_replicas=int(args.get("replicas", "1")),
        max_ongoing_requests=ServerOptions().max_waiting + ServerOptions().max_rows,
        ray_actor_options={"num_gpus": float(args.get("gpus", "0"))},
    )
    @serve.ingress(make)
    class Replica:
        """Answers as the server alone does."""

    return Replica.bind()  # type: ignore[attr-defined]


def _replica(model: str, options: dict[str, Any], api_key_file: str | None) -> FastAPI:
    """The server of one replica, in its own process."""
    from paligemma.pipeline.paligemma import PaliGemma

    bounds = ServerOptions(allowed_hosts=None)
    spec = ModelSpec(
        name=model,
        load=partial(PaliGemma.from_pretrained, model, **options),
        quant=options.get("quant"),
    )
    service = Service.of(Models([spec], bounds), bounds)
    keys = Keys.from_file(Path(api_key_file)) if api_key_file else None
    return create_app(service, keys=keys)
