"""Answers that obey a JSON schema."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_folder import DESK

from paligemma import PaliGemma
from paligemma.errors import ConfigError, MissingExtraError
from paligemma.generate import JsonTokens
from paligemma.kernels import native
from paligemma.pipeline.options import AnswerOptions

PROMPT = "answer en what is there?"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["star", "circle"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "big": {"type": "boolean"},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 2},
    },
    "required": ["kind", "count", "big", "tags"],
    "additionalProperties": False,
}


def obeys(text: str) -> Mapping[str, Any]:
    """The answer, checked by hand against `SCHEMA`."""
    found = json.loads(text)
    assert list(found) == ["kind", "count", "big", "tags"]
    assert found["kind"] in ("star", "circle")
    assert type(found["count"]) is int
    assert 0 <= found["count"] <= 99
    assert type(found["big"]) is bool
    assert len(found["tags"]) <= 2
    assert set(found["tags"]) <= {"red", "blue"}
    # Spacing is Python's own.
    assert json.dumps(found) == text
    return found


def nested(levels: int) -> dict[str, Any]:
    """Lists of lists."""
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.fixture(scope="module")
def pg() -> PaliGemma:
    pytest.importorskip("llguidance")
    return PaliGemma.from_pretrained("tiny")


def test_answers_obey_the_schema_alone_streamed_and_in_a_batch(pg: PaliGemma) -> None:
    encoded = pg.encode_image(DESK)
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3}
    how: dict[str, Any] = {"json_schema": schema, "temperature": 3.0, "seed": 2}
    text = pg.generate(encoded, PROMPT, **how).text
    assert "".join(pg.stream(encoded, PROMPT, **how)) == text
    together = pg.generate_batch(encoded, [PROMPT, "caption en"], **how)
    assert together[0].text == text
    for answer in together:
        found = json.loads(answer.text)
        assert 1 <= len(found) <= 3
        assert all(isinstance(one, bool) for one in found)


def test_a_whole_number_is_a_schema_too(pg: PaliGemma) -> None:
    answer = pg.answer(DESK, "how many stars are there?", json_schema={"type": "integer"})
    assert str(int(answer.text)) == answer.text


@pytest.mark.parametrize("number", [2**53 - 1, 0, 1 - 2**53, 0.1])
def test_numbers_are_followed_to_the_last_digit(pg: PaliGemma, number: float) -> None:
    answer = pg.generate(DESK, PROMPT, json_schema={"const": number})
    assert json.loads(answer.text) == number


@pytest.mark.skipif(native.library() is None, reason=native.describe())
def test_what_the_schema_leaves_no_choice_in_is_certain(pg: PaliGemma) -> None:
    packed = PaliGemma.from_pretrained("tiny", quant="bf16")
    how: dict[str, Any] = {"json_schema": SCHEMA, "probabilities": "allowed"}
    answer = packed.generate(DESK, PROMPT, **how)
    obeys(answer.text)
    assert answer.token_logprobs is not None
    certain = [logprob for logprob in answer.token_logprobs if logprob == 0.0]
    assert len(certain) > len(answer.token_logprobs) / 2


def test_an_answer_that_its_bound_cuts_is_reported(
    pg: PaliGemma, caplog: pytest.LogCaptureFixture
) -> None:
    answer = pg.generate(DESK, PROMPT, json_schema=SCHEMA, max_new_tokens=9)
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.text)
    assert "max_new_tokens" in caplog.text


@pytest.mark.parametrize(
    ("schema", "rule"),
    [
        ({"type": "nope"}, "cannot be followed: Invalid type: nope"),
        ({"type": "string", "pattern": "("}, "cannot be followed: regex parse error"),
        ({"$ref": "#/nowhere"}, "cannot be followed: Pointer"),
        ({"$ref": "#"}, r"nothing to write that the vocabulary can spell \(\w+\)"),
        ({"enum": ["red", "half a pair \ud800"]}, "cannot be followed: unexpected end of hex"),
        ({"required": ["\udfff"]}, "cannot be followed: .*surrogate"),
        (nested(200), "cannot be followed: recursion limit"),
        # The embedded vocabulary has no such letter.
        ({"enum": ["\u0416"]}, "nothing to write that the vocabulary can spell"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(
    pg: PaliGemma, schema: dict[str, Any], rule: str
) -> None:
    with pytest.raises(ConfigError, match=rule) as error:
        pg.read(DESK, json_schema=schema)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("schema", "rule"),
    [
        ("{}", "must be an object of JSON, got str"),
        ({"enum": [print]}, "must be JSON, but"),
        ({"enum": ["a" * 70_000]}, "at most 65536 characters, got 70"),
        (nested(20_000), "must be JSON, but"),
        ({"const": 2**53 + 1}, "within 9007199254740991 of 0, .*got 9007199254740993;"),
        ({"type": "integer", "minimum": 10**30}, "within 9007199254740991 of 0"),
        ({"properties": {"a": {"maximum": -1e300}}}, "within .*got -1e\\+300"),
        ({"enum": [float("inf")]}, "within .*got Infinity"),
        ({"const": float("nan")}, "within .*got NaN"),
    ],
)
def test_what_is_no_schema_is_refused_before_anything_is_read(schema: Any, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        AnswerOptions(json_schema=schema)


def test_an_answer_follows_one_grammar(pg: PaliGemma) -> None:
    with pytest.raises(ConfigError, match="got choices and json_schema"):
        pg.read(DESK, json_schema=SCHEMA, choices=["yes"])
    with pytest.raises(ConfigError, match="a grammar follows one answer"):
        pg.read(DESK, json_schema=SCHEMA, num_beams=2)
    with pytest.raises(ConfigError, match="one grammar"):
        pg.detect(DESK, "star", json_schema=SCHEMA, constrain=True)


def test_without_the_library_its_extra_is_named(
    pg: PaliGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'paligemma\[json\]'"):
        JsonTokens(pg.vocab, [], pg.processor.tokenizer.encode)


def test_the_bytes_of_pieces_are_what_they_write(pg: PaliGemma) -> None:
    tokenizer = pg.processor.tokenizer
    pieces = tokenizer.pieces_in_bytes()
    for text in ("a red star", '{"a": [1, true]}'):
        assert b"".join(pieces[token] for token in tokenizer.encode(text)) == text.encode()
    vocab = pg.vocab
    for token in (vocab.pad, vocab.bos, vocab.eos, vocab.loc0, vocab.loc0 + 1023, vocab.seg0):
        assert pieces[token] == b""


def test_a_schema_in_a_file_reaches_the_answer(
    pg: PaliGemma, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from paligemma.cli import main

    path = tmp_path / "schema.json"

    def run(*words: str) -> tuple[object, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["generate", str(DESK), PROMPT, "--model", "tiny", "--json-schema", *words])
        printed = capfd.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    path.write_text('{"type": "boolean"}')
    status, out, _ = run(str(path))
    assert (status, out.strip() in ("true", "false")) == (0, True)
    path.write_text("{'type': 1}")
    status, out, err = run(str(path))
    assert (status, out, "is no JSON" in err) == (2, "", True)
    path.write_text("[1]")
    status, out, err = run(str(path))
    assert (status, out, "must be an object of JSON" in err) == (2, "", True)
