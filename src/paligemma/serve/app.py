"""The application: routes, errors and the page around one service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from paligemma.errors import PaliGemmaError
from paligemma.serve import described
from paligemma.serve.answers import ChatBody, DetectionsBody, ModelList, TextBody
from paligemma.serve.asking import Service
from paligemma.serve.chat import chat_routes
from paligemma.serve.chat_fields import ChatRequest
from paligemma.serve.errors import ServeError, as_serve_error
from paligemma.serve.gate import Gate
from paligemma.serve.keys import Keys
from paligemma.serve.label_studio import BODIES as LABEL_STUDIO_BODIES
from paligemma.serve.label_studio import label_studio_routes
from paligemma.serve.metrics import CONTENT_TYPE, Metrics
from paligemma.serve.middleware import Front
from paligemma.serve.model_list import model_routes
from paligemma.serve.native import native_routes
from paligemma.serve.openapi import describe
from paligemma.serve.page_document import page_document
from paligemma.serve.search import BODIES as SEARCH_BODIES
from paligemma.serve.search import search_routes
from paligemma.serve.tasks import TASKS

PAGE = Path(__file__).with_name("page")


def create_app(
    service: Service, *, keys: Keys | None = None, loads_first: bool = True, has_page: bool = True
) -> FastAPI:
    """An application that answers with a service; the service computes while it runs.

    Args:
        keys: who may ask; None lets everyone.
        loads_first: whether the default model is loaded before the first request is taken, or else
            beside: /ready tells then when it is there, and requests wait for it.
    """

    async def load() -> None:
        async with service.models.lease(None):  # the default model is there before anyone asks
            app.state.is_ready = True

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        app.state.loading = loading = asyncio.create_task(load())
        if loads_first:
            await loading
        yield
        app.state.is_ready = False
        service.close()

    # The page of FastAPI loads scripts from elsewhere.
    app = FastAPI(title="PaliGemma", lifespan=lifespan, docs_url=None, redoc_url=None)
    fields: list[type[BaseModel]] = [ChatRequest, *(task.fields for task in TASKS.values())]
    bodies: list[type[BaseModel]] = [
        ChatBody,
        ModelList,
        DetectionsBody,
        TextBody,
        *LABEL_STUDIO_BODIES,
        *SEARCH_BODIES,
    ]
    describe(app, [*fields, *bodies])
    app.state.is_ready = False
    metrics = Metrics(service.worker, service.models)
    app.state.gate = gate = Gate(service.options, keys)
    app.include_router(chat_routes(service))
    app.include_router(model_routes(service))
    app.include_router(native_routes(service))
    app.include_router(label_studio_routes(service))
    app.include_router(search_routes(service))
    _add_errors(app)

    app.add_middleware(Front, options=service.options, gate=gate, seen=metrics.saw)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(described.page(app.openapi()))

    @app.get("/docs.css", include_in_schema=False)
    async def docs_style() -> Response:
        return Response(described.STYLE, media_type="text/css")

    @app.get("/health", tags=["server"], summary="Whether the process lives.")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get(
        "/ready",
        tags=["server"],
        summary="Whether requests are taken.",
        responses={503: {"description": "Not yet, or no longer."}},
    )
    async def ready() -> Response:
        is_ready = app.state.is_ready and service.worker.is_alive and not gate.is_draining
        return JSONResponse({"ready": is_ready}, status_code=200 if is_ready else 503)

    @app.get(
        "/metrics",
        tags=["server"],
        summary="Counts and times, for Prometheus.",
        response_class=PlainTextResponse,
    )
    async def counts() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    if has_page and (PAGE / "index.html").is_file():
        app.mount("/static", StaticFiles(directory=PAGE), name="static")

        document = page_document(PAGE)

        @app.get("/", include_in_schema=False)
        async def page() -> Response:
            return document

    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        path, headers = request.url.path[:100], dict(error.headers or {})
        message, code = str(error.detail), "http_error"
        if error.status_code == 404:
            message, code = f"there is nothing at {path!r}; /docs says what is where", "not_found"
        if error.status_code == 405:
            allowed, code = headers.get("Allow", "another method"), "method_not_allowed"
            message = f"{path!r} takes {allowed}, got {request.method[:20]}"
        one = ServeError(message, status=error.status_code, code=code)
        return JSONResponse(one.body(), error.status_code, headers)

    @app.exception_handler(RequestValidationError)
    async def of_fields(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        one = ServeError(f"{first['msg']}"[:400], param=".".join(map(str, first["loc"]))[:100])
        return JSONResponse(one.body(), 400)

    @app.exception_handler(PaliGemmaError)
    async def of_ours(request: Request, error: Exception) -> Response:
        one = as_serve_error(error)
        return JSONResponse(one.body(), one.status, one.headers)
