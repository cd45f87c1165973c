"""Requests that come and go are answered as they would be alone."""

from __future__ import annotations

import numpy as np
import pytest

from paligemma import PaliGemma
from paligemma.pipeline.engine import Written
from paligemma.pipeline.engine_queue import EngineQueue
from paligemma.pipeline.pictures import about

PROMPTS = ("detect circle ; star", "answer en how many objects are there?", "caption en", "ocr")


@pytest.fixture(scope="module")
def model() -> PaliGemma:
    return PaliGemma.from_pretrained("tiny", kv_cache_dtype="float32")


def same(one: Written, other: Written) -> bool:
    """The same tokens; products of other numbers of rows round differently."""
    return (
        np.array_equal(one.record.ids, other.record.ids)
        and np.allclose(one.record.logprobs, other.record.logprobs, atol=2e-5)
        and (one.record.loc_probs is None) == (other.record.loc_probs is None)
        and (
            one.record.loc_probs is None
            or np.allclose(one.record.loc_probs, other.record.loc_probs, atol=2e-5)
        )
        and one.is_cut == other.is_cut
    )


def test_requests_that_join_later_are_answered_as_alone(model: PaliGemma) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (80, 90, 3), np.uint8)
    encoded = model.encode_image(picture)
    requests = [
        about(model.question(prompt, max_new_tokens=24, seed=n, temperature=n / 3).requests[0], one)
        for n, prompt in enumerate(PROMPTS)
        for one in (encoded, None)
    ]
    queue, found = EngineQueue(model.engine), dict[int, Written]()
    waiting, handles = list(requests), []
    while waiting or len(queue):
        if waiting:
            handles.append(queue.submit(waiting.pop(0)))
        for event in queue.step():
            if event.written is not None:
                found[event.handle] = event.written
    for handle, request in zip(handles, requests, strict=True):
        alone = model.engine.answer([request])[0]
        assert same(found[handle], alone)
        assert found[handle].logprob == pytest.approx(alone.logprob, rel=1e-5)


def test_a_cancelled_request_frees_its_place_and_says_nothing_more(model: PaliGemma) -> None:
    queue = EngineQueue(model.engine)
    kept, dropped = (queue.submit(model.question("caption en").requests[0]) for _ in range(2))
    queue.step()
    assert queue.cancel(dropped)
    assert not queue.cancel(dropped)
    assert len(queue) == 1
    while len(queue):
        assert {event.handle for event in queue.step()} == {kept}
    assert queue.step() == []


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"best_of": 3, "temperature": 1.0}])
def test_a_search_takes_turns_with_other_answers(
    model: PaliGemma, options: dict[str, float]
) -> None:
    search = model.question("caption en", max_new_tokens=12, **options).requests[0]
    plain = model.question("caption en", max_new_tokens=12).requests[0]
    queue = EngineQueue(model.engine)
    searched, other = queue.submit(search), queue.submit(plain)
    events = queue.step()
    assert [event.handle for event in events] == [other]
    while len(queue):
        events += queue.step()
    last = {event.handle: event for event in events}
    (alone,) = model.engine.answer([search])
    assert last[searched].written is not None
    assert same(last[searched].written, alone)
    tokens = [event.token for event in events if event.handle == searched]
    assert tokens == alone.record.ids.tolist()
    assert same(last[other].written, model.engine.answer([plain])[0])


def test_a_search_is_cancelled_between_its_steps(model: PaliGemma) -> None:
    queue = EngineQueue(model.engine)
    handle = queue.submit(model.question("caption en", num_beams=2).requests[0])
    queue.step()
    assert queue.cancel(handle)
    assert not queue.cancel(handle)
    assert not len(queue)
    assert queue.step() == []
