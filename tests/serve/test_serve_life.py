"""A server ends when it is told to, and what it has begun it finishes first."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from cli.conftest import Run, paligemma, tiny_dir

from paligemma.serve.offered import Named

__all__ = ["paligemma", "tiny_dir"]  # fixtures

ROOT = Path(__file__).parents[2]


@contextmanager
def process(
    step_s: float = 0.0, *, load_s: float = 0.0, port: int = 0
) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """A server in a process of its own, and a client of it; ready where its model loads at once."""
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
        "STEP_S": str(step_s),
        "LOAD_S": str(load_s),
    }
    script = Path(__file__).with_name("slow_server.py")
    running = subprocess.Popen(
        [sys.executable, str(script), "--port", str(port)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert running.stderr is not None
        line = running.stderr.readline().decode()
        found = re.search(r"http://[\d.:]+", line)
        assert found, line
        url = found[0]
        with httpx.Client(base_url=url, timeout=30) as client:
            while not load_s and client.get("/ready").status_code != 200:
                time.sleep(0.05)
            yield running, client
    finally:
        running.kill()
        running.communicate()


def test_sigterm_lets_streams_end_and_refuses_new_ones(desk: str) -> None:
    ends: list[str] = []
    asked = {"image": desk, "prompt": "detect star ; digit", "stream": True}

    with process(step_s=0.05) as (running, client):

        def ask() -> None:
            ends.append(client.post("/v1/ask", json=asked).text)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for one in threads:
            one.start()
        while "paligemma_requests_running 8.0" not in client.get("/metrics").text:
            time.sleep(0.02)
        running.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200
        refused = client.post("/v1/caption", json={"image": desk})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "stopping"
        assert int(refused.headers["retry-after"]) > 0
        for one in threads:
            one.join()
        assert running.wait(10) == 0
        assert running.stdout is not None
        lines = [json.loads(line) for line in running.stdout.read().splitlines()]
    assert len(ends) == 8
    assert all("event: done" in one for one in ends)
    assert [line["code"] for line in lines if line["route"] == "/v1/ask"] == [200] * 8


def test_a_second_ctrl_c_ends_it_at_once(desk: str) -> None:
    asked = {"image": desk, "prompt": "detect star ; digit", "stream": True}
    with (
        process(step_s=0.5) as (running, client),
        client.stream("POST", "/v1/ask", json=asked) as answer,
    ):
        pieces = answer.iter_bytes()
        next(pieces)
        running.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert client.get("/ready").status_code == 503
        start = time.monotonic()
        running.send_signal(signal.SIGINT)
        assert running.wait(5) == 128 + signal.SIGINT
        assert time.monotonic() - start < 1


def test_who_waits_for_a_server_that_is_killed_gets_an_error_at_once_and_the_next_has_its_port(
    desk: str,
) -> None:
    asked = {"image": desk, "prompt": "detect star ; digit", "stream": True}
    whole = {"image": desk, "prompt": "detect star ; digit"}
    ends: list[float] = []

    with process(step_s=0.2) as (running, client):
        port = client.base_url.port
        assert port is not None

        def ask(body: dict[str, object]) -> None:
            with (
                pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)),
                httpx.stream("POST", f"{client.base_url}/v1/ask", json=body, timeout=30) as answer,
            ):
                for _ in answer.iter_bytes():
                    pass
            ends.append(time.monotonic())

        threads = [threading.Thread(target=ask, args=(body,)) for body in [asked, whole] * 2]
        for one in threads:
            one.start()
        while "paligemma_requests_running 4.0" not in client.get("/metrics").text:
            time.sleep(0.02)
        start = time.monotonic()
        running.kill()
        for one in threads:
            one.join(10)
        assert len(ends) == 4
        assert max(ends) - start < 1
    with process(port=port) as (running, client):
        answer = client.post("/v1/caption", json={"image": desk})
        assert answer.status_code == 200
        assert client.base_url.port == port


def test_a_signal_while_the_model_loads_ends_it_at_once_and_who_waits_is_told(desk: str) -> None:
    with process(load_s=60) as (running, client):
        assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == 503
        faults: list[Exception] = []

        def ask() -> None:
            try:
                client.post("/v1/caption", json={"image": desk})
            except httpx.HTTPError as error:
                faults.append(error)

        waiting = threading.Thread(target=ask)
        waiting.start()
        while "paligemma_requests_waiting 1.0" not in client.get("/metrics").text:
            time.sleep(0.02)
        start = time.monotonic()
        running.send_signal(signal.SIGTERM)
        assert running.wait(5) == 128 + signal.SIGTERM
        assert time.monotonic() - start < 1
        waiting.join(5)
        assert len(faults) == 1


def test_a_port_that_is_taken_is_a_sentence_before_the_model_is_loaded(
    paligemma: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Named, "load", lambda self: pytest.fail("it was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = paligemma("serve", "--model", "tiny", "--port", port)
    assert done.status == 1
    assert f"port {port} of 127.0.0.1 cannot be listened at: another program has it" in done.err


def test_a_model_that_is_not_there_is_a_sentence(paligemma: Run, tmp_path: Path) -> None:
    done = paligemma("serve", "--model", tmp_path / "none", "--port", 0)
    assert done.status == 2
    assert "none" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--limit", "max_row=8"], "did you mean max_rows?"),
        (["--limit", "max_rows=0"], "above 0"),
        (["--limit", "answer_s=nan"], "above 0"),
        (["--limit", "max_rows=x"], "above 0"),
        (["--host", "no.such.host.invalid"], "host must be an address of this machine"),
    ],
)
def test_bounds_and_hosts_are_checked(paligemma: Run, words: list[str], said: str) -> None:
    done = paligemma("serve", "--model", "tiny", "--port", 0, *words)
    assert done.status == 2
    assert said in " ".join(done.err.split())
