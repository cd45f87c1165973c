"""`--quant` on the command line: an answer in fewer bits, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_folder import DESK, EMBEDDED

from paligemma.cli import main

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


@pytest.fixture(scope="module")
def packed_dir(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "packed"
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(tiny_dir), str(folder), "--quant", "int4:decoder,head=int8"])
    assert not ended.value.code
    return folder


def test_a_folder_that_convert_packed_is_a_model_as_any_other(
    paligemma: Run, tiny_dir: Path, packed_dir: Path
) -> None:
    for command in (("read", DESK), ("detect", DESK, "star"), ("answer", DESK, "what is it?")):
        asked = (*command, "--json", "--max-new-tokens", "4", "--model")
        wanted = paligemma(*asked, tiny_dir, "--quant", "int4:decoder,head=int8")
        found = paligemma(*asked, packed_dir)
        assert (found.status, found.err) == (0, wanted.err)
        assert {**found.json, "model": ""} == {**wanted.json, "model": ""}
    file = packed_dir / "model-packed.safetensors"
    assert paligemma(*asked, file).json["text"] == wanted.json["text"]
    assert paligemma(*asked, packed_dir, "--quant", "int4:decoder,head=int8").status == 0
    assert paligemma("inspect", DESK, "caption en", "--model", packed_dir).status == 0
    assert paligemma("bench", packed_dir, "--estimate", "--json").json["kind"] == "int4"
    seen = paligemma("doctor", packed_dir)
    assert seen.status == 0
    assert "packed weights, 1 file" in seen.out
    assert "packed as int4:decoder.attention,decoder.mlp,head=int8" in seen.out


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (("read", DESK, "--quant", "int4", "--model"), "packed weights keep their kinds"),
        (("read", DESK, "--quant", "nf4", "--model"), "packed weights keep their kinds"),
        (("bench", "MODEL", "--estimate", "--quant", "int8"), "packed weights keep their kinds"),
        (("bench", "MODEL", "--peer", "transformers"), "a comparison with transformers needs a"),
        (("read", DESK, "--mode", "bf16", "--model"), "computed in float32, which is mode exact"),
        (
            ("train", "--data", "ROWS", "--output", "OUT", "--model"),
            "a fine-tuning needs a model whose",
        ),
        (("plan", "--model"), "a fine-tuning needs a model whose"),
        (
            ("adapter", "merge", "ADAPTER", "--output", "OUT", "--model"),
            "merging needs a model whose",
        ),
        (("convert", "MODEL", "OUT"), "a conversion needs a model whose"),
    ],
)
def test_what_packed_weights_cannot_do_is_one_sentence(
    paligemma: Run,
    packed_dir: Path,
    tmp_path: Path,
    command: tuple[object, ...],
    sentence: str,
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"image": str(DESK), "prefix": "caption en", "suffix": "a desk"}))
    places = {"ROWS": rows, "OUT": tmp_path / "out", "MODEL": packed_dir, "ADAPTER": tmp_path}
    words = [places.get(word, word) if isinstance(word, str) else word for word in command]
    done = paligemma(*words, *([packed_dir] if command[-1] == "--model" else []))
    assert done.status == 2
    assert sentence in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("--quant", "nf4"),
            "a model is saved packed as bf16, int8, int4, fp8, not as nf4, which is",
        ),
        (("--quant", "int3"), "weights are quantised to"),
        (("--quant", "int4", "--layout", "npz"), "got layout beside"),
        (("--quant", "int4", "--dtype", "bfloat16"), "got dtype beside"),
        (
            ("--quant", "int4", "--spelling", "current", "--pad-rows"),
            "got spelling, pad_rows beside",
        ),
        (("--quant", "int4", "--max-shard-gb", "1"), "got max_shard_bytes beside"),
    ],
)
def test_a_packing_that_is_not_written_is_one_sentence(
    paligemma: Run, tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    done = paligemma("convert", "tiny", tmp_path / "out", *options)
    assert done.status == 2
    assert sentence in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_estimate_says_what_lies_on_each_card_and_whether_it_fits(paligemma: Run) -> None:
    model = ("bench", "google/paligemma2-28b-pt-224", "--random", "--estimate")
    done = paligemma(*model, "--cards", "40,40")
    first, second = done.out.splitlines()
    assert first.startswith("card 0: all but the blocks, blocks 0 to 2")
    assert first.endswith("of 40 GB: fits")
    assert second.startswith("card 1: blocks 2")
    assert "does not fit" in paligemma(*model, "--cards", "16,16").out
    rows = paligemma(*model, "--cards", "12,12", "--quant", "int4", "--json").json["cards"]
    assert all(row["fits"] for row in rows)
    assert 15 < sum(row["weights_gb"] for row in rows) < 18


@pytest.mark.parametrize("cards", ["", "0", "40;40", "-1", "4.5", "9" * 40, ",".join(["9"] * 33)])
def test_cards_that_are_no_gigabytes_are_refused(paligemma: Run, cards: str) -> None:
    done = paligemma("bench", "tiny", "--estimate", "--cards", cards)
    assert done.status == 2
    assert "whole numbers of gigabytes" in done.err
    assert paligemma("bench", "tiny", "--cards", "40").status == 2
