"""A client has every method of the façade that answers: same arguments, same results."""

from __future__ import annotations

import inspect
import io
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paligemma import Client, Detections, PaliGemma
from paligemma.client.search import SearchMethods
from paligemma.errors import ConfigError, ImageError, PromptError, RunError
from paligemma.pipeline.events import AnswerEvent, CompleteObject, Ended, WrittenToken
from paligemma.pipeline.options import AnswerOptions, ObjectOptions

pytest.importorskip("fastapi", reason="needs the extra serve")

from paligemma.serve.app import create_app
from paligemma.serve.asking import Service
from paligemma.serve.models import Models, ModelSpec
from paligemma.serve.options import ServerOptions
from paligemma.serve.schemas import AskRequest
from tests.serve.live import live

DESK = Path(__file__).parents[2] / "examples" / "desk.png"
# What only a model in this process has: its loading, and its parts.
OF_THIS_PROCESS = {
    "from_pretrained",
    "config",
    "vocab",
    "engine",
    "reader",
    "mask_codec",
    "question",
    "map",
}


@pytest.fixture(scope="module")
def local() -> PaliGemma:
    return PaliGemma.from_pretrained("tiny", kv_cache_dtype="float32")


@pytest.fixture(scope="module")
def remote(local: PaliGemma) -> Iterator[Client]:
    options = ServerOptions()
    service = Service.of(Models([ModelSpec(name="tiny", load=lambda: local)], options), options)
    with live(create_app(service)) as server, Client(server.url) as client:
        yield client


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_a_client_has_the_methods_of_the_facade_and_no_other_signatures() -> None:
    methods = public(PaliGemma) - OF_THIS_PROCESS
    of_index = public(SearchMethods)  # of the pages that a server searches
    assert not methods & of_index
    assert public(Client) == methods | of_index | {"close"}
    for name in sorted(methods):
        mine = inspect.signature(getattr(Client, name))
        theirs = inspect.signature(getattr(PaliGemma, name))
        assert [(p.name, p.kind, p.default) for p in mine.parameters.values()] == [
            (p.name, p.kind, p.default) for p in theirs.parameters.values()
        ], name
        returned = str(mine.return_annotation).replace("RemoteImage", "EncodedImage")
        assert returned == str(theirs.return_annotation), name


def test_a_server_takes_every_option_of_an_answer() -> None:
    options = {one.name for kind in (AnswerOptions, ObjectOptions) for one in fields(kind)}
    assert options - {"adapter"} <= set(AskRequest.model_fields)


def summary(events: Iterator[AnswerEvent]) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for event in events:
        if isinstance(event, WrittenToken):
            found.append(("token", event.id, event.text, round(event.logprob, 3)))
        elif isinstance(event, CompleteObject):
            one = event.detection
            box = tuple(round(edge, 4) for edge in one.box_yxyx)
            mask = None if one.region is None else one.region.area_px
            found.append(("object", one.label, box, round(one.score or 0, 3), mask))
        else:
            assert isinstance(event, Ended)
            answer = event.answer
            score = None if isinstance(answer, Detections) else round(answer.score or 0, 3)
            found.append(("end", type(answer), answer.text, score))
    return found


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("detect star ; digit", {}),
        ("segment star", {}),
        ("detect star ; segment digit", {"max_new_tokens": 60}),
        ("detect star ; digit", {"threshold": 0.9}),
        ("caption en", {}),
        ("caption en", {"num_beams": 2, "max_new_tokens": 5}),
    ],
)
def test_an_answer_is_told_as_in_this_process(
    remote: Client, local: PaliGemma, prompt: str, options: dict[str, Any]
) -> None:
    mine = summary(remote.stream_events(DESK, prompt, **options))
    assert mine == summary(local.stream_events(DESK, prompt, **options))
    assert mine[-1][0] == "end"
    if prompt.startswith(("detect star", "segment")) and "threshold" not in options:
        kinds = [event[0] for event in mine]
        assert "object" in kinds[:-2] or kinds.count("object") == 1


def test_objects_are_told_before_the_answer_ends(remote: Client) -> None:
    kinds = [type(one) for one in remote.stream_events(DESK, "detect star ; digit")]
    assert kinds.count(CompleteObject) >= 2
    assert WrittenToken in kinds[kinds.index(CompleteObject) :]


@pytest.mark.parametrize("ask", ["stream_events", "encode_image", "encode_images"])
def test_what_is_wrong_is_raised_at_the_call(remote: Client, local: PaliGemma, ask: str) -> None:
    calls: dict[str, Any] = {
        "stream_events": lambda model: model.stream_events(DESK, "caption en", max_new_tokens=0),
        "encode_image": lambda model: model.encode_image(DESK, adapter="cards"),
        "encode_images": lambda model: model.encode_images(DESK),
    }
    for model in (remote, local):
        with pytest.raises((ConfigError, ImageError)):
            calls[ask](model)


def test_a_batch_of_prompts_is_answered_in_order(remote: Client, local: PaliGemma) -> None:
    prompts = ["caption en", "detect star", "ocr", "answer en what color is the star?"]
    photo, own = remote.encode_image(DESK), local.encode_image(DESK)
    mine = remote.generate_batch(photo, prompts, max_new_tokens=12)
    theirs = local.generate_batch(own, prompts, max_new_tokens=12)
    assert [one.text for one in mine] == [one.text for one in theirs]
    assert photo.image_id is not None
    blank = np.zeros((30, 40, 3), np.uint8)
    mine = remote.generate_batch([DESK, blank], prompts[:2], max_new_tokens=12)
    theirs = local.generate_batch([DESK, blank], prompts[:2], max_new_tokens=12)
    assert [one.text for one in mine] == [one.text for one in theirs]
    alone = remote.generate_batch(None, prompts[:1], max_new_tokens=5)
    assert alone[0].text == local.generate_batch(None, prompts[:1], max_new_tokens=5)[0].text
    for model in (remote, local):
        assert model.generate_batch([], []) == []
        with pytest.raises(PromptError, match="needs a list of prompts"):
            model.generate_batch([DESK], "caption en")
        with pytest.raises(PromptError, match="a picture for each prompt, got 1 and 2"):
            model.generate_batch([DESK], prompts[:2])


def test_pictures_are_opened_as_in_this_process(remote: Client, local: PaliGemma) -> None:
    np.testing.assert_array_equal(remote.open_picture(DESK), local.open_picture(DESK))
    memory = io.BytesIO()
    pages = [Image.new("RGB", (8, 4), colour) for colour in ("red", "blue")]
    pages[0].save(memory, "TIFF", save_all=True, append_images=pages[1:])
    for frame, colour in enumerate([(255, 0, 0), (0, 0, 255)]):
        for model in (remote, local):
            page = model.open_picture(memory.getvalue(), frame=frame)
            assert page.shape == (4, 8, 3)
            assert tuple(page[0, 0]) == colour
    one, two = remote.encode_images([DESK, memory.getvalue()], frames="all")
    assert (len(one.frames), len(two.frames)) == (1, 2)
    assert (one.image_wh, two.image_wh) == ((640, 480), (8, 4))
    with pytest.raises(ImageError, match="prepared pixels are for a model in this process"):
        remote.encode_image(np.zeros((4, 4, 3), np.float32), layout="prepared")


def test_pictures_of_a_list_are_asked_side_by_side_within_a_bound(
    remote: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, running, most, asked = threading.Lock(), 0, 0, 0

    def answer(image: Any, *_: Any, **__: Any) -> Any:
        nonlocal running, most, asked
        with lock:
            running, asked = running + 1, asked + 1
            most = max(most, running)
        time.sleep(0.02 if image % 3 else 0.05)
        with lock:
            running -= 1
        if image == 30:
            raise RunError("the server is gone")
        return image

    monkeypatch.setattr(remote, "_answer", answer)
    pictures: Any = range(20)
    found = list(remote.ask_many(pictures, "caption en"))
    assert [image for image, _ in found] == [answer for _, answer in found] == list(range(20))
    assert most == remote._num_at_once == 8
    asked = 0
    with pytest.raises(RunError, match="gone"):
        list(remote.ask_many(iter(range(25, 1000)), "caption en"))
    assert asked < 40  # what was not begun is not asked


@pytest.mark.parametrize("number", [0, 65, True])
def test_the_bound_has_bounds(number: int) -> None:
    with pytest.raises(ConfigError, match=r"num_at_once must lie in 1\.\.64"):
        Client("http://localhost", num_at_once=number)
