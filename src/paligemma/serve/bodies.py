"""JSON of a request, within bounds that are checked before anything is built of it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
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
    errors = error.errors(include_url=False)
    places = [_place(one) for one in errors]
    # A value that may be of several kinds is wrong in each; the kind that fits furthest is meant.
    place = max((one for one in places if one[: len(places[0])] == places[0]), key=len)
    here = [one for one, its in zip(errors, places, strict=True) if its == place]
    first, param = here[0], ".".join(map(str, place))[:100] or None
    if first["type"] == "missing":
        return ServeError(f"{param} is missing; state it", param=param)
    if first["type"] == "extra_forbidden":
        fields = list(kind.model_fields) if kind is not None and len(place) == 1 else []
        near = difflib.get_close_matches(str(param), fields, n=2)
        remedy = f"did you mean {' or '.join(near)}?" if near else "leave it out"
        if fields and not near:
            remedy = f"use {', '.join(fields)}"
        return ServeError(f"there is no field {param} here; {remedy}"[:600], param=param)
    rules = [_RULES[one["type"]].format(**one.get("ctx", {})) for one in here if _is_known(one)]
    if not rules:
        return ServeError(f"{param or 'the body'}: {first['msg']}"[:400], param=param)
    rule = " or ".join(dict.fromkeys(rules))
    got = _shown(first["input"])
    return ServeError(f"{param or 'the body'} must be {rule}, got {got}"[:400], param=param)


_RULES = {
    "string_type": "a text",
    **dict.fromkeys(("int_type", "int_from_float", "int_parsing"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "list_type": "a list",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "an object"),
    "literal_error": "{expected}",
    "union_tag_invalid": "an object whose type is one of {expected_tags}",
    "union_tag_not_found": "an object with a type",
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "below {lt}",
    "string_too_long": "a text of at most {max_length} characters",
    "too_long": "a list of at most {max_length}",
    "too_short": "a list of at least {min_length}",
}
_FIELD = re.compile(r"(?!(?:str|int|float|bool)$)[a-z_][a-z0-9_]*")


def _is_known(one: Mapping[str, Any]) -> bool:
    return one["type"] in _RULES


def _place(one: Mapping[str, Any]) -> tuple[str | int, ...]:
    """Where a fault is, without the kinds that pydantic tried there."""
    kept: list[str | int] = []
    is_unknown = one["type"] == "extra_forbidden"
    for number, part in enumerate(one["loc"], start=1):
        is_wrong_name = is_unknown and number == len(one["loc"])
        is_kept = is_wrong_name or isinstance(part, int) or _FIELD.fullmatch(part)
        # The kind of a part of a message has the name of its field, image_url.
        if is_kept and part not in kept[-1:]:
            kept.append(part)
    return tuple(kept)


def _shown(value: object) -> str:
    """What came, in a few words; never all of a picture or a prompt."""
    match value:
        case str() if len(value) > 40:
            return f"a text of {len(value)} characters"
        case list():
            return f"a list of {len(value)}"
        case Mapping():
            return "an object"
        case None:
            return "null"
        case bool():
            return str(value).lower()
    return repr(value)[:50]
