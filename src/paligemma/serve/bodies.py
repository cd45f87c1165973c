"""JSON of a request, within bounds that are checked before anything is built of it."""

from __future__ import annotations

import difflib
import json
import re
from typing import Any

from pydantic import BaseModel, ValidationError

from paligemma.json_file import parse_json
from paligemma.serve.errors import ServeError

# Characters outside strings: what is built of them takes up to 30 times their bytes.
MAX_STRUCTURE = 200_000
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)


def read_json(body: bytes, param: str | None = None) -> Any:
    """The value of a body.

    Args:
        body: UTF-8.
        param: the field that holds it, for the error.

    Raises:
        ServeError: not JSON, nested too deeply, or of too many parts.
    """
    try:
        text = body.decode()
        num_outside = len(_STRING.sub("", text))
        if num_outside > MAX_STRUCTURE:
            raise ServeError(
                f"JSON may have {MAX_STRUCTURE} characters outside its strings, got {num_outside}; "
                "send less",
                param=param,
            )
        value = parse_json(text)
        if "\\u" in text:  # an escape may name half a character, which no text can hold
            json.dumps(value, ensure_ascii=False).encode()
    except ValueError as error:
        raise ServeError(f"the body must be JSON in UTF-8: {error!s:.200}", param=param) from None
    return value


def validation_error(error: ValidationError, kind: type[BaseModel] | None = None) -> ServeError:
    """The first fault of a body, in a sentence.

    Args:
        kind: of the body, whose fields a wrong name may be meant for.
    """
    first = error.errors(include_url=False, include_input=False)[0]
    param = ".".join(str(part) for part in first["loc"])[:100] or None
    if first["type"] == "missing":
        return ServeError(f"{param} is missing; state it", param=param)
    if first["type"] == "extra_forbidden":
        fields = list(kind.model_fields) if kind is not None and len(first["loc"]) == 1 else []
        near = difflib.get_close_matches(str(param), fields, n=2)
        remedy = f"did you mean {' or '.join(near)}?" if near else "leave it out"
        if fields and not near:
            remedy = f"use {', '.join(fields)}"
        return ServeError(f"there is no field {param} here; {remedy}"[:600], param=param)
    return ServeError(f"{param or 'the body'}: {first['msg']}"[:400], param=param)
