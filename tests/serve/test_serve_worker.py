"""The worker answers many at once as each alone, and gives back what failed or left."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from paligemma import PaliGemma
from paligemma.errors import ConfigError
from paligemma.serve.asking import Answered, Service, Token
from paligemma.serve.errors import ServeError
from paligemma.serve.models import Models, ModelSpec
from paligemma.serve.options import ServerOptions
from paligemma.serve.streams import event_stream
from tests.serve.conftest import tiny

DESK = (Path(__file__).parents[2] / "examples" / "desk.png").read_bytes()
PROMPTS = (
    "caption en",
    "detect star ; digit",
    "segment star",
    "ocr",
    "answer en what color is the star?",
    "detect star ; detect digit",
)


@pytest.fixture(scope="module")
def wide() -> PaliGemma:
    """The model at another resolution."""
    return PaliGemma.from_pretrained("tiny", image_size_px=288, kv_cache_dtype="float32")


@asynccontextmanager
async def serving(*models: PaliGemma, **options: Any) -> AsyncIterator[Service]:
    chosen = ServerOptions(**options)
    specs = [
        ModelSpec(name=f"m{number}", load=lambda one=model: one)
        for number, model in enumerate(models)
    ]
    service = Service.of(Models(specs, chosen), chosen)
    service.worker.start()
    try:
        yield service
    finally:
        service.close()


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


async def ask(
    service: Service,
    prompt: str,
    *,
    client: str = "a",
    model: str | None = None,
    picture: bytes | None = DESK,
    on_token: Callable[[], None] = lambda: None,
    n: int = 1,
    **options: Any,
) -> tuple[str, str]:
    """The text of the last answer, and its pieces joined."""
    pieces, text = "", ""
    has_picture = picture is not None
    async with service.ask(
        model=model,
        client=client,
        pictures=[picture] if picture is not None else [],
        questions=lambda pg, adapter: [
            pg.question(prompt, has_picture=has_picture, adapter=adapter, **options)
            for _ in range(n)
        ],
    ) as asking:
        async for event in asking.events:
            pieces += event.piece
            if isinstance(event, Token):
                on_token()
            elif isinstance(event, Answered):
                text = event.result.text
    return text, pieces


async def settled(service: Service) -> None:
    """Until nothing runs or waits; two seconds at the most."""
    for _ in range(200):
        if (service.worker.load.running, service.worker.load.waiting) == (0, 0):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(service.worker.load)


def test_each_of_many_neighbours_gets_the_answer_it_gets_alone(
    local: PaliGemma, wide: PaliGemma
) -> None:
    rng = random.Random(3)
    asked = [(prompt, name, rng.choice("abc")) for prompt in PROMPTS for name in ("m0", "m1")]
    rng.shuffle(asked)

    async def test() -> None:
        async with serving(local, wide) as service:
            most = 0

            def count() -> None:
                nonlocal most
                most = max(most, service.worker.load.running)

            async def later(prompt: str, model: str, client: str) -> tuple[str, str]:
                await asyncio.sleep(rng.random() * 0.3)
                return await ask(service, prompt, model=model, client=client, on_token=count)

            many = await asyncio.gather(*(later(*one) for one in asked))
            assert most >= 4
        by_name = {"m0": local, "m1": wide}
        for (prompt, model, _), (text, pieces) in zip(asked, many, strict=True):
            assert text == by_name[model].ask(DESK, prompt).text
            assert pieces == text

    run(test())


def test_beams_let_others_go_on(local: PaliGemma) -> None:
    async def test() -> None:
        async with serving(local) as service:
            beams = asyncio.create_task(ask(service, "caption en", num_beams=8, max_new_tokens=200))
            while not service.worker.load.running:
                await asyncio.sleep(0.001)
            await ask(service, "answer en what color is the star?")
            assert not beams.done()
            text, pieces = await beams
            assert text == pieces == local.ask(DESK, "caption en", num_beams=8).text

    run(test())


def test_a_client_that_leaves_frees_its_rows_within_a_step(local: PaliGemma) -> None:
    async def test() -> None:
        async with serving(local) as service:
            for after in (0, 1, 3, 9):  # tokens; 0 is while the picture is read or encoded
                seen = 0

                def count() -> None:
                    nonlocal seen
                    seen += 1

                task = asyncio.create_task(ask(service, "detect star ; digit", on_token=count, n=3))
                while seen < after or not service.worker.load.waiting + service.worker.load.running:
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait((task,))
                await settled(service)
                (loaded,) = service.models._loaded.values()
                assert len(loaded.queue) == loaded.num_users == 0
            assert (await ask(service, "caption en"))[0] == local.ask(DESK, "caption en").text

    run(test())


def test_a_step_that_fails_loses_no_request_of_another_model(
    local: PaliGemma, wide: PaliGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with serving(local, wide) as service:
            async with service.models.lease("m1") as lease:
                broken = lease.loaded.queue
            monkeypatch.setattr(broken, "step", lambda: 1 / 0)
            bad = ask(service, "caption en", model="m1")
            good = [ask(service, prompt, model="m0") for prompt in PROMPTS]
            found = await asyncio.gather(bad, *good, return_exceptions=True)
            assert isinstance(found[0], ZeroDivisionError)
            assert [one[0] for one in found[1:]] == [local.ask(DESK, one).text for one in PROMPTS]
            text, _ = await ask(service, "caption en", model="m1")  # with a new queue
            assert text == wide.ask(DESK, "caption en").text

    run(test())


def test_a_picture_that_fails_in_the_tower_loses_no_other(
    local: PaliGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = type(local.engine).encode

    def fails_at_red(self: Any, pixels: Any, **options: Any) -> Any:
        if any(float(one[0, 0, 1]) < -0.9 for one in pixels):
            raise RuntimeError("out of memory")
        return encode(self, pixels, **options)

    monkeypatch.setattr(type(local.engine), "encode", fails_at_red)
    red = b"P6 2 2 255\n" + b"\xff\x00\x00" * 4

    async def test() -> None:
        async with serving(local) as service:
            asked = [ask(service, "caption en", picture=one) for one in (DESK, red, DESK)]
            found = await asyncio.gather(*asked, return_exceptions=True)
            assert isinstance(found[1], RuntimeError)
            assert found[0] == found[2] == (local.ask(DESK, "caption en").text,) * 2

    run(test())


def test_a_refused_row_frees_the_rows_beside_it(
    local: PaliGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with serving(local) as service:
            async with service.models.lease(None) as lease:
                queue = lease.loaded.queue
            submit, calls = queue.submit, []

            def refuses_the_second(request: Any) -> int:
                calls.append(request)
                if len(calls) == 2:
                    raise ConfigError("no room")
                return submit(request)

            monkeypatch.setattr(queue, "submit", refuses_the_second)
            with pytest.raises(ConfigError, match="no room"):
                await ask(service, "caption en", n=3)
            assert len(calls) == 2
            await settled(service)
            assert len(queue) == 0
            assert (await ask(service, "ocr"))[0] == local.ask(DESK, "ocr").text

    run(test())


def test_clients_take_turns(local: PaliGemma) -> None:
    async def test() -> None:
        async with serving(local, max_rows=2, max_waiting=40) as service:
            order: list[str] = []

            async def one(client: str) -> None:
                await ask(service, "answer en what color is the star?", client=client)
                order.append(client)

            flood = [asyncio.create_task(one("flood")) for _ in range(12)]
            await asyncio.sleep(0.02)
            before = len(order)  # more on a machine that woke this task late
            await asyncio.gather(one("other"), one("third"))
            # Without turns they would be the last two of fourteen.
            assert len(order) - before <= 9, order
            await asyncio.gather(*flood)

    run(test())


def test_four_times_too_much_is_answered_or_refused(local: PaliGemma) -> None:
    async def test() -> None:
        limits = {"max_rows": 2, "max_waiting": 6, "max_waiting_of_client": 3}
        async with serving(local, **limits) as service:
            asked = [ask(service, "ocr", client=f"c{number % 4}") for number in range(32)]
            found = await asyncio.gather(*asked, return_exceptions=True)
            refused = [one for one in found if isinstance(one, ServeError)]
            answered = [one for one in found if isinstance(one, tuple)]
            assert len(refused) + len(answered) == 32
            assert len(answered) >= 6
            assert {(one.status, one.retry_after_s) for one in refused} == {(429, 1)}
            await settled(service)
            assert service.worker._num_of_client == {}

    run(test())


@pytest.mark.parametrize(
    ("limits", "status"), [({"queue_s": 0.05}, 503), ({"answer_s": 0.05}, 504)]
)
def test_a_deadline_ends_a_request_and_frees_its_place(
    local: PaliGemma, limits: dict[str, float], status: int
) -> None:
    async def test() -> None:
        async with serving(local, max_rows=1, **limits) as service:
            await ask(service, "answer en x", picture=None, max_new_tokens=1)  # loads
            asked = [
                ask(service, "caption en", picture=None, temperature=10.0, max_new_tokens=500)
                for _ in range(3)
            ]
            found = await asyncio.gather(*asked, return_exceptions=True)
            late = [one.status for one in found if isinstance(one, ServeError)]
            assert status in late
            await settled(service)

    run(test())


def test_an_idle_worker_sleeps(local: PaliGemma) -> None:
    async def test() -> None:
        async with serving(local) as service:
            await ask(service, "ocr")
            await settled(service)
            await asyncio.sleep(0.05)
            before = time.process_time()
            await asyncio.sleep(0.5)
            assert time.process_time() - before < 0.05

    run(test())


def test_closing_answers_everybody(local: PaliGemma) -> None:
    async def test() -> None:
        async with serving(local, max_rows=1) as service:
            asked = [asyncio.create_task(ask(service, "caption en", n=1)) for _ in range(5)]
            while not service.worker.load.running:
                await asyncio.sleep(0.001)
            service.worker.close()
            found = await asyncio.gather(*asked, return_exceptions=True)
            assert {one.code for one in found if isinstance(one, ServeError)} == {"stopping"}
            with pytest.raises(ServeError, match="stopping"):
                await ask(service, "ocr")

    run(test())


def test_a_model_is_loaded_once_even_if_who_asked_first_leaves(local: PaliGemma) -> None:
    loads, go = [], threading.Event()

    def slowly() -> PaliGemma:
        loads.append(1)
        go.wait(5)
        return local

    async def test() -> None:
        options = ServerOptions()
        models = Models([ModelSpec(name="m", load=slowly)], options)
        service = Service.of(models, options)
        service.worker.start()
        first = asyncio.create_task(ask(service, "ocr"))
        second = asyncio.create_task(ask(service, "ocr"))
        await asyncio.sleep(0.05)
        first.cancel()
        await asyncio.wait((first,))
        go.set()
        assert (await second)[0] == local.ask(DESK, "ocr").text
        assert loads == [1]
        service.close()

    run(test())


def test_models_are_forgotten_down_to_the_bound_but_not_in_use(local: PaliGemma) -> None:
    async def test() -> None:
        names = ("a", "b", "c")
        size = sum(one.nbytes for one in local.model.parameters())
        options = ServerOptions(max_model_bytes=int(2.5 * size))
        models = Models([ModelSpec(name=name, load=tiny) for name in names], options)
        async with models.lease("a"):
            for name in ("b", "c"):
                async with models.lease(name):
                    pass
            assert models.loaded("a")
            assert not models.loaded("b")
        async with models.lease("b"):  # now a is the one that was asked for longest ago
            assert not models.loaded("a")
        models.close()

    run(test())


def test_a_stream_that_is_never_read_is_closed() -> None:
    ended = []

    @asynccontextmanager
    async def held() -> AsyncIterator[str]:
        try:
            yield "entered"
        finally:
            ended.append(True)

    async def events(entered: str) -> AsyncIterator[str]:
        yield entered

    async def gone(*_: Any) -> Any:
        raise OSError

    async def test() -> None:
        response = await event_stream(held(), events)
        assert not ended
        with pytest.raises(BaseException):  # noqa: B017
            await response({"type": "http", "asgi": {"spec_version": "2.4"}}, gone, gone)
        assert ended

    run(test())
