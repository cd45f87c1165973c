"""The page's document with all that its first paint needs, so that it paints after one answer.

Style sheets and scripts that hold up painting are put into it; the content policy names each by its
hash. Modules are announced, so that they come together and not one import after another.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi.responses import HTMLResponse

from paligemma.serve.middleware import CONTENT_POLICY

_BLOCKING = re.compile(
    r'<link rel="stylesheet" href="static/(?P<style>[\w.]+)">'
    r'|<script src="static/(?P<script>[\w.]+)"></script>'
)
_MODULE = re.compile(r'<script type="module" src="static/[\w.]+"></script>')


def page_document(folder: Path) -> HTMLResponse:
    """The response to `/`.

    Args:
        folder: of index.html and what it names.
    """
    hashes: dict[str, list[str]] = {"style": [], "script": []}

    def put(found: re.Match[str]) -> str:
        tag = str(found.lastgroup)
        text = (folder / found[tag]).read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[tag].append(f"'sha256-{digest}'")
        return f"<{tag}>{text}</{tag}>"

    html = _BLOCKING.sub(put, (folder / "index.html").read_text(encoding="utf-8"))
    named = set(re.findall(r'src="static/([\w.]+)"', (folder / "index.html").read_text()))
    modules = sorted(path.name for path in folder.glob("*.js") if path.name not in named)
    preload = "".join(f'<link rel="modulepreload" href="static/{name}">' for name in modules)
    html = _MODULE.sub(lambda found: f"{found[0]}\n  {preload}", html)
    more = "".join(
        f"; {tag}-src 'self' {' '.join(found)}" for tag, found in hashes.items() if found
    )
    return HTMLResponse(html, headers={"Content-Security-Policy": CONTENT_POLICY + more})
