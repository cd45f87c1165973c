"""/openapi.json says what is true, and /docs shows it without a network."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from paligemma import PaliGemma
from tests.serve.live import live
from tests.serve.schema_cases import app_of, run


def test_every_reference_leads_somewhere_and_every_error_is_described(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    names = schema["components"]["schemas"]
    assert set(re.findall(r"#/components/schemas/(\w+)", str(schema))) <= set(names)
    assert "$defs" not in str(schema)
    for path, verbs in schema["paths"].items():
        if path.startswith("/v1/"):
            for verb, route in verbs.items():
                expected = {"400", "401", "404", "429", "500", "503"}
                expected |= {"408", "413", "504"} if verb == "post" else set()
                assert expected <= set(route["responses"]), path
                assert "422" not in route["responses"]


def test_uploads_are_bytes_in_a_form_and_text_in_json(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    content = schema["paths"]["/v1/detect"]["post"]["requestBody"]["content"]
    form = content["multipart/form-data"]["schema"]["properties"]
    assert form["image"]["format"] == "binary"
    assert form["images"]["items"]["format"] == "binary"
    fields = schema["components"]["schemas"]["DetectRequest"]["properties"]
    assert "format" not in str(fields["image"])


def test_the_page_of_the_api_names_every_route_and_loads_nothing_from_elsewhere(
    client: TestClient,
) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    for path in client.get("/openapi.json").json()["paths"]:
        assert path in page.text
    found: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in ("script", "style")
            assert "style" not in dict(attrs)
            found.extend(value or "" for name, value in attrs if name in ("href", "src"))

    Links().feed(page.text)
    assert found == ["docs.css", "openapi.json"]
    assert client.get("/docs.css").headers["content-type"].startswith("text/css")


@pytest.mark.parametrize("path", ["/nothing", "/v1/nothing"])
def test_an_unknown_address_is_not_found_in_the_same_shape(client: TestClient, path: str) -> None:
    answer = client.post(path)
    assert answer.status_code == 404
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_numbers_are_numbers_in_json_and_text_in_a_form(client: TestClient, desk: str) -> None:
    asked = {"image": desk, "max_new_tokens": "2"}
    assert client.post("/v1/caption", json=asked).status_code == 400
    form = {"image": (None, desk), "max_new_tokens": (None, "2")}
    assert client.post("/v1/caption", files=form).status_code == 200


def test_drawn_requests_get_answers_as_described(local: PaliGemma, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason="draws requests by the schema")
    with live(app_of(lambda: local)) as server:
        num_cases, report = run(
            server.url,
            tmp_path,
            num_examples=1,
            phases="examples,fuzzing",
            paths="^/v1/(detect|chat/completions)$",
        )
    assert report == ""
    assert num_cases >= 5
