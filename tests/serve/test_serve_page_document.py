"""The page's document holds what its first paint needs, and its policy allows exactly that."""

from __future__ import annotations

import base64
import hashlib
import re

from starlette.testclient import TestClient

from paligemma.serve.app import PAGE


def test_nothing_that_the_page_names_holds_up_its_first_paint(client: TestClient) -> None:
    html = client.get("/").text
    assert 'rel="stylesheet"' not in html
    scripts = re.findall(r"<script[^>]*src=[^>]*>", html)
    assert scripts
    assert all('type="module"' in one for one in scripts)
    for name in ("style.css", "parts.css", "theme.js"):
        assert (PAGE / name).read_text() in html


def test_every_module_is_announced_and_there(client: TestClient) -> None:
    announced = re.findall(r'rel="modulepreload" href="([^"]+)"', client.get("/").text)
    modules = {path.name for path in PAGE.glob("*.js")} - {"theme.js", "main.js"}
    assert {path.removeprefix("static/") for path in announced} == modules
    for path in announced:
        assert client.get(f"/{path}").status_code == 200


def test_the_policy_names_what_stands_inside_by_its_hash(client: TestClient) -> None:
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    for tag, count in (("style", 2), ("script", 1)):
        inside = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        assert len(inside) == count
        for text in inside:
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy
    assert "sha256" not in client.get("/docs").headers["content-security-policy"]
