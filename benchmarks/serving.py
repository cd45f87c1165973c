"""What a server of the embedded model reaches: many clients beside one, overhead, lag, memory.

python benchmarks/serving.py [--parts NAME,NAME] [--requests N]

The server is a process of its own; the clients are threads of this one. Compared figures come from
runs in turns. See README.md.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import logging
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NUM_CLIENTS = 8
PARTS = ("throughput", "overhead", "lag", "overload", "leaving", "agreement", "soak")
_numbers = count()


def picture(size_wh: tuple[int, int] = (224, 224), kind: str = "PNG") -> bytes:
    """A picture that was never sent before."""
    rng = np.random.default_rng(next(_numbers))
    small = rng.integers(0, 255, (16, 16, 3), np.uint8)
    memory = io.BytesIO()
    Image.fromarray(small).resize(size_wh, Image.Resampling.BILINEAR).save(memory, kind)
    return memory.getvalue()


@dataclass
class Server:
    """A server that runs, by its port."""

    port: int
    pid: int

    def connect(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=120)

    def get(self, path: str) -> str:
        """The body of an answer."""
        one = self.connect()
        one.request("GET", path)
        return one.getresponse().read().decode()

    def gauge(self, name: str) -> float:
        """A figure of /metrics."""
        found = re.search(rf"^\w*{name} ([\d.e+-]+)$", self.get("/metrics"), re.MULTILINE)
        return float(found[1]) if found else 0.0


@contextlib.contextmanager
def serving(*args: str) -> Iterator[Server]:
    """A server in a process, until the end; its model is there."""
    process = subprocess.Popen(
        [sys.executable, *args, "--port", "0"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stderr is not None
        port = next(int(m[1]) for line in process.stderr if (m := re.search(r"1:(\d+)", line)))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        server = Server(port, process.pid)
        while '"ready":true' not in server.get("/ready").replace(" ", ""):
            time.sleep(0.05)
        yield server
    finally:
        process.terminate()
        process.wait(30)


PACKAGE = ("-m", "paligemma", "serve")


def ask(
    connection: HTTPConnection, prompt: str, image: bytes | None, **options: Any
) -> tuple[int, float, float]:
    """Status, seconds to the first token, and seconds in all."""
    boundary = "x" * 24
    fields = {"prompt": prompt, **options}
    body = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    )
    if image is not None:
        head = 'Content-Disposition: form-data; name="image"; filename="a"'
        body += f"--{boundary}\r\n{head}\r\n\r\n".encode() + image + b"\r\n"
    body += f"--{boundary}--\r\n".encode()
    before = time.perf_counter()
    heading = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    connection.request("POST", "/v1/ask", body, heading)
    answer = connection.getresponse()
    first = None
    while line := answer.readline():
        if first is None and line.startswith(b"event: token"):
            first = time.perf_counter() - before
    answer.read()
    took = time.perf_counter() - before
    return answer.status, took if first is None else first, took


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def load(
    server: Server,
    num_clients: int,
    num_requests: int | None,
    make: Callable[[HTTPConnection], Any],
    *,
    seconds: float = 1e9,
) -> tuple[float, list[Any]]:
    """Seconds and results of requests that some clients send, each one after another."""
    left = count() if num_requests is None else iter(range(num_requests))
    lock, found, end = threading.Lock(), list[Any](), time.monotonic() + seconds

    def client(_: int) -> None:
        connection = server.connect()
        while True:
            with lock:
                if next(left, None) is None or time.monotonic() > end:
                    return
            found.append(make(connection))

    before = time.perf_counter()
    with ThreadPoolExecutor(num_clients) as pool:
        list(pool.map(client, range(num_clients)))
    return time.perf_counter() - before, found


def quantile(values: Sequence[float], q: float) -> float:
    """By the nearest rank."""
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def throughput(num_requests: int) -> None:
    """Answers a second of eight clients beside one, and times to the first token."""
    prompts = ["caption en", "detect star ; digit", "answer en what color is the star?"]

    def one(connection: HTTPConnection) -> tuple[int, float, float]:
        prompt = prompts[next(_numbers) % len(prompts)]
        return ask(connection, prompt, picture(), stream="true")

    with serving(*PACKAGE) as server:
        load(server, NUM_CLIENTS, 2 * NUM_CLIENTS, one)
        rates: dict[int, list[float]] = {1: [], NUM_CLIENTS: []}
        firsts: dict[int, list[float]] = {1: [], NUM_CLIENTS: []}
        running: list[float] = []
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.05):
                running.append(server.gauge("requests_running"))

        for _ in range(3):
            for num_clients in rates:
                done.clear()
                watcher = threading.Thread(target=watch)
                if num_clients > 1:
                    watcher.start()
                took, found = load(server, num_clients, num_requests, one)
                done.set()
                assert {status for status, _, _ in found} == {200}
                rates[num_clients].append(num_requests / took)
                firsts[num_clients] += [first for _, first, _ in found]
        ratios = [many / alone for alone, many in zip(*rates.values(), strict=True)]
        for num_clients, found in rates.items():
            shown = " ".join(f"{rate:.1f}" for rate in found)
            p50 = statistics.median(firsts[num_clients])
            print(f"{num_clients} clients: {shown} answers/s; first token p50 {p50 * 1e3:.0f} ms")
        print(f"ratio of answers/s: {' '.join(f'{one:.2f}' for one in ratios)}")
        alone, many = (statistics.median(one) for one in firsts.values())
        print(f"ratio of first tokens: {many / alone:.2f}")
        busy = [one for one in running if one]
        print(f"side by side: {statistics.mean(busy):.1f} on average, {max(busy):.0f} at most")


def overhead(num_requests: int) -> None:
    """What the server costs around an engine that answers at once."""
    with serving(__file__, "--echo") as server:
        for name, image in (("text", None), ("picture of 224 px", picture())):
            load(server, NUM_CLIENTS, 64, lambda one, image=image: ask(one, "x", image))
            took, found = load(
                server, NUM_CLIENTS, num_requests, lambda one, image=image: ask(one, "x", image)
            )
            assert {status for status, _, _ in found} == {200}
            times = [1e3 * one[2] for one in found]
            print(
                f"overhead, {name}, {NUM_CLIENTS} clients: p50 {quantile(times, 0.5):.1f} ms, "
                f"p99 {quantile(times, 0.99):.1f} ms, {num_requests / took:.0f} requests/s"
            )


def lag(num_requests: int) -> None:
    """How late the event loop is while eight clients send pictures of 20 MP."""
    large = picture((5472, 3648), "JPEG")
    with serving(__file__, "--echo") as server:
        load(server, NUM_CLIENTS, NUM_CLIENTS, lambda one: ask(one, "x", large))
        server.get("/lag")
        took, found = load(
            server, NUM_CLIENTS, max(16, num_requests // 8), lambda one: ask(one, "x", large)
        )
        assert {status for status, _, _ in found} == {200}
        late = json.loads(server.get("/lag"))
        print(
            f"event loop, {NUM_CLIENTS} x 20 MP JPEG ({len(large) >> 10} KiB): late by p50 "
            f"{quantile(late, 0.5):.1f} ms, p99 {quantile(late, 0.99):.1f} ms, at most "
            f"{max(late):.1f} ms; {len(found) / took:.1f} pictures/s"
        )


def soak(num_requests: int) -> None:
    """Memory, files and threads of a server over many requests, its kept pictures bounded."""
    with serving(*PACKAGE, "--limit", "kept_picture_bytes=10000000") as server:
        sizes: list[tuple[int, float, int, int]] = []
        for done in range(0, num_requests + 1, step := max(1, num_requests // 10)):
            status = Path(f"/proc/{server.pid}/status").read_text()
            resident = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]
            threads = int(re.search(r"Threads:\s+(\d+)", status)[1])  # type: ignore[index]
            files = len(os.listdir(f"/proc/{server.pid}/fd"))
            sizes.append((done, resident, files, threads))
            print(f"after {done}: {resident:.0f} MB, {files} files, {threads} threads", flush=True)
            _, found = load(
                server,
                NUM_CLIENTS,
                step,
                lambda one: ask(one, "caption en", picture(), max_new_tokens=8),
            )
            assert {one[0] for one in found} == {200}
        half = sizes[len(sizes) // 2 :]
        slope = np.polyfit([one[0] for one in half], [one[1] for one in half], 1)[0] * 1000
        print(f"growth in the second half: {slope:.2f} MB in 1,000 requests")


def overload(seconds: int) -> None:
    """Four times as many clients as there is room for: every request is answered or refused."""
    limits = ("--limit", "max_rows=4", "--limit", "max_waiting=4")
    with serving(*PACKAGE, *limits) as server:
        sent: list[None] = []

        def one(connection: HTTPConnection) -> tuple[int, float, float]:
            sent.append(None)
            # Small, as clients that are refused all the time must not take the machine.
            answer = ask(connection, "caption en", picture((48, 48)), stream="true")
            if answer[0] != 200:
                time.sleep(0.2)  # a client that asks again
            return answer

        load(server, 8, 32, one)
        _, usual = load(server, 8, None, one, seconds=min(10, seconds))
        sent.clear()
        _, found = load(server, 4 * 8, None, one, seconds=seconds)
        codes = Counter(status for status, _, _ in found)
        print(f"overload, {seconds} s, sent {len(sent)}: {dict(codes)}, together {codes.total()}")
        assert codes.total() == len(sent)
        assert set(codes) <= {200, 429, 503}
        refused = [1e3 * took for status, _, took in found if status in (429, 503)]
        if refused:
            p50, p99 = quantile(refused, 0.5), quantile(refused, 0.99)
            print(f"refused within p50 {p50:.0f} ms, p99 {p99:.0f} ms")
        alone, many = (
            1e3 * quantile([first for status, first, _ in all_ if status == 200], 0.95)
            for all_ in (usual, found)
        )
        print(
            f"first token of accepted p95: 8 clients {alone:.0f} ms, 32 clients {many:.0f} ms, "
            f"{many / alone:.2f} times"
        )


def leaving(num_requests: int) -> None:
    """Clients that go away at any moment leave nothing behind."""
    rng = np.random.default_rng(0)
    with serving(*PACKAGE) as server:

        def one(connection: HTTPConnection) -> None:
            sent = server.connect()
            body = json.dumps(
                {"prompt": "caption en", "image": data_url(picture()), "stream": True}
            )
            sent.request("POST", "/v1/ask", body, {"Content-Type": "application/json"})
            time.sleep(rng.uniform(0, 0.2))
            sent.close()

        load(server, NUM_CLIENTS, num_requests, one)
        before = time.perf_counter()
        while any(left := [server.gauge(f"requests_{one}") for one in ("running", "waiting")]):
            if time.perf_counter() - before > 30:
                break
        took = time.perf_counter() - before
        print(f"{num_requests} clients left early; {took * 1e3:.0f} ms later {left} run and wait")


def agreement(num_requests: int) -> None:
    """OpenAI's route, streamed and whole, beside the model in this process."""
    from paligemma import PaliGemma

    logging.getLogger("paligemma").setLevel(logging.ERROR)  # cut answers are no news
    local = PaliGemma.from_pretrained("tiny", kv_cache_dtype="float32")
    num_image_tokens = local.model.config.num_image_tokens
    words = [
        "star",
        "circle",
        "digit",
        "letter",
        "square",
        "ring",
        "arrow",
        "red",
        "blue",
        "two",
        "three",
    ]
    rng = np.random.default_rng(1)
    wrong, farthest = Counter[str](), 0.0
    with serving(*PACKAGE, "--kv-cache", "float32") as server:

        def chat(prompt: str, url: str, **options: Any) -> bytes:
            content = [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": prompt},
            ]
            asked = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
            body = json.dumps({**asked, "temperature": 0, "max_tokens": 16, **options})
            heading = {"Content-Type": "application/json"}
            connection = server.connect()  # one that idles for long is closed
            connection.request("POST", "/v1/chat/completions", body, heading)
            return connection.getresponse().read()

        for number in range(num_requests):
            first, second = rng.choice(words, 2)
            prompt = (
                "caption en",
                f"detect {first} ; {second}",
                f"answer en where is the {first}?",
                f"segment {first}",
            )[number % 4]
            data = picture()
            whole = json.loads(chat(prompt, data_url(data), logprobs=True))
            choice = whole["choices"][0]
            text, written = choice["message"]["content"], choice["logprobs"]["content"]
            lines = chat(prompt, data_url(data), stream=True).decode().splitlines()
            chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
            pieces = [one["choices"][0]["delta"].get("content") or "" for one in chunks]
            answer = local.generate(data, prompt, max_new_tokens=16)
            prefix = local.processor.prompt_row(prompt)
            wrong["streamed text"] += "".join(pieces) != text
            wrong["local text"] += answer.text != text
            wrong["usage"] += whole["usage"]["prompt_tokens"] != num_image_tokens + len(prefix)
            total = sum(one["logprob"] for one in written)
            farthest = max(farthest, abs(total - math.log(answer.score or 1)))
    print(f"{num_requests} prompts: {dict(wrong)} differ; log-probability off by {farthest:.1e}")


def echo_server(port: int) -> None:
    """The application around a worker that answers at once; /lag tells how late its loop was."""
    import asyncio

    from paligemma import PaliGemma
    from paligemma.outputs.types import TokenRecord
    from paligemma.pipeline.engine import Written
    from paligemma.pipeline.engine_queue import Progress
    from paligemma.serve import server
    from paligemma.serve.app import create_app
    from paligemma.serve.asking import Service
    from paligemma.serve.job import Job, Wrote
    from paligemma.serve.models import Models, ModelSpec
    from paligemma.serve.options import ServerOptions
    from paligemma.serve.worker import Worker

    class Echo(Worker):
        def submit(self, job: Job) -> None:
            with self._wake:
                self._num_waiting -= 1
                self._num_of_client[job.client] -= 1
            job.is_over = True
            eos = job.leased.model.vocab.eos
            record = TokenRecord(
                ids=np.array([eos]), logprobs=np.zeros(1, np.float32), loc_probs=None
            )
            written = Written(record=record, logprob=0.0, is_cut=False)
            progress = Progress(handle=0, token=eos, logprob=0.0, written=written, fault=None)
            job.told.put_nowait(Wrote(question=0, row=0, progress=progress))
            job.told.put_nowait(None)

    options = ServerOptions()
    spec = ModelSpec(name="tiny", load=lambda: PaliGemma.from_pretrained("tiny"))
    service = Service.of(Models([spec], options), options)
    service.worker = Echo(options)
    app, late = create_app(service, loads_first=False), list[float]()

    async def probe() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            late.append(1e3 * (time.perf_counter() - before - 0.005))

    probing: list[Any] = []

    @app.get("/lag")
    async def lag_so_far() -> list[float]:
        if not probing:
            probing.append(asyncio.create_task(probe()))
        found, late[:] = list(late), []
        return found

    sockets = server.listen("127.0.0.1", port)
    print(f"http://127.0.0.1:{sockets[0].getsockname()[1]}", file=sys.stderr, flush=True)
    server.serve(app, service, sockets)


def machine() -> str:
    """What the figures were measured on."""
    import fastapi
    import torch
    import uvicorn

    return (
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"{torch.get_num_threads()} threads; Python {platform.python_version()}, torch "
        f"{torch.__version__}, fastapi {fastapi.__version__}, uvicorn {uvicorn.__version__}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--requests", type=int, help="of each run; seconds of overload")
    parser.add_argument("--echo", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.echo:
        echo_server(args.port)
        return
    print(f"$ python {' '.join(sys.argv)}\n{machine()}")
    numbers = dict(zip(PARTS, (48, 1000, 200, 60, 200, 200, 5000), strict=True))
    for part in args.parts.split(","):
        print(f"\n{part}", flush=True)
        globals()[part](args.requests or numbers[part])


if __name__ == "__main__":
    main()
