"""`paligemma bench --peer`: engines in processes of their own, in turns."""

from __future__ import annotations

import json
import math
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_folder import write_random_tiny

from paligemma.bench.engine_process import EngineFailed, Worker
from paligemma.bench.linear import Line
from paligemma.cli import main

PYTHON = sys.executable
# Stands in for Python: answers as the file beside it says for its engine, then does what is left.
FAKE = """#!{python}
import json, os, sys, time
from pathlib import Path
engine, asked = sys.argv[2], 0
lines = json.loads(Path({answers!r}).read_text())[engine]
print(lines[0], flush=True)
for number, line in enumerate(sys.stdin, start=1):
    if number == len(lines):
        print("the last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), 9)
    if lines[number] == "asleep":
        time.sleep(60)
    request = json.loads(line)
    if "logits" in request:
        import array
        array.array("f", [float(x) for x in {logits}[engine]]).tofile(open(request["logits"], "wb"))
    print(lines[number], flush=True)
"""


def times(vision: float | None, prefill: float, step: float) -> str:
    body = {"vision_s": vision, "prefill_s": prefill, "steps_s": {"1": step}}
    return json.dumps(body | {"peak_memory_bytes": 2_000_000_000})


READY = ['{"version": "1.2"}', '{"load_s": 2.0}']
OURS = [*READY, *[times(1.0, 1.0, 0.1)] * 4]


def fake_python(
    folder: Path, lines: dict[str, list[str]], logits: dict[str, list[str]] | None = None
) -> Path:
    fake, answers = folder / "python", folder / "answers.json"
    answers.write_text(json.dumps(lines))
    fake.write_text(FAKE.format(python=PYTHON, answers=str(answers), logits=logits))
    fake.chmod(0o755)
    return fake


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command with engines that answer these lines; its status, output and errors."""

    def run(
        peer: list[str],
        *options: str,
        ours: list[str] = OURS,
        logits: list[list[float]] | None = None,
    ) -> tuple[int, str, str]:
        mine, theirs = logits or [[1.0, 2.0], [1.0, 2.0]]
        fake = fake_python(
            tmp_path,
            {"ours": ours, "transformers": peer, "llama.cpp": peer},
            {"ours": [*map(str, mine)], "transformers": [*map(str, theirs)]},
        )
        monkeypatch.setattr(sys, "executable", str(fake))
        with pytest.raises(SystemExit) as left:
            main(["bench", "--peer", "transformers", "--peer-python", str(fake), *options])
        told = capsys.readouterr()
        return int(left.value.code or 0), told.out, told.err

    return run


def test_turns_alternate_and_ratios_are_taken_round_by_round(ask: Any) -> None:
    peer = [*READY, *(times(2.0, 2.0, step) for step in (9.0, 0.2, 0.3, 0.4))]
    status, out, _ = ask(peer, "--repetitions", "3", "--json")
    assert status == 0
    body = json.loads(out)
    assert [one["engine"] for one in body["turns"]] == ["ours", "transformers"] * 3
    assert [one["round"] for one in body["turns"]] == [1, 1, 2, 2, 3, 3]
    assert all("bytes_per_s" in one["limits"] for one in body["turns"])
    decode = body["summary"]["decode, batch 1, tokens/s"]
    # The first answer warms up and is not counted.
    assert decode["transformers"] == {
        "median": pytest.approx(10 / 3),
        "min": pytest.approx(2.5),
        "max": pytest.approx(5),
    }
    assert decode["times_better"] == {
        "median": pytest.approx(3),
        "min": pytest.approx(2),
        "max": pytest.approx(4),
    }
    assert body["summary"]["first token, s"]["times_better"]["median"] == pytest.approx(2)
    assert body["summary"]["peak memory, GB"]["ours"]["median"] == pytest.approx(2)
    assert body["agreement"]["is_equal_work"]
    assert body["versions"] == {"ours": "1.2", "transformers": "1.2"}


def test_engines_that_answer_differently_are_not_compared_in_silence(ask: Any) -> None:
    status, out, _ = ask(OURS, "--repetitions", "1", logits=[[1.0, 2.0], [2.0, 1.0, 0.0]])
    assert status == 0
    assert "COMPUTE DIFFERENT THINGS" in out
    assert "differ by 1 at most" in out


@pytest.mark.parametrize(
    ("peer", "told"),
    [
        ([*READY, times(1.0, 1.0, 0.5), times(1.0, 1.0, 0.5)], r"in round 2, .*status -9 .*words"),
        ([*READY, times(1.0, 1.0, 0.5), "rubbish", ""], "in round 1, it answered b'rubbish"),
        ([*READY, times(1.0, 1.0, 0.5), "[1]", ""], "in round 1, .* no JSON object"),
        ([*READY, times(1.0, 1.0, 0.5), "[" * 60_000, ""], "in round 1, .* no JSON object"),
        ([*READY, times(1.0, 1.0, 0.5), times(1.0, 1.0, 1e-320), ""], "1e-320 as 1, .*no sensible"),
        (
            [*READY, times(1.0, 1.0, 0.5), "{}", ""],
            "in round 1, it answered {}, which are no times",
        ),
        ([*READY, times(1.0, 1.0, 0.5), times(1.0, -1.0, 1.0)], "in round 1, it answered -1.0 as"),
        ([*READY, times(1.0, 1.0, 0.5), times(1.0, 1.0, float("nan")), ""], "in round 1, .*nan as"),
        ([*READY, times(1.0, 1.0, 0.5), '{"error": "no room"}', ""], "in round 1, no room"),
        ([*READY, times(1.0, 1.0, 0.5), "1" * 100_000, ""], "in round 1, it answered b'111"),
        ([*READY, times(1.0, 1.0, 0.5), '{"prefill_s": 1, "steps_s": []}', ""], "which are no tim"),
        ([READY[0]], "while it was loaded, .*status -9"),
    ],
)
def test_a_peer_that_fails_is_named_and_what_was_measured_is_kept(
    ask: Any, peer: list[str], told: str
) -> None:
    status, out, err = ask(peer, "--repetitions", "3")
    assert status == 1
    assert re.search(told, out)
    assert re.search(f"paligemma: transformers failed .*{told}", err)
    assert "Traceback" not in err
    decode = next(line for line in out.splitlines() if line.startswith("decode, batch 1"))
    assert "10 [10..10]" in decode


def test_a_peer_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_python(tmp_path, {"transformers": [*READY, "asleep"]})
    with Worker("transformers", str(fake), threads=1) as engine:
        assert engine.ask() == {"load_s": 2.0}
        monkeypatch.setattr("paligemma.bench.engine_process._TIMEOUT_S", 0.2)
        with pytest.raises(EngineFailed, match=r"did not answer within 0\.2 s"):
            engine.ask()


@pytest.mark.parametrize(
    ("wrong", "told"), [([1.0], "has 1 logits, not 2"), ([1.0, math.inf], "not finite")]
)
def test_logits_that_are_none_are_a_failure(ask: Any, wrong: list[float], told: str) -> None:
    status, out, err = ask(OURS, "--repetitions", "1", logits=[[1.0, 2.0], wrong])
    assert status == 1
    assert told in err
    assert "10 [10..10]" in out


def test_logits_that_were_not_written_lose_nothing_that_was_measured(
    ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "FAKE", FAKE.replace('"logits" in request', "False"))
    status, out, err = ask(OURS, "--repetitions", "1")
    assert status == 1
    assert re.search("transformers failed when answers .*are not there", err)
    assert "10 [10..10]" in out


def test_llama_cpp_that_is_not_installed_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_spec("llama_cpp") is not None:
        pytest.skip("it is installed here")
    (tmp_path / "text.gguf").write_bytes(b"GGUF")
    with pytest.raises(SystemExit) as left:
        main(["bench", "--peer", "llama.cpp", "--peer-model", str(tmp_path / "text.gguf")])
    assert left.value.code == 2
    assert "install llama-cpp-python there" in capsys.readouterr().err


def test_engines_that_do_not_fit_together_are_loaded_anew_for_each_turn(
    ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paligemma.bench.turns.free_memory_bytes", lambda: 10**9)
    # A process answers one turn after warming up; a second one would end it.
    once = [*READY, times(1.0, 1.0, 9.0), times(1.0, 1.0, 0.1)]
    status, out, _ = ask(once, "--repetitions", "2", ours=once)
    assert status == 0
    assert "one after the other, loaded anew" in out
    assert "10 [10..10]" in out


def test_a_text_half_has_no_picture_and_no_answer_to_compare(ask: Any, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_bytes(b"GGUF")
    peer = [*READY, *[times(None, 3.0, 0.1)] * 4]
    words = ("--peer", "llama.cpp", "--peer-model", str(tmp_path / "text.gguf"))
    status, out, _ = ask(peer, *words, "--repetitions", "1")
    assert status == 0
    assert re.search(r"^first token, s +2 \[2..2\]$", out, re.MULTILINE)
    assert re.search(r"^prompt, s +1 \[1..1\] +3 \[3..3\] +3 \[3..3\] x$", out, re.MULTILINE)
    assert "answers are not" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--peer", "transformers", "--peer-python", "/nowhere/python"], "--peer-python"),
        (["--peer", "transformers", "--peer-python", "/bin/true"], "status 0.*--peer-python"),
        (["--peer", "llama.cpp"], "--peer-model"),
        (["--peer", "llama.cpp", "--peer-model", "/nowhere/text.gguf"], "/nowhere.*--peer-model"),
        (["--peer", "llama.cpp", "--peer-model", __file__], f"{__file__} is none.*--peer-model"),
        (["--peer", "llama.cpp", "--peer-model", ""], "an empty name"),
        (["--peer", "transformers", "--peer-model", __file__], "reads a folder.*--peer-model"),
        (["--peer", "transformers", "--peer-model", "/nowhere"], "reads a folder.*--peer-model"),
        (["--peer", "transformers", "--peer-python", ""], "an empty name"),
        (["--peer-model", __file__], "need --peer"),
        (["--peer", "transformers", "--prompt-tokens", "4,8"], "one number"),
        (["--peer", "transformers", "--estimate"], "no --estimate"),
        (["--peer", "transformers", "--image-size", "448"], "its own resolution, got 448"),
        (["--peer", "ollama"], "transformers"),
    ],
)
def test_a_peer_that_is_not_there_is_one_sentence_with_the_remedy(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["bench", *words])
    assert left.value.code == 2
    assert re.search(told, capsys.readouterr().err)


def test_transformers_answers_the_same_about_the_same_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_random_tiny(tmp_path / "model", dtype="float32")
    words = ["--repetitions", "1", "--tokens", "2", "--batch", "1,2", "--threads", "1", "--json"]
    words += ["--kv-cache", "float32"]
    before = torch.get_num_threads()
    try:
        main(["bench", str(folder), "--peer", "transformers", *words], standalone_mode=False)
    finally:
        torch.set_num_threads(before)
    body = json.loads(capsys.readouterr().out)
    assert body["failures"] == {}
    assert body["side_by_side"]
    assert body["agreement"]["same_first_token"]
    assert body["agreement"]["relative"] < 1e-5
    assert body["agreement"]["largest_logit"] > 0.01
    for name, row in body["summary"].items():
        assert row["times_better"]["median"] > 0, name


def test_a_line_is_the_best_one_and_its_farthest_point_is_known() -> None:
    assert Line.through([(1, 3.0), (2, 5.0)]) is None
    exact = Line.through([(1, 3.0), (2, 5.0), (4, 9.0)])
    assert exact is not None
    assert (exact.start, exact.slope) == (pytest.approx(1), pytest.approx(2))
    assert exact.departure == pytest.approx(0)
    bent = Line.through([(0, 1.0), (1, 1.0), (2, 4.0)])
    assert bent is not None
    assert (bent.start, bent.slope, bent.departure) == (
        pytest.approx(0.5),
        pytest.approx(1.5),
        pytest.approx(1.0),
    )
