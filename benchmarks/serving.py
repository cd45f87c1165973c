"""What a server of the embedded model reaches: many clients beside one, overhead, lag, memory.

python benchmarks/serving.py [--parts throughput,overhead,lag,soak,overload] [--requests N]

The server is a process of its own; the clients are threads of this one. Compared figures come from
runs in turns. See README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
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
PARTS = ("throughput", "overhead", "lag", "soak", "overload")
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


def load(
    server: Server, num_clients: int, num_requests: int, make: Callable[[HTTPConnection], Any]
) -> tuple[float, list[Any]]:
    """Seconds and results of requests that some clients send, each one after another."""
    left = iter(range(num_requests))
    lock, found = threading.Lock(), list[Any]()

    def client(_: int) -> None:
        connection = server.connect()
        while True:
            with lock:
                if next(left, None) is None:
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
    """Memory, files and threads of a server over many requests."""
    with serving(*PACKAGE) as server:
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


def overload(num_requests: int) -> None:
    """Four times as many clients as there is room for: every request is answered or refused."""
    limits = ("--limit", "max_rows=4", "--limit", "max_waiting=4")
    with serving(*PACKAGE, *limits) as server:

        def one(connection: HTTPConnection) -> tuple[int, float, float]:
            answer = ask(connection, "caption en", picture())
            if answer[0] != 200:
                time.sleep(0.2)  # a client that asks again
            return answer

        _, found = load(server, 4 * 8, 4 * num_requests, one)
        codes = Counter(status for status, _, _ in found)
        refused = [1e3 * took for status, _, took in found if status in (429, 503)]
        print(f"overload, sent {4 * num_requests}: {dict(codes)}, together {codes.total()}")
        if refused:
            p50, p99 = quantile(refused, 0.5), quantile(refused, 0.99)
            print(f"refused within p50 {p50:.0f} ms, p99 {p99:.0f} ms")


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
    service = Service.of(Models([spec], options.max_model_bytes), options)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--requests", type=int, help="of each run; 5,000 of the soak")
    parser.add_argument("--echo", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.echo:
        echo_server(args.port)
        return
    import fastapi
    import torch
    import uvicorn

    print(f"$ python {' '.join(sys.argv)}")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"{torch.get_num_threads()} threads; Python {platform.python_version()}, torch "
        f"{torch.__version__}, fastapi {fastapi.__version__}, uvicorn {uvicorn.__version__}"
    )
    numbers = {"throughput": 48, "overhead": 1000, "lag": 200, "soak": 5000, "overload": 100}
    for part in args.parts.split(","):
        print(f"\n{part}", flush=True)
        globals()[part](args.requests or numbers[part])


if __name__ == "__main__":
    main()
