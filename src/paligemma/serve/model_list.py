"""/v1/models: what a server offers, by name."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from paligemma.serve.answers import ModelBody, ModelList
from paligemma.serve.asking import Service
from paligemma.serve.openapi import answers
from paligemma.serve.tasks import TASKS


def model_routes(service: Service) -> APIRouter:
    """/v1/models and /v1/models/{name}."""
    router = APIRouter(tags=["models"])

    @router.get(
        "/v1/models", summary="The models by name.", responses=answers(ModelList, posts=False)
    )
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(service, one) for one in service.models.names]}

    @router.get(
        "/v1/models/{name:path}", summary="One model.", responses=answers(ModelBody, posts=False)
    )
    async def model(name: str) -> dict[str, Any]:
        return _model(service, name)

    return router


def _model(service: Service, name: str) -> dict[str, Any]:
    spec, adapter = service.models.spec(name)
    loaded = service.models.loaded(name)
    facts: dict[str, Any] = {
        "quant": spec.quant,
        "adapter": adapter,
        "tasks": list(TASKS),
        "loaded": loaded is not None,
        "default": name == service.models.default,
    }
    if loaded is not None:
        model = loaded.model
        facts |= {
            "image_size_px": model.processor.image_size_px,
            "num_parameters": loaded.num_parameters,
            "has_masks": model.mask_codec is not None,
        }
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "paligemma",
        "paligemma": facts,
    }
