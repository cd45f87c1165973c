"""The routes of a Label Studio ML backend, so that annotators begin with what the model found.

Label Studio is given the address http://HOST:PORT/label-studio, or /label-studio/NAME for a model
or adapter by its name; what it sends and expects is that of label_studio_ml/api.py.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from xml.etree import ElementTree

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, ValidationError

from paligemma.errors import PaliGemmaError
from paligemma.outputs.brush import brush_rle
from paligemma.outputs.detections import Detections
from paligemma.outputs.types import Detection
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.pipeline.question import Question
from paligemma.processing import prompts
from paligemma.serve.asking import Answered, Service
from paligemma.serve.bodies import read_json, validation_error
from paligemma.serve.errors import ServeError, as_serve_error
from paligemma.serve.job import too_slow
from paligemma.serve.openapi import answers, body_of

MAX_CONFIG_CHARS = 100_000
MAX_TASKS = 100
MAX_QUESTIONS = 400  # of one request, each tag of the interface in each task
# Tasks of one request that are asked side by side.
_AT_ONCE = 8
_TASKS = {"RectangleLabels": "detect", "BrushLabels": "segment"}
# Names of uploads, below its folder `media`, and of local storage, below its document root.
_OWN_PATH = re.compile(r"/data/(?:local-files/\?d=/*|(?=upload/))(.+)", re.DOTALL)


class LabelTask(BaseModel):
    """A task; other fields are ignored."""

    data: dict[str, Any]


class PredictRequest(BaseModel):
    """What Label Studio wants labelled; pictures as in a chat, data URLs or base64 for one."""

    tasks: list[LabelTask] = Field(max_length=MAX_TASKS)
    label_config: str = Field(max_length=MAX_CONFIG_CHARS)


class SetupRequest(BaseModel):
    """A project that will ask."""

    label_schema: str = Field(alias="schema", max_length=MAX_CONFIG_CHARS)


class Prediction(BaseModel):
    """What was found in one task, in Label Studio's words; `error` says why nothing could be."""

    result: list[dict[str, Any]]
    score: float
    model_version: str
    error: str | None = None


class PredictBody(BaseModel):
    """A prediction for each task."""

    results: list[Prediction]


class SetupBody(BaseModel):
    """The model that answers."""

    model_version: str


BODIES = (PredictRequest, PredictBody, SetupRequest, SetupBody)


@dataclass(frozen=True, kw_only=True)
class Control:
    """A tag of the labelling interface that this family can fill.

    Attributes:
        kind: "RectangleLabels" or "BrushLabels".
        source: field of a task's data that holds the picture.
        labels: what the model is asked for -> the label of the interface.
    """

    kind: str
    from_name: str
    to_name: str
    source: str
    labels: dict[str, str]


def controls_of(config: str) -> list[Control]:
    """The rectangles and brushes of a labelling interface.

    A label is asked for by its `predicted_values`, where it has some, or else by its `value`.

    Raises:
        ServeError: no XML, with a document type, or without such tags.
    """
    try:
        if "<!" in config.replace("<!--", ""):  # entities and document types, but no remarks
            raise ServeError("a labelling interface has no document type; leave it out")
        root = ElementTree.fromstring(config)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise ServeError(
            f"the labelling interface is not XML: {error!s:.100}", param="label_config"
        ) from None
    sources = {
        tag.get("name"): tag.get("value", "")[1:]
        for tag in root.iter("Image")
        if tag.get("value", "").startswith("$")
    }
    found = []
    for kind in _TASKS:
        for tag in root.iter(kind):
            labels: dict[str, str] = {}
            for label in tag.iter("Label"):
                value = label.get("value", "").strip()
                asked = label.get("predicted_values") or value
                labels |= {one.strip(): value for one in asked.split(",") if one.strip()}
            source = sources.get(tag.get("toName"))
            if labels and source and tag.get("name"):
                found.append(
                    Control(
                        kind=kind,
                        from_name=tag.get("name", ""),
                        to_name=tag.get("toName", ""),
                        source=source,
                        labels=labels,
                    )
                )
    if not found:
        raise ServeError(
            "a labelling interface needs RectangleLabels or BrushLabels with labels, for an Image "
            "whose value is a field of the task, got none; add one",
            param="label_config",
        )
    return found


def label_studio_routes(service: Service) -> APIRouter:
    """/label-studio/health, /setup and /predict, of the default model and of each by its name."""
    router = APIRouter(tags=["label studio"], prefix="/label-studio")

    async def setup(request: Request, model: str | None = None) -> dict[str, str]:
        wanted = await _fields(request, SetupRequest)
        controls_of(wanted.label_schema)
        name = service.models.default if model is None else model
        service.models.spec(name)
        return {"model_version": name}

    async def predict(request: Request, model: str | None = None) -> dict[str, Any]:
        wanted = await _fields(request, PredictRequest)
        controls = controls_of(wanted.label_config)
        num_questions = len(wanted.tasks) * len(controls)
        if num_questions > MAX_QUESTIONS:
            raise ServeError(
                f"a request may have {MAX_QUESTIONS} questions, got {len(wanted.tasks)} tasks with "
                f"{len(controls)} tags each; send fewer tasks",
                param="tasks",
            )
        places = asyncio.Semaphore(_AT_ONCE)
        deadline = asyncio.get_running_loop().time() + service.options.answer_s

        async def one(task: LabelTask) -> dict[str, Any] | PaliGemmaError:
            try:
                async with asyncio.timeout_at(deadline), places:
                    return await _prediction(service, model, request.state.client, task, controls)
            except TimeoutError:
                return too_slow(service.options)
            except PaliGemmaError as error:
                return error

        found = await asyncio.gather(*map(one, wanted.tasks))
        errors = [error for error in found if isinstance(error, PaliGemmaError)]
        if errors and len(errors) == len(found):
            raise errors[0]
        name = service.models.default if model is None else model
        return {
            "results": [
                {
                    "result": [],
                    "score": 0.0,
                    "model_version": name,
                    "error": str(as_serve_error(one)),
                }
                if isinstance(one, PaliGemmaError)
                else one
                for one in found
            ]
        }

    async def health() -> dict[str, str]:
        return {"status": "UP"}

    for prefix in ("", "/{model:path}"):
        is_shown = not prefix
        router.add_api_route(
            f"{prefix}/health",
            health,
            methods=["GET"],
            include_in_schema=is_shown,
            summary="Whether the backend is there.",
        )
        router.add_api_route(
            f"{prefix}/setup",
            setup,
            methods=["POST"],
            include_in_schema=is_shown,
            summary="Check the labelling interface of a project.",
            responses=answers(SetupBody),
            openapi_extra=body_of(SetupRequest),
        )
        router.add_api_route(
            f"{prefix}/predict",
            predict,
            methods=["POST"],
            include_in_schema=is_shown,
            summary="Label tasks in advance.",
            responses=answers(PredictBody),
            openapi_extra=body_of(PredictRequest),
        )
    return router


async def _fields(request: Request, kind: type[Any]) -> Any:
    try:
        return kind.model_validate(read_json(await request.body()), strict=True)
    except ValidationError as error:
        raise validation_error(error, kind) from None


async def _prediction(
    service: Service, model: str | None, client: str, task: LabelTask, controls: Sequence[Control]
) -> dict[str, Any]:
    """What the model finds for all tags in one task."""
    results: list[dict[str, Any]] = []
    name = ""
    for control in controls:
        shown = task.data.get(control.source)
        if not isinstance(shown, str):
            raise ServeError(
                f"a task needs a picture in {control.source!r:.60}; add it", param="tasks"
            )
        questions = _question_of(control)
        asking = service.ask(
            model=model,
            client=client,
            pictures=[await _picture(service, shown)],
            questions=questions,
            follows=False,
        )
        async with asking as one:
            name = one.lease.name
            async for event in one.events:
                if isinstance(event, Answered) and isinstance(event.result, Detections):
                    results += await service.run(partial(_results, control, event.result))
    scores = [one["score"] for one in results]
    score = sum(scores) / len(scores) if scores else 0.0
    return {"result": results, "score": score, "model_version": name}


def _question_of(control: Control) -> Any:
    labels = list(control.labels)
    is_box = _TASKS[control.kind] == "detect"
    prompt = prompts.detect_prompt(labels) if is_box else prompts.segment_prompt(labels)

    def make(model: PaliGemma, adapter: str | None) -> list[Question]:
        return [model.question(prompt, adapter=adapter)]

    return make


async def _picture(service: Service, text: str) -> bytes:
    if text.startswith("/"):
        own = _OWN_PATH.fullmatch(text)
        if own is None or not service.options.media_roots:
            raise ServeError(
                "pictures of tasks come as data URLs, from a host that --allow-url names, or from "
                "a folder that --media-root names, got a path of Label Studio's own; start the "
                "server with --media-root and the folder in which Label Studio keeps it",
                code="file_off",
                param="tasks",
            )
        text = f"file:{own[1]}"
    return (await service.sources.read([text], "tasks"))[0]


def _results(control: Control, found: Detections) -> list[dict[str, Any]]:
    """Regions in Label Studio's words; objects of labels that were not asked for are left out."""
    results = []
    for item in found:
        label = control.labels.get(item.label or "")
        value = _value(control.kind, item)
        if label is not None and value is not None:
            kind = control.kind.lower()
            results.append(
                {
                    "id": uuid.uuid4().hex[:10],
                    "type": kind,
                    "from_name": control.from_name,
                    "to_name": control.to_name,
                    "original_width": item.image_wh[0],
                    "original_height": item.image_wh[1],
                    "image_rotation": 0,
                    "value": {**value, kind: [label]},
                    "score": item.score or 0.0,
                }
            )
    return results


def _value(kind: str, item: Detection) -> dict[str, Any] | None:
    """The box in per cent of the picture, or the mask; None where there is none."""
    if kind == "BrushLabels":
        return None if item.mask is None else {"format": "rle", "rle": brush_rle(item.mask)}
    if not item.is_valid:
        return None
    y0, x0, y1, x1 = (min(max(100.0 * edge, 0.0), 100.0) for edge in item.box_yxyx)
    return {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "rotation": 0}
