"""OpenAI's own client finds what it expects."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from paligemma import Frames, PaliGemma
from paligemma.errors import ConfigError
from paligemma.serve.app import create_app
from paligemma.serve.asking import Service
from paligemma.serve.chat_fields import IGNORED, REFUSED, ChatRequest
from paligemma.serve.errors import ServeError
from paligemma.serve.keys import Keys
from paligemma.serve.models import Models, ModelSpec
from paligemma.serve.options import ServerOptions
from tests.serve.conftest import DESK

openai = pytest.importorskip("openai", reason="compares with OpenAI's client")

CAPTION = "caption en"
# Each is written by the embedded model in its own words.
PROMPTS = [
    *(f"caption {lang}" for lang in ("en", "de", "fr", "es", "it")),
    "cap en",
    "describe en",
    "ocr",
    *(f"detect {label}" for label in ("star", "digit", "circle ; star", "cat", "letter")),
    *(f"segment {label}" for label in ("star", "circle ; star")),
    "detect star ; segment circle",
    *(f"answer en what color is the {label}?" for label in ("star", "circle", "digit", "letter")),
    "answer en how many stars are there?",
    "answer de welche Farbe hat der Stern?",
    "héllo wörld 星",
]


@pytest.fixture(scope="module")
def chat(client: TestClient) -> Any:
    found = openai.OpenAI(
        base_url="http://testserver/v1", api_key="none", http_client=client, max_retries=0
    )
    return found.chat.completions


def service_of(model: PaliGemma, **bounds: int) -> Service:
    options = ServerOptions(**bounds)  # type: ignore[arg-type]
    spec = ModelSpec(name="tiny", load=lambda: model)
    return Service.of(Models([spec], options), options)


def user(prompt: str, *urls: str) -> dict[str, Any]:
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": prompt}]}


def about(desk: str, prompt: str = CAPTION) -> dict[str, Any]:
    return {"model": "tiny", "messages": [user(prompt, desk)]}


def joined(chunks: Any, number: int = 0) -> str:
    return "".join(
        choice.delta.content or ""
        for chunk in chunks
        for choice in chunk.choices
        if choice.index == number
    )


def test_models_are_listed_and_found_by_name(client: TestClient, chat: Any) -> None:
    models = chat._client.models
    assert [one.id for one in models.list()] == ["tiny"]
    assert models.retrieve("tiny").object == "model"
    with pytest.raises(openai.NotFoundError, match="did you mean tiny"):
        models.retrieve("tinny")


def test_a_chat_answers_in_the_words_of_the_facade(chat: Any, desk: str, local: PaliGemma) -> None:
    found = chat.create(**about(desk))
    expected = local.caption(DESK)
    assert found.object == "chat.completion"
    assert found.id.startswith("chatcmpl-")
    assert found.model == "tiny"
    (choice,) = found.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == expected.text
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None


def test_usage_counts_image_tokens_text_tokens_and_what_was_written(
    chat: Any, desk: str, local: PaliGemma
) -> None:
    counts = chat.create(**about(desk)).usage
    num_text = len(local.processor.prompt_row(CAPTION))
    assert counts.prompt_tokens == local.config.num_image_tokens + num_text
    assert counts.completion_tokens == len(local.caption(DESK).token_logprobs)
    assert counts.total_tokens == counts.prompt_tokens + counts.completion_tokens


def test_text_alone_is_answered(chat: Any, local: PaliGemma) -> None:
    found = chat.create(model="tiny", messages=[{"role": "user", "content": CAPTION}])
    assert found.choices[0].message.content == local.generate(None, CAPTION).text
    assert found.usage.prompt_tokens == len(local.processor.prompt_row(CAPTION))


def test_several_pictures_are_frames_of_one_example(chat: Any, desk: str, local: PaliGemma) -> None:
    found = chat.create(model="tiny", messages=[user(CAPTION, desk, desk)])
    assert found.choices[0].message.content == local.generate(Frames(DESK, DESK), CAPTION).text
    num_text = len(local.processor.prompt_row(CAPTION))
    assert found.usage.prompt_tokens == 2 * local.config.num_image_tokens + num_text


def test_earlier_turns_lend_their_picture_and_are_named_as_not_read(
    chat: Any, desk: str, local: PaliGemma
) -> None:
    question = "answer en what color is the star?"
    messages = [
        {"role": "system", "content": "You are a pirate."},
        user(CAPTION, desk),
        {"role": "assistant", "content": "A desk."},
        {"role": "user", "content": question},
    ]
    found = chat.create(model="tiny", messages=messages)
    assert found.choices[0].message.content == local.generate(DESK, question).text
    assert found.model_extra["paligemma"] == {
        "prompt": question,
        "ignored": [
            "messages[0]: system",
            "messages[1]: user, but for its pictures",
            "messages[2]: assistant",
        ],
        "seed": 0,
    }


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_stream_has_the_text_of_the_whole_answer(chat: Any, desk: str, prompt: str) -> None:
    whole = chat.create(**about(desk, prompt), temperature=0, logprobs=True).choices[0]
    chunks = list(chat.create(**about(desk, prompt), temperature=0, logprobs=True, stream=True))
    assert joined(chunks) == whole.message.content
    assert chunks[0].object == "chat.completion.chunk"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == whole.finish_reason
    told = [
        token.token
        for chunk in chunks
        if chunk.choices[0].logprobs is not None
        for token in chunk.choices[0].logprobs.content
    ]
    assert told == [token.token for token in whole.logprobs.content]


def test_a_stream_states_its_usage_where_that_is_asked(chat: Any, desk: str) -> None:
    whole = chat.create(**about(desk))
    chunks = list(chat.create(**about(desk), stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert {chunk.usage for chunk in chunks[:-1]} == {None}
    assert all(chunk.usage is None for chunk in chat.create(**about(desk), stream=True))


def test_tokens_come_with_the_probabilities_of_the_facade(
    chat: Any, desk: str, local: PaliGemma
) -> None:
    content = chat.create(**about(desk), logprobs=True).choices[0].logprobs.content
    expected = local.caption(DESK)
    assert sum(one.logprob for one in content) == pytest.approx(
        sum(expected.token_logprobs), abs=1e-4
    )
    assert "".join(one.token for one in content) == expected.text
    assert b"".join(bytes(one.bytes) for one in content).decode() == expected.text
    assert all(one.top_logprobs == [] for one in content)


def test_the_likeliest_tokens_come_beside_the_chosen_one(chat: Any, desk: str) -> None:
    asked = {**about(desk), "logprobs": True, "top_logprobs": 5}
    content = chat.create(**asked).choices[0].logprobs.content
    for one in content:
        most = [other.logprob for other in one.top_logprobs]
        assert len(most) == 5
        assert most == sorted(most, reverse=True)
        assert sum(map(math.exp, most)) <= 1 + 1e-5
        # A greedy answer takes the likeliest.
        assert one.token == one.top_logprobs[0].token
        assert one.logprob == pytest.approx(most[0], abs=1e-5)
    streamed = [
        token
        for chunk in chat.create(**asked, stream=True)
        for choice in chunk.choices
        if choice.logprobs is not None
        for token in choice.logprobs.content
    ]
    assert streamed == content


@pytest.mark.parametrize("as_list", [False, True])
def test_text_ends_before_a_stop(chat: Any, desk: str, as_list: bool) -> None:
    whole = chat.create(**about(desk)).choices[0].message.content
    word = whole.split()[3]
    stop = ["never this", word] if as_list else word
    asked = {**about(desk), "stop": stop, "logprobs": True}
    found = chat.create(**asked)
    (choice,) = found.choices
    assert choice.message.content == whole[: whole.index(word)]
    assert choice.finish_reason == "stop"
    # A token that the stop cuts in two counts as told.
    told = "".join(one.token for one in choice.logprobs.content)
    assert told in (choice.message.content, choice.message.content[:-1] + f" {word}")
    chunks = list(chat.create(**asked, stream=True))
    assert joined(chunks) == choice.message.content
    assert chunks[-1].choices[0].finish_reason == "stop"
    # The row ended with the stop, not at the end of the answer.
    assert found.usage.completion_tokens < chat.create(**about(desk)).usage.completion_tokens


def test_a_stop_across_tokens_is_held_back_and_what_only_begins_one_is_told(
    chat: Any, desk: str
) -> None:
    whole = chat.create(**about(desk)).choices[0].message.content
    stop = whole[4:14]  # begins and ends inside words
    chunks = list(chat.create(**about(desk), stop=stop, stream=True))
    assert joined(chunks) == whole[: whole.index(stop)]
    last = whole[-3:] + "and more"
    assert joined(chat.create(**about(desk), stop=last, stream=True)) == whole


def test_draws_have_the_seeds_that_follow_the_stated_one(chat: Any, desk: str) -> None:
    drawn = {**about(desk), "temperature": 1.5, "max_tokens": 12}
    many = chat.create(**drawn, seed=7, n=3)
    assert [choice.index for choice in many.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in many.choices]
    assert len(set(texts)) > 1
    for number, text in enumerate(texts):
        assert chat.create(**drawn, seed=7 + number).choices[0].message.content == text
    chunks = list(chat.create(**drawn, seed=7, n=3, stream=True))
    assert [joined(chunks, number) for number in range(3)] == texts


def test_draws_without_a_seed_differ_and_can_be_drawn_again(chat: Any, desk: str) -> None:
    drawn = {**about(desk), "temperature": 1.5, "top_p": 0.9, "max_tokens": 12}
    first, second = chat.create(**drawn), chat.create(**drawn)
    seeds = [one.model_extra["paligemma"]["seed"] for one in (first, second)]
    assert seeds[0] != seeds[1]
    again = chat.create(**drawn, seed=seeds[0])
    assert again.choices[0].message.content == first.choices[0].message.content
    assert chat.create(**about(desk), temperature=1.5, seed=-3, max_tokens=2).choices


def test_greedy_answers_of_one_request_are_equal(chat: Any, desk: str) -> None:
    found = chat.create(**about(desk), n=2)
    assert len({choice.message.content for choice in found.choices}) == 1
    one = chat.create(**about(desk)).usage
    assert found.usage.prompt_tokens == one.prompt_tokens
    assert found.usage.completion_tokens == 2 * one.completion_tokens


def test_a_top_p_of_one_alone_draws_nothing(chat: Any, desk: str) -> None:
    greedy = chat.create(**about(desk)).choices[0].message.content
    assert chat.create(**about(desk), top_p=1).choices[0].message.content == greedy
    assert chat.create(**about(desk), top_p=0.5, temperature=0).choices[0].message.content == greedy


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_is_cut_at_its_bound(chat: Any, desk: str, name: str) -> None:
    found = chat.create(**about(desk), **{name: 3})
    assert found.choices[0].finish_reason == "length"
    assert found.usage.completion_tokens == 3


def test_json_obeys_its_schema(chat: Any, desk: str) -> None:
    pytest.importorskip("llguidance", reason="needs the extra json")
    schema = {
        "type": "object",
        "properties": {"color": {"enum": ["red", "blue"]}},
        "required": ["color"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "c", "schema": schema, "strict": True}}
    found = chat.create(**about(desk), response_format=form, max_tokens=64)
    assert json.loads(found.choices[0].message.content)["color"] in ("red", "blue")
    assert found.choices[0].finish_reason == "stop"
    anything = chat.create(**about(desk), response_format={"type": "json_object"}, max_tokens=64)
    assert anything.choices[0].message.content.startswith("{")


def test_fields_that_change_no_answer_are_ignored_and_null_is_no_field(
    chat: Any, desk: str
) -> None:
    harmless = {
        "user": "someone",
        "metadata": {"a": "b"},
        "store": False,
        "tools": [],
        "tool_choice": "none",
        "logit_bias": {},
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "modalities": ["text"],
        "extra_body": {"stop": None, "temperature": None, "n": None},
    }
    plain = chat.create(**about(desk)).choices[0].message.content
    assert chat.create(**about(desk), **harmless).choices[0].message.content == plain


def test_every_field_of_the_client_has_a_rule() -> None:
    fields = {*inspect.signature(openai.resources.chat.Completions.create).parameters}
    own = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
    assert fields - own <= {*ChatRequest.model_fields, *IGNORED, *REFUSED}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "no tools"),
        ({"frequency_penalty": 0.5}, "no frequency_penalty"),
        ({"logit_bias": {"5": 1}}, "no logit_bias"),
        ({"modalities": ["text", "audio"]}, "no modalities"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"n": 99}, "n may be 8"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**6}, "max_tokens may be"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "1 to 4"),
        ({"stop": ""}, "stop"),
        ({"top_logprobs": 3}, "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "needs stream"),
        ({"response_format": {"type": "json_schema"}}, "schema"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"extra_body": {"temprature": 1}}, "did you mean temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "hello"}]}, "last message"),
        ({"messages": [{"role": "system", "content": "hello"}]}, "last message"),
        ({"messages": [{"role": "user", "content": ""}]}, "prompt"),
        ({"messages": [{"role": "tool", "content": "1", "tool_call_id": "1"}]}, "calls no tools"),
        ({"messages": [user(CAPTION, "data:image/png;base64,!")]}, "base64"),
        ({"messages": [user(CAPTION, "data:image/png;base64,AAAA")]}, "picture|image"),
        ({"messages": [user(CAPTION, "https://example.com/a.png")]}, "off here"),
        ({"messages": [user(CAPTION, "file:///etc/passwd")]}, "off here"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "got 'input_audio'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0.image_url is missing",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "a"}]}]},
            "messages.0.content.0.image_url must be an object, got 'a'",
        ),
        ({"messages": [{"role": "user", "content": 3}]}, "must be a text or a list, got 3"),
        ({"response_format": {"type": "xml"}}, "response_format.type must be 'text', "),
        ({"messages": [user(CAPTION, *["data:image/png;base64,AAAA"] * 9)]}, "8 pictures, got 9"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_answered_is_a_bad_request_with_a_sentence(
    chat: Any, desk: str, fields: dict[str, Any], sentence: str, stream: bool
) -> None:
    stream = stream and "stream_options" not in fields
    with pytest.raises(openai.BadRequestError, match=sentence) as caught:
        chat.create(**{**about(desk), **fields}, stream=stream)
    assert caught.value.status_code == 400
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert caught.value.type == "invalid_request_error"


def test_a_model_that_there_is_not_is_not_found(chat: Any, desk: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        chat.create(**{**about(desk), "model": "gpt-4o"})
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"messages": [{"role": "user", "content": "ocr"}], "temperature": NaN}',
        b"[" * 10_000,
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": 1e999}]}',
    ],
)
def test_a_body_that_is_no_object_of_json_is_refused(client: TestClient, body: bytes) -> None:
    answer = client.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ServeError("full", status=429, code="overloaded", retry_after_s=1), openai.RateLimitError),
        (ServeError("late", status=503, code="overloaded"), openai.InternalServerError),
        (ServeError("long", status=504, code="timeout"), openai.InternalServerError),
        (RuntimeError("a fault of ours"), openai.InternalServerError),
        (ConfigError("a rule"), openai.BadRequestError),
    ],
    ids=["429", "503", "504", "500", "400"],
)
def test_an_error_before_the_first_token_is_an_exception_of_its_kind(
    local: PaliGemma, error: Exception, expected: type[Exception], stream: bool
) -> None:
    service = service_of(local)

    async def fails(job: object) -> AsyncIterator[object]:
        raise error
        yield

    service.worker.steps = fails  # type: ignore[assignment,method-assign]
    with TestClient(create_app(service)) as http:
        chat = openai.OpenAI(
            base_url="http://testserver/v1", api_key="none", http_client=http, max_retries=0
        ).chat.completions
        with pytest.raises(expected) as caught:
            chat.create(model="tiny", messages=[{"role": "user", "content": "ocr"}], stream=stream)
    assert "a fault of ours" not in str(caught.value)


def test_a_missing_key_is_an_authentication_error(local: PaliGemma) -> None:
    with TestClient(create_app(service_of(local), keys=Keys({"one": "sk-the-key"}))) as http:
        asked = {"model": "tiny", "messages": [{"role": "user", "content": "ocr"}]}
        for key, passes in (("sk-another", False), ("sk-the-key", True)):
            chat = openai.OpenAI(
                base_url="http://testserver/v1", api_key=key, http_client=http, max_retries=0
            ).chat.completions
            if passes:
                assert chat.create(**asked, max_tokens=1).choices
            else:
                with pytest.raises(openai.AuthenticationError):
                    chat.create(**asked)


def test_a_body_beyond_the_bound_is_refused_as_too_large(local: PaliGemma) -> None:
    service = service_of(local, max_body_bytes=10_000)
    with TestClient(create_app(service)) as http:
        chat = openai.OpenAI(
            base_url="http://testserver/v1", api_key="none", http_client=http, max_retries=0
        ).chat.completions
        with pytest.raises(openai.APIStatusError) as caught:
            chat.create(model="tiny", messages=[{"role": "user", "content": "x" * 20_000}])
    assert caught.value.status_code == 413
