"""/metrics is what Prometheus reads, counts every request, and comes at once under load."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from paligemma.pipeline.engine_queue import EngineQueue
from paligemma.serve.app import create_app
from paligemma.serve.worker import TOKENS_OF_MODEL
from serve.conftest import serving
from serve.live import Live, live


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(create_app(serving(max_rows=4, max_waiting=4))) as found:
        yield found


def families(text: str) -> dict[str, Any]:
    return {one.name: one for one in text_string_to_metric_families(text)}


def value(found: dict[str, Any], name: str) -> float:
    """The one sample of a gauge."""
    (sample,) = found[name].samples
    return sample.value


def test_every_request_is_counted_by_its_status_also_under_load(server: Live, desk: str) -> None:
    """Eight clients at a server with room for eight, some of whose requests are wrong."""
    sent: Counter[str] = Counter()
    scrapes_ms: list[float] = []
    done = threading.Event()

    def ask(number: int) -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for turn in range(4):
                asked: dict[str, Any] = {"image": desk, "prompt": "detect star", "stream": True}
                if (number + turn) % 5 == 0:
                    asked["prompt"] = 3
                answer = client.post("/v1/ask", json=asked)
                sent[str(answer.status_code)] += 1

    def scrape() -> None:
        with httpx.Client(base_url=server.url) as client:
            while not done.is_set():
                start = time.perf_counter()
                text = client.get("/metrics").text
                scrapes_ms.append((time.perf_counter() - start) * 1000)
                sent["200"] += 1
                assert families(text)
                time.sleep(0.01)

    watching = threading.Thread(target=scrape)
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for one in (watching, *threads):
        one.start()
    for one in threads:
        one.join()
    done.set()
    watching.join()

    found = families(httpx.get(f"{server.url}/metrics").text)
    counted: Counter[str] = Counter()
    for sample in found["paligemma_requests"].samples:
        if sample.name.endswith("_total"):
            counted[sample.labels["code"]] += int(sample.value)
    assert counted == sent
    assert {"200", "400"} <= set(counted)
    p99_ms = sorted(scrapes_ms)[math.ceil(0.99 * len(scrapes_ms)) - 1]
    print(f"{len(scrapes_ms)} scrapes, p99 {p99_ms:.1f} ms")
    # On a machine with more work than cores the slowest waited for others than the server.
    assert min(p99_ms, 4 * sorted(scrapes_ms)[len(scrapes_ms) // 2]) < 100


def test_times_are_in_seconds_and_add_up(desk: str) -> None:
    with TestClient(create_app(serving())) as client:
        start = time.perf_counter()
        for _ in range(3):
            client.post("/v1/caption", json={"image": desk})
        took_s = time.perf_counter() - start
        found = families(client.get("/metrics").text)
    sums = {}
    for name in (
        "queue",
        "image_decode",
        "time_to_first_token",
        "time_per_output_token",
        "request",
    ):
        samples = {one.name: one.value for one in found[f"paligemma_{name}_seconds"].samples}
        assert samples[f"paligemma_{name}_seconds_count"] == 3, name
        sums[name] = samples[f"paligemma_{name}_seconds_sum"]
    assert 0 < sums["image_decode"] < sums["time_to_first_token"] < sums["request"] <= took_s
    assert sums["queue"] < sums["time_to_first_token"]
    assert 0 < sums["time_per_output_token"] < sums["request"]
    assert value(found, "process_resident_memory_bytes") > 1e8


def test_gauges_tell_what_runs_waits_and_is_free(
    desk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, step = threading.Event(), EngineQueue.step

    def held(queue: EngineQueue) -> Any:
        go.wait(20)
        return step(queue)

    monkeypatch.setattr(EngineQueue, "step", held)
    asked = {"image": desk, "max_new_tokens": 10}
    gauges = ("paligemma_requests_running", "paligemma_requests_waiting")
    with TestClient(create_app(serving(max_rows=2))) as client:

        def told() -> tuple[float, ...]:
            found = families(client.get("/metrics").text)
            (free,) = found["paligemma_kv_cache_free_tokens"].samples
            assert free.labels == {"model": "tiny"}
            return *(value(found, name) for name in gauges), free.value

        assert told() == (0, 0, TOKENS_OF_MODEL)
        answers: list[Any] = []
        threads = [
            threading.Thread(target=lambda: answers.append(client.post("/v1/caption", json=asked)))
            for _ in range(3)
        ]
        for one in threads:
            one.start()
        end = time.monotonic() + 20
        # Three wait before the first of them runs, and the worker admits while it is asked.
        while sum((found := told())[:2]) != 3 or not found[0] or found != told():
            assert time.monotonic() < end, found
            time.sleep(0.02)
        running, waiting, free = found
        go.set()
        for one in threads:
            one.join()
        usage = answers[0].json()["usage"]
        assert (running + waiting, running >= 1, waiting >= 1) == (3, True, True)
        assert TOKENS_OF_MODEL - free == running * (usage["prompt_tokens"] + 10)
        while told()[0] and time.monotonic() < end:
            time.sleep(0.02)
        assert told() == (0, 0, TOKENS_OF_MODEL)
