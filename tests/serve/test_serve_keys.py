"""Where a server has keys, one is needed; each has its share, and none is ever shown."""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from paligemma.errors import ConfigError
from paligemma.serve import keys as keys_module
from paligemma.serve.app import create_app
from paligemma.serve.keys import Keys
from serve.conftest import serving

ANN, BOB = "ann-0123456789", "bob-0123456789"


@pytest.fixture(scope="module")
def guarded() -> Iterator[TestClient]:
    with TestClient(create_app(serving(), keys=Keys({"ann": ANN, "bob": BOB}))) as found:
        yield found


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_no_key_and_a_wrong_key_are_refused_on_every_route_that_works(guarded: TestClient) -> None:
    paths = [
        (method, route.path.replace("{name:path}", "tiny"))
        for route in guarded.app.routes  # type: ignore[attr-defined]
        if isinstance(route, Route)
        for method in route.methods or ()
    ]
    # Routers that FastAPI includes as they are have no routes of their own here.
    paths += [("POST", f"/v1/{name}") for name in ("detect", "segment", "ask", "chat/completions")]
    paths += [("GET", "/v1/models"), ("GET", "/v1/models/tiny"), ("POST", "/nowhere")]
    wrong = (
        *({}, bearer(""), bearer(ANN + "x"), bearer(ANN[:-1]), bearer("é")),
        {"Authorization": ANN},
        {"Authorization": "Basic " + base64.b64encode(b"ann:no").decode()},
        {"Authorization": "Basic ///"},
    )
    public = {"/", "/health", "/ready", "/docs", "/openapi.json", "/docs.css"}
    num_refused = 0
    for method, path in paths:
        for headers in wrong:
            raw = {name: value.encode("latin-1") for name, value in headers.items()}
            answer = guarded.request(method, path, headers=raw)
            if path not in public:
                assert answer.status_code == 401, (method, path, headers)
                if method != "HEAD":
                    assert answer.json()["error"]["code"] == "invalid_api_key"
                num_refused += 1
            else:
                assert answer.status_code != 401, (method, path)
    assert num_refused >= 8 * len(wrong)


def test_a_key_opens_as_bearer_and_as_password(guarded: TestClient) -> None:
    basic = {"Authorization": "Basic " + base64.b64encode(f"any:{BOB}".encode()).decode()}
    for headers in (bearer(ANN), bearer(BOB), basic, {"authorization": f"bearer  {ANN} "}):
        assert guarded.get("/v1/models", headers=headers).status_code == 200


def test_all_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    real = keys_module.hmac.compare_digest
    monkeypatch.setattr(
        keys_module.hmac,
        "compare_digest",
        lambda a, b: compared.append((len(a), len(b))) or real(a, b),
    )
    keys = Keys({"ann": ANN, "bob": BOB, "eve": "eve-0123456789"})
    assert keys.name_of(f"Bearer {ANN}") == "ann"
    assert keys.name_of("Bearer x") is None
    assert compared == [(32, 32)] * 6


def test_a_picture_is_kept_for_its_key_alone(guarded: TestClient, desk: str) -> None:
    first = guarded.post("/v1/caption", json={"image": desk}, headers=bearer(ANN)).json()
    asked = {"image_id": first["image"]["id"]}
    assert guarded.post("/v1/caption", json=asked, headers=bearer(ANN)).status_code == 200
    assert guarded.post("/v1/caption", json=asked, headers=bearer(BOB)).status_code == 404


def test_a_file_of_keys_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# the team\nann:{ANN}\n\n  {BOB}  \n")
    path.chmod(0o600)
    keys = Keys.from_file(path)
    assert not caplog.records
    assert keys.name_of(f"Bearer {ANN}") == "ann"
    assert keys.name_of(f"Bearer {BOB}") == "key-4"
    path.write_text(f"ann:{ANN}\r\n{BOB}\r\n", "utf-8-sig")  # as editors of Windows write
    keys = Keys.from_file(path)
    assert [keys.name_of(f"Bearer {one}") for one in (ANN, BOB)] == ["ann", "key-2"]
    path.chmod(0o644)
    Keys.from_file(path)
    assert "chmod 600" in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "at least one"),
        (b"# nothing\n", "at least one"),
        (b"short\n", "line 1"),
        (b"ann:\n", "line 1"),
        (b":abcdefghij\n", "line 1"),
        (b"ann:abcdefghij\nann:bbcdefghij\n", "line 2"),
        (b"ann:abcdefghij\nbob:abcdefghij\n", "line 2"),
        (b"ann:abc defghij\n", "line 1"),
        (b"a n:abcdefghij\n", "line 1"),
        (b"\xff\xfe\x00\n", "not text"),
        (b"#" * ((1 << 20) + 1), "has more"),
    ],
    ids=range(11),
)
def test_a_file_that_holds_no_keys_is_a_sentence_without_them(
    tmp_path: Path, text: bytes, said: str
) -> None:
    path = tmp_path / "keys"
    path.write_bytes(text)
    with pytest.raises(ConfigError) as error:
        Keys.from_file(path)
    assert said in str(error.value)
    assert "abcdefghij" not in str(error.value)


def test_each_key_has_its_rate(desk: str) -> None:
    app = create_app(serving(requests_per_minute=3), keys=Keys({"ann": ANN, "bob": BOB}))
    client = TestClient(app)
    answers = [client.get("/v1/models", headers=bearer(ANN)) for _ in range(5)]
    assert [one.status_code for one in answers] == [200] * 3 + [429] * 2
    assert answers[-1].json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 21
    assert client.get("/v1/models", headers=bearer(BOB)).status_code == 200
    assert all(client.get("/health").status_code == 200 for _ in range(9))


def test_too_many_at_once_are_refused_and_counted_exactly(desk: str) -> None:
    service = serving(max_requests_of_client=3, max_requests=4)
    app = create_app(service, keys=Keys({"ann": ANN, "bob": BOB}))
    with TestClient(app) as client:
        codes: list[int] = []
        ready = threading.Barrier(12)

        def ask() -> None:
            ready.wait()
            answer = client.post("/v1/caption", json={"image": desk}, headers=bearer(ANN))
            assert answer.status_code == 200 or int(answer.headers["retry-after"]) >= 1
            codes.append(answer.status_code)

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert len(codes) == codes.count(200) + codes.count(429) == 12
        assert codes.count(429) >= 1
        assert app.state.gate.num_inside == app.state.gate.num_body_bytes == 0


def test_neither_keys_nor_prompts_are_in_log_and_metrics(
    guarded: TestClient, desk: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    asked = {"image": desk, "question": "the secret question?"}
    guarded.post("/v1/answer", json=asked, headers=bearer(ANN))
    guarded.post("/v1/answer", json=asked, headers=bearer("wrong-key-wrong"))
    shown = caplog.text + guarded.get("/metrics", headers=bearer(ANN)).text
    assert "requests_total" in shown
    for hidden in (ANN, BOB, "wrong-key-wrong", "secret question", desk[100:140]):
        assert hidden not in shown
