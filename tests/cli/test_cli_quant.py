"""`--quant` on the command line: an answer in fewer bits, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tiny_folder import DESK, EMBEDDED

Run = Callable[..., Any]


@pytest.mark.skipif(not (EMBEDDED / "model.safetensors").is_file(), reason="not trained yet")
@pytest.mark.parametrize("quant", ["int8", "int8:decoder,head=bf16", "bf16"])
def test_the_embedded_model_answers_in_fewer_bits_as_in_float32(paligemma: Run, quant: str) -> None:
    question = ("answer", DESK, "what color is the star?", "--model", "tiny", "--json")
    plain = paligemma(*question).json
    done = paligemma(*question, "--quant", quant)
    assert done.status == 0
    assert done.err == ""
    assert done.json["text"] == plain["text"] != ""
    assert done.json["score"] == pytest.approx(plain["score"], abs=0.05)
    assert done.json["score"] != plain["score"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--quant", "int3"), "weights are quantised to bf16, int8, int4, fp8 or nf4"),
        (("--quant", ""), "quant must be a word"),
        (("--quant", "int4:decoders"), "decoders"),
        (("--quant", "int4,head=int3"), "a head is one of bf16, int8, int4, fp8, got 'int3'"),
        (("--quant", "int8", "--mode", "bf16"), "computed in float32, which is mode exact"),
        (("--quant", "int8", "--mode", "mixed"), "leave one of the two out"),
        (("--quant", "int8", "--device", "meta"), "must be one that computes"),
    ],
)
@pytest.mark.parametrize("command", [("read",), ("caption",)])
def test_a_quantisation_that_does_not_fit_is_one_sentence(
    paligemma: Run, command: tuple[str, ...], options: tuple[str, ...], sentence: str
) -> None:
    done = paligemma(*command, DESK, *options)
    assert done.status == 2
    assert done.out == ""
    assert sentence in done.err
    assert len(done.err.splitlines()) == 1
