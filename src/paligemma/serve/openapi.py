"""/openapi.json: every field, every answer and every status of every route."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from paligemma.serve.answers import ErrorBody

_REF = "#/components/schemas/{model}"
_WHY: Mapping[int, str] = {
    400: "A field, a picture or a prompt is wrong; the sentence names rule, value and remedy.",
    401: "The server has keys, and none of them came with the request.",
    403: "The request is for another host than this server.",
    404: "There is no such model, picture or address.",
    408: "The body did not arrive in time.",
    413: "The body is larger than the server takes.",
    429: "Too many requests; Retry-After says when to try again.",
    500: "The server failed; its log names the request's id.",
    501: "What was asked needs a library that the server lacks; the sentence names it.",
    503: "No place became free in time, the model does not load, or the server is stopping.",
    504: "The answer was not complete in time.",
}
_EVENT: Mapping[str, Any] = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
_OF_GET = (400, 401, 403, 404, 429, 500, 503)
_DESCRIPTION = (
    "PaliGemma and PaliGemma 2: OpenAI's API, and routes that answer with boxes, masks and scores. "
    "Pictures come as data URLs, base64 or uploads."
)


def answers(*bodies: type[BaseModel], streams: bool = False, posts: bool = True) -> dict[Any, Any]:
    """What a route may answer with: these bodies, and every error that can occur."""
    refs = [{"$ref": _REF.format(model=one.__name__)} for one in bodies]
    content: dict[str, Any] = {
        "application/json": {"schema": refs[0] if len(refs) == 1 else {"anyOf": refs}}
    }
    if streams:
        content["text/event-stream"] = {"schema": _EVENT}
    error = {"application/json": {"schema": {"$ref": _REF.format(model=ErrorBody.__name__)}}}
    statuses = _WHY if posts else _OF_GET
    found: dict[Any, Any] = {
        status: {"description": _WHY[status], "content": error} for status in statuses
    }
    return {200: {"description": "The answer.", "content": content}, **found}


def body_of(fields: type[BaseModel], *, files: Sequence[str] = ()) -> dict[str, Any]:
    """The body of a request as OpenAPI describes it.

    Args:
        files: fields that take files; a form is taken too where there are any.
    """
    schema: dict[str, Any] = {"$ref": _REF.format(model=fields.__name__)}
    content = {"application/json": {"schema": schema}}
    if files:
        content["multipart/form-data"] = {"schema": _form(fields, files)}
    return {"requestBody": {"required": True, "content": content}}


def _form(fields: type[BaseModel], files: Sequence[str]) -> dict[str, Any]:
    """The fields as those of a form: files in bytes, objects as JSON, and nothing that is null."""
    schema = fields.model_json_schema(ref_template=_REF)
    schema.pop("$defs", None)
    schema.pop("examples", None)
    schema["title"] += "Form"
    for name, one in schema["properties"].items():
        kinds = [kind for kind in one.pop("anyOf", ()) if kind.get("type") != "null"]
        if name in files:
            one.pop("examples", None)
            file = {"type": "string", "format": "binary"}
            is_list = any(kind.get("type") == "array" for kind in kinds)
            one |= {"type": "array", "items": file, "minItems": 1} if is_list else file
        elif any(kind.get("type") == "object" for kind in kinds):
            one |= {"type": "string", "contentMediaType": "application/json"}
        elif len(kinds) == 1:
            one |= kinds[0]
        elif kinds:
            one["anyOf"] = kinds
        if one.get("default", 0) is None:
            del one["default"]
    return schema


def describe(app: FastAPI, models: Sequence[type[BaseModel]]) -> None:
    """Let an application describe itself, with these models of bodies that its routes refer to."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(
                title=app.title, version=app.version, description=_DESCRIPTION, routes=app.routes
            )
            kinds = [(one, "validation") for one in (*models, ErrorBody)]
            _, definitions = models_json_schema(kinds, ref_template=_REF)  # type: ignore[arg-type]
            parts = found.setdefault("components", {})
            parts["schemas"] = definitions["$defs"]
            parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            found["security"] = [{}, {"key": []}]
            for route in found["paths"].values():
                for one in route.values():
                    one["responses"].pop("422", None)  # every fault of a field is a 400 here
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
