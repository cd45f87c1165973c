"""/docs: the routes as a plain page, made of /openapi.json; it needs no network and no script."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = """
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color-scheme: light dark; }
code, pre { font-family: ui-monospace, monospace; font-size: 0.9em; }
pre { overflow-x: auto; padding: 0.75rem; background: color-mix(in srgb, currentColor 8%, Canvas); }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 1rem 0.25rem 0;
  border-bottom: 1px solid color-mix(in srgb, currentColor 25%, Canvas); }
"""


def page(schema: Mapping[str, Any]) -> str:
    """The page of an OpenAPI schema."""
    info = schema["info"]
    body = "".join(
        _route(path, verb, route, schema)
        for path, verbs in schema["paths"].items()
        for verb, route in verbs.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(info['title'])} API</title>"
        '<link rel="stylesheet" href="docs.css"></head><body><main>'
        f"<h1>{escape(info['title'])} API</h1><p>{escape(info['description'])}</p>"
        '<p>For programs: <a href="openapi.json">openapi.json</a>. Where the server has keys, send '
        "<code>Authorization: Bearer KEY</code>.</p>"
        f"{body}</main></body></html>"
    )


def _route(path: str, verb: str, route: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    parts = [f"<h2><code>{verb.upper()} {escape(path)}</code></h2>"]
    parts.append(f"<p>{escape(route.get('summary', ''))}</p>")
    content = route.get("requestBody", {}).get("content", {})
    if content:
        fields = _resolved(content["application/json"]["schema"], schema)
        parts.append(f"<p>{escape(fields.get('description', ''))}</p>")
        parts.append(
            f"<p>Body: {', '.join(f'<code>{escape(kind)}</code>' for kind in content)}</p>"
        )
        required = fields.get("required", [])
        rows = [
            (name + (" (needed)" if name in required else ""), _kind(one), _about(one))
            for name, one in fields["properties"].items()
        ]
        parts.append(_table(("Field", "Values", "Meaning"), rows))
        for example in fields.get("examples", []):
            text = json.dumps(example, indent=2, ensure_ascii=False)
            parts.append(f"<pre>{escape(text)}</pre>")
    parts.append(_table(("Status", "Answer", "Meaning"), _statuses(route)))
    return "".join(parts)


def _statuses(route: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for status, one in sorted(route["responses"].items()):
        kinds = [_kind(kind.get("schema", {})) for kind in one.get("content", {}).values()]
        yield status, " or ".join(dict.fromkeys(filter(None, kinds))), one["description"]


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    names = "".join(f"<th>{name}</th>" for name in head)
    rows_and_names = f"<thead><tr>{names}</tr></thead><tbody>{lines}</tbody>"
    return f'<div class="table"><table>{rows_and_names}</table></div>'


def _resolved(one: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in one:
        return one
    return schema["components"]["schemas"][one["$ref"].rsplit("/", 1)[-1]]


def _kind(one: Mapping[str, Any]) -> str:
    """The values of a schema, in a few words."""
    if "$ref" in one:
        return one["$ref"].rsplit("/", 1)[-1]
    if kinds := one.get("anyOf", one.get("oneOf")):
        return " or ".join(_kind(kind) for kind in kinds if kind.get("type") != "null")
    if "const" in one or "enum" in one:
        return ", ".join(json.dumps(value) for value in one.get("enum", [one.get("const")]))
    if one.get("type") == "array":
        return f"list of {_kind(one.get('items', {})) or 'values'}"
    bounds = [
        f"{sign} {one[name]:g}"
        for name, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if name in one
    ]
    return " ".join([str(one.get("type", "")), ", ".join(bounds)]).strip()


def _about(one: Mapping[str, Any]) -> str:
    default = one.get("default")
    stated = "" if default is None else f"default {json.dumps(default)}"
    return "; ".join(filter(None, [one.get("description", ""), stated]))
