"""The routes of this family's own tasks: /v1/detect, /v1/segment, /v1/caption, /v1/answer …"""

from __future__ import annotations

import base64
import io
import re
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException

from paligemma.errors import ConfigError
from paligemma.outputs.detections import Detections
from paligemma.outputs.words import object_json, token_json
from paligemma.serve.asking import Answered, Asking, Service, Shown, Token, usage
from paligemma.serve.bodies import read_json, validation_error
from paligemma.serve.errors import ServeError
from paligemma.serve.openapi import answers, body_of
from paligemma.serve.schemas import PictureFields
from paligemma.serve.streams import event_stream, sse
from paligemma.serve.tasks import TASKS, Task

_FILES = ("image", "images")
_MAX_FILES, _MAX_FIELDS = 16, 64
# Fields of a form that may come several times.
_LISTS = ("labels", "images", "choices")
_CHARSET = re.compile(r';\s*charset\s*=\s*"?([^";\s]*)')


def native_routes(service: Service) -> APIRouter:
    """The routes of all tasks."""
    router = APIRouter(tags=["tasks"])
    for name, task in TASKS.items():
        _add_route(router, service, name, task)
    return router


def _add_route(router: APIRouter, service: Service, name: str, task: Task) -> None:
    async def handle(request: Request) -> Response:
        bounds = service.options
        asked, uploads = await _fields(request, task.fields, bounds.max_body_bytes)
        client = request.state.client
        pictures = await _pictures(service, client, asked, uploads)
        made = task.questions(asked, bounds.max_new_tokens, has_picture=bool(pictures))
        asking = service.ask(
            model=asked.model,
            client=client,
            pictures=pictures,
            questions=made,
            follows=asked.stream,
            shows_objects=asked.stream and getattr(asked, "objects", False),
        )
        answer = _Answer(service, name, asked, client, pictures)
        if asked.stream:
            return await event_stream(asking, answer.streamed, error_event="error")
        async with asking as one:
            return JSONResponse(await answer.whole(one))

    router.add_api_route(
        f"/v1/{name}",
        handle,
        methods=["POST"],
        summary=task.summary,
        name=name,
        responses=answers(*task.answers, streams=True),
        openapi_extra=body_of(task.fields, files=_FILES),
    )


async def _fields(
    request: Request, kind: type[PictureFields], max_bytes: int
) -> tuple[PictureFields, list[bytes]]:
    """The checked fields of a JSON or multipart body, and its files."""
    uploads: list[bytes] = []
    content_type = request.headers.get("content-type", "").lower()
    is_form = content_type.startswith("multipart/form-data")
    if is_form:
        charset = _CHARSET.search(content_type)
        if charset and charset[1] not in ("utf-8", "utf8", "us-ascii"):
            raise ServeError(f"a form must be in UTF-8, got {charset[1]!r:.40}; send it so")
        bounds = {"max_files": _MAX_FILES, "max_fields": _MAX_FIELDS, "max_part_size": max_bytes}
        try:
            async with request.form(**bounds) as form:
                given: object = await _of_form(form, uploads, kind)
        except HTTPException as error:
            raise _broken_form(str(error.detail)) from None
    else:
        given = read_json(await request.body())
    try:
        return kind.model_validate(given, strict=not is_form), uploads
    except ValidationError as error:
        raise validation_error(error, kind) from None


def _broken_form(reason: str) -> ServeError:
    """The error of a form that Starlette refused, by the first words of its reason."""
    sentences = {
        "Too many fields": f"a form may have {_MAX_FIELDS} fields, got more; leave some out",
        "Too many files": f"a form may have {_MAX_FILES} files, got more; send fewer",
        "The Content-Disposition": "every part of a form needs a name, one has none; name it",
        "Missing boundary": "the Content-Type of a form states its boundary, this one has none; "
        "let the client set it",
    }
    for start, sentence in sentences.items():
        if reason.startswith(start):
            return ServeError(sentence)
    return ServeError(
        "the body must be a form as multipart/form-data says, with the boundary of its "
        "Content-Type, it cannot be read as one; let the client make it"
    )


async def _of_form(
    form: FormData, uploads: list[bytes], kind: type[PictureFields]
) -> dict[str, Any]:
    """The fields of a form as those of a JSON body; its files go to `uploads`."""
    values: dict[str, Any] = {}
    for key, value in form.multi_items():
        if not isinstance(value, str):
            if key not in _FILES:
                raise ServeError(_not_a_file(key, kind), param=key)
            uploads.append(await value.read())
        elif key == "json_schema":
            values[key] = read_json(value.encode(), key)
        elif key in _LISTS and key in values:
            values[key] = [*_as_list(values[key]), value]
        else:
            values[key] = [value] if key in ("images", "choices") else value
    return values


def _not_a_file(key: str, kind: type[PictureFields]) -> str:
    if key not in kind.model_fields:
        return f"no field {key!r:.50} takes a file; send it as image"
    return (
        f"{key} is text, got a file; with curl write --form-string '{key}=...', because -F ends a "
        "value at a semicolon and takes @ and < for files"
    )


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


async def _pictures(
    service: Service, client: str, asked: PictureFields, uploads: Sequence[bytes]
) -> list[bytes]:
    """The bytes of all pictures of a request."""
    texts = [*([asked.image] if asked.image else []), *(asked.images or [])]
    count = len(texts) + len(uploads) + bool(asked.image_id)
    if count > service.options.max_pictures:
        raise ServeError(
            f"a request may have {service.options.max_pictures} pictures, got {count}; send fewer",
            param="images",
        )
    found = [service.kept.find(client, asked.image_id)] if asked.image_id else []
    return [*found, *uploads, *await service.sources.read(texts, "image")]


class _Answer:
    """Makes the body of an answer."""

    def __init__(
        self,
        service: Service,
        task: str,
        asked: PictureFields,
        client: str,
        pictures: Sequence[bytes],
    ) -> None:
        self.service, self.task, self.asked = service, task, asked
        self.client, self.pictures = client, pictures
        self.id = f"{task}-{uuid.uuid4().hex}"

    def head(self, asking: Asking) -> dict[str, Any]:
        """What is known before the model writes."""
        picture = asking.job.picture
        image = None
        if picture is not None:
            kept = self.service.kept.keep(self.client, self.pictures[0])
            width, height = picture.image_wh
            image = {"id": kept, "width": width, "height": height}
        return {
            "id": self.id,
            "model": asking.lease.name,
            "task": self.task,
            "prompt": "".join(asking.job.questions[0].prefixes),
            "image": image,
        }

    async def whole(self, asking: Asking) -> dict[str, Any]:
        """The body, once all is written."""
        async for event in asking.events:
            if isinstance(event, Answered):
                return await self._body(asking, event)
        raise ServeError("the answer was cancelled", status=503, code="cancelled")

    async def streamed(self, asking: Asking) -> AsyncIterator[str]:
        """Server-sent events: start, tokens, objects, done."""
        is_begun = False
        async for event in asking.events:
            if not is_begun:
                is_begun = True
                yield sse(self.head(asking), "start")
            if isinstance(event, Token):
                data = {"id": event.token, "text": event.piece, "logprob": event.logprob}
                yield sse(data | ({"part": event.place} if event.place else {}), "token")
            elif isinstance(event, Shown):
                yield sse(object_json(event.detection), "object")
            else:
                if event.piece:
                    yield sse({"id": None, "text": event.piece, "logprob": None}, "token")
                yield sse(await self._body(asking, event), "done")

    async def _body(self, asking: Asking, event: Answered) -> dict[str, Any]:
        result, body = event.result, self.head(asking)
        if isinstance(result, Detections):
            body |= {**result.to_json(), "asked_labels": list(result.asked_labels)}
            if getattr(self.asked, "polygons", False):
                for record, item in zip(body["detections"], result, strict=True):
                    if item.region is not None:
                        record["polygons"] = [
                            ring.flatten().tolist() for ring in item.region.to_polygons()
                        ]
            if getattr(self.asked, "overlay", False):
                body["overlay"] = await self.service.run(lambda: _overlay(result))
        else:
            body |= result.to_json()
        if self.asked.tokens:
            tokenizer = asking.model.processor.tokenizer
            body["tokens"] = [
                token_json(token, logprob, tokenizer.decode)
                for one in event.written
                for token, logprob in zip(
                    one.record.ids.tolist(), one.record.logprobs.tolist(), strict=True
                )
            ]
        body["usage"] = usage(asking.num_prompt_tokens, event.num_tokens)
        body["finish_reason"] = "length" if any(one.is_cut for one in event.written) else "stop"
        return body


def _overlay(found: Detections) -> str:
    if found.picture is None:
        raise ConfigError("there is no picture to draw on")
    memory = io.BytesIO()
    found.draw().save(memory, "PNG")
    return "data:image/png;base64," + base64.b64encode(memory.getvalue()).decode()
