"""Help in sections, words that were nearly right, and completion by a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete

from paligemma import cli
from paligemma.cli.sections import ASKING

Run = Callable[..., Any]


def titles(text: str) -> list[str]:
    return [line[:-1] for line in text.splitlines() if line.endswith(":") and line[0] != " "]


def test_the_options_of_detect_stand_in_sections_a_beginners_first(paligemma: Run) -> None:
    out = paligemma("detect", "--help").out
    found = [title for title in titles(out) if title not in ("Options", "Help")]
    assert found == list(ASKING)
    places = [
        out.index(f"  {name}") for name in ("--model ", "--threshold ", "-o, --output", "--mode [")
    ]
    assert places == sorted(places)
    sampling = out[out.index("\nSampling:") : out.index("\nModel, in detail:")]
    for option in ("--temperature", "--top-k", "--top-p", "--best-of", "--seed"):
        assert f"  {option} " in sampling


@pytest.mark.parametrize(
    "words",
    [("caption",), ("chat",), ("train",), ("train", "stage1"), ("eval", "docvqa"), ("mcp",)],
)
def test_no_option_is_lost_between_sections(words: tuple[str, ...], paligemma: Run) -> None:
    command: Any = cli.main
    for word in words:
        command = command.get_command(click.Context(command), word)
    out = paligemma(*words, "--help").out
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert f"{parameter.opts[0]}" in out
    assert out.count("--help") == 1
    assert len(titles(out)) > 3


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("detct",), "detect"),
        (("Segment",), "segment"),
        (("eval", "scor"), "score"),
        (("eval", "docvqaa"), "docvqa"),
        (("train", "stag2a"), "stage2a"),
        (("data", "chek"), "check"),
        (("adapter", "mrge"), "merge"),
    ],
)
def test_a_command_that_was_nearly_right_is_offered(
    words: tuple[str, ...], meant: str, paligemma: Run
) -> None:
    done = paligemma(*words)
    assert done.status == 2
    assert f"did you mean {meant}" in done.err
    assert done.out == ""


def completed(*words: str) -> list[str]:
    """What a shell is offered for the last of the words."""
    complete = ShellComplete(cli.main, {}, "paligemma", "_PALIGEMMA_COMPLETE")
    return [item.value for item in complete.get_completions(list(words[:-1]), words[-1])]


def test_a_shell_completes_commands_benchmarks_and_models() -> None:
    assert completed("de") == ["detect", "demo"]
    assert completed("eval", "s") == [
        "scenes",
        "score",
        "submission",
        *completed("eval", "list", "s"),
    ]
    assert "docvqa" in completed("eval", "doc")
    assert "docvqa" in completed("eval", "score", "--task", "doc")
    assert completed("train", "stage2") == ["stage2a", "stage2b"]
    mix = ["google/paligemma2-3b-mix-224", "google/paligemma2-3b-mix-448"]
    assert completed("detect", "--model", "google/paligemma2-3b-mix") == mix
    assert completed("doctor", "google/paligemma2-3b-mix") == mix


def test_a_shell_completes_the_rows_of_the_papers() -> None:
    found = completed("reproduce", "docvqa/paligemma-3b-pt-")
    assert found == [f"docvqa/paligemma-3b-pt-{side}" for side in (224, 448, 896)]
    assert completed("reproduce", "no such row") == []


def test_a_path_in_the_place_of_a_model_is_completed_as_a_file() -> None:
    complete = ShellComplete(cli.main, {}, "paligemma", "_PALIGEMMA_COMPLETE")
    items = complete.get_completions(["detect", "--model"], "./ru")
    assert [(item.type, item.value) for item in items] == [("file", "./ru")]


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("eval score --task docv", "docvqa"),
        ("reproduce docvqa/paligemma-3b-pt-44", "docvqa/paligemma-3b-pt-448"),
    ],
)
def test_completion_of_a_benchmark_is_quick_to_start_and_writes_plain_lines(
    typed: str, completed: str
) -> None:
    environment = {
        **os.environ,
        "_PALIGEMMA_COMPLETE": "bash_complete",
        "COMP_WORDS": f"paligemma {typed}",
        "COMP_CWORD": str(typed.count(" ") + 1),
    }
    code = "import sys\nfrom paligemma.cli import main\ntry:\n    main()\nfinally:\n"
    code += "    print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == (f"plain,{completed}\n", "False\n")


def test_verbose_names_the_files_that_are_loaded(paligemma: Run, tiny_dir: Any) -> None:
    err = paligemma("-v", "caption", "examples/desk.png", "--max-new-tokens", 1).err
    assert f"loading {tiny_dir} from {tiny_dir / 'model.safetensors'}" in err
    assert f"tokenizer {tiny_dir / 'tokenizer.model'}" in err
    assert "mode exact on cpu" in err
