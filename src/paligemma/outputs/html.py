"""Elements of a page that cannot be broken out of: every text is escaped unless it is an element.

Pages show what models wrote, and models write anything. They hold no script, and their policy
forbids any and every request.
"""

import html

from paligemma.outputs.page_style import STYLE
from paligemma.whole_file import SOFTWARE

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
# Elements without an end tag.
_VOID = {"meta", "img", "br", "wbr", "input"}


class Html(str):
    """Markup: what `el` made. Plain strings are text."""

    __slots__ = ()


Child = str | None


def el(name: str, *children: Child, **attributes: str | float | None) -> Html:
    """An element.

    Args:
        name: of a known element, never from outside.
        children: elements, or texts to be escaped; None is left out.
        attributes: values are escaped; None leaves one out; `class_` and `stroke_width` are
            written class and stroke-width.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            written = key.rstrip("_").replace("_", "-")
            words.append(f'{written}="{text(_plain(value))}"')
    start = f"<{' '.join(words)}>"
    if name in _VOID:
        return Html(start)
    return Html(f"{start}{joined(*children)}</{name}>")


def joined(*children: Child) -> Html:
    """Children one after the other."""
    return Html("".join(one if isinstance(one, Html) else text(one) for one in children if one))


def text(value: str) -> Html:
    """Text with markup disarmed and characters that no page may hold made visible."""
    shown = "".join(c if c in "\n\t" or c.isprintable() else _visible(c) for c in value)
    return Html(html.escape(shown, quote=True))


def page(title: str, *body: Child, style: str = "") -> str:
    """A whole page, in one file, that asks for nothing.

    Args:
        style: rules beside those of all pages; never from outside.
    """
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name_="generator", content=SOFTWARE),
        el("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        el("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name_="color-scheme", content="light dark"),
        el("title", title),
        Html(f"<style>{STYLE}{style}</style>"),
    )
    whole = el("html", head, el("body", el("main", *body)), lang="en")
    return f"<!doctype html>\n{whole}\n"


def _plain(value: str | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _visible(character: str) -> str:
    """Blanks of other scripts as a space; direction marks, controls and the like by number."""
    if character.isspace():
        return " "
    return f"\\u{ord(character):04x}"
