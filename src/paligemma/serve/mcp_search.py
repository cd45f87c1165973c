"""The tool of an agent that searches the server's index of pages."""

from __future__ import annotations

import base64
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

from mcp import types
from PIL import Image
from pydantic import ValidationError

from paligemma.retrieval.heat import draw_heat, heat_range
from paligemma.serve.asking import Service
from paligemma.serve.bodies import validation_error
from paligemma.serve.library import Shelf
from paligemma.serve.mcp_tools import (
    SEARCH,
    SEARCH_DESCRIPTION,
    SEARCH_TITLE,
    FoundPages,
    SearchFields,
    schema_of,
)
from paligemma.serve.roots import Roots
from paligemma.serve.schemas import SearchRequest
from paligemma.serve.search import Search, library_of


def search_tool() -> types.Tool:
    """The tool as it is listed."""
    return types.Tool(
        name=SEARCH,
        title=SEARCH_TITLE,
        description=SEARCH_DESCRIPTION,
        input_schema=schema_of(SearchFields),
        output_schema=schema_of(FoundPages),
        annotations=types.ToolAnnotations(read_only_hint=True, open_world_hint=False),
    )


async def call_search(service: Service, roots: Roots, arguments: Any) -> types.CallToolResult:
    """The result of one call.

    Raises:
        PaliGemmaError: a wrong field, or too many searches.
    """
    try:
        asked = SearchFields.model_validate(arguments or {})
    except ValidationError as error:
        raise validation_error(error, SearchFields) from None
    body, pictures = await library_of(service).run(partial(_found, asked, roots))
    text = types.TextContent(type="text", text=json.dumps(body, ensure_ascii=False))
    images = [
        types.ImageContent(type="image", data=base64.b64encode(one).decode(), mime_type=kind)
        for one, kind in pictures
    ]
    return types.CallToolResult(content=[text, *images], structured_content=body)


def _found(
    asked: SearchFields, roots: Roots, shelf: Shelf
) -> tuple[dict[str, Any], list[tuple[bytes, str]]]:
    """The body and the pictures with their types; in the library's thread."""
    search = Search.of(
        SearchRequest.model_validate({"query": asked.query, "k": asked.k, "thumbnails": False}),
        shelf,
    )
    body = search.body(shelf)
    for found, hit in zip(body["hits"], search.hits, strict=True):
        for name in ("width", "height", "thumbnail", "heat", "answer"):
            del found[name]
        found["path"] = hit.path if roots.holds(Path(hit.path)) else None
    return body, _pictures(asked, search) if asked.pictures or asked.heat else []


def _pictures(asked: SearchFields, search: Search) -> list[tuple[bytes, str]]:
    shown = [(hit.thumbnail, "image/jpeg") for hit in search.hits if hit.thumbnail]
    if not asked.heat:
        return shown
    maps = search.heat()
    scale, drawn = heat_range(maps), []
    for hit, one in zip(search.hits, maps, strict=True):
        if hit.thumbnail and len(one):
            picture = Image.open(io.BytesIO(hit.thumbnail), formats=["JPEG", "PNG", "WEBP"])
            memory = io.BytesIO()
            draw_heat(picture, one.amax(0), scale=scale).save(memory, "JPEG", quality=85)
            drawn.append((memory.getvalue(), "image/jpeg"))
    return drawn or shown
