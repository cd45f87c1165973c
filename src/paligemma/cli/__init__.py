"""The command line: one subcommand a function, and none imported before it is called."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import click

from paligemma.cli.sections import NamingGroup
from paligemma.cli.stopping import Stopped, signals_as_exceptions
from paligemma.cli.terminal import GuardedStream, guarded_streams
from paligemma.errors import ConfigError, PaliGemmaError, RunError, bounded
from paligemma.whole_file import NO_ROOM

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

_COMPLETION = "_PALIGEMMA_COMPLETE"


@dataclass(frozen=True)
class Entry:
    """Where a command lives, and its line in the help of the whole."""

    module: str
    function: str
    summary: str


COMMANDS: dict[str, Entry] = {
    "run": Entry("ask", "run", "Ask whatever the prompt says; it decides what comes back."),
    "caption": Entry("ask", "caption", "Describe a picture."),
    "answer": Entry("ask", "answer", "Answer a question about a picture."),
    "read": Entry("ask", "read", "Read the text in a picture."),
    "detect": Entry("ask", "detect", "Find things: boxes with confidences."),
    "segment": Entry("ask", "segment", "Outline things: boxes and masks."),
    "generate": Entry("ask", "generate", "Write the raw answer, as it comes."),
    "chat": Entry("chat", "chat", "Ask one picture many things."),
    "inspect": Entry("inspection", "inspect", "Show what the model sees of one example."),
    "batch": Entry("batch", "batch", "Label pictures by the million, on machines that may fail."),
    "review": Entry("review", "review", "Accept, correct or reject labels in a browser."),
    "index": Entry("library", "index_group", "Keep documents so that they can be searched."),
    "search": Entry("search", "search", "Find the pages of documents that match a query."),
    "models": Entry("models", "models", "List the models that can be named."),
    "convert": Entry(
        "models", "convert", "Rewrite a checkpoint in another layout, dtype or packing."
    ),
    "export": Entry(
        "export", "export_command", "Write a model for other programs: ONNX, AOTInductor, hub."
    ),
    "push": Entry("hub", "push_command", "Send a model's folder to the hub, with its figures."),
    "pull": Entry("hub", "pull_command", "Download a repository of the hub as a folder."),
    "doctor": Entry("models", "doctor", "Check a checkpoint and say what is wrong with it."),
    "demo": Entry("demo", "demo", "Ask the embedded model five things about a picture."),
    "eval": Entry("eval", "eval_group", "Score a model on a benchmark or on your own rows."),
    "train": Entry("train", "train_group", "Teach a model your task; or make the embedded one."),
    "data": Entry("data", "data_group", "Check, convert or show labelled pictures."),
    "plan": Entry("plan", "plan_command", "Say what a training needs: memory, cards, time."),
    "reproduce": Entry("reproduce", "reproduce", "Run a row of the papers: train, measure."),
    "bench": Entry("bench", "bench", "Measure how fast a model answers on this machine."),
    "similar": Entry("similar", "similar", "Find pictures like a picture."),
    "serve": Entry("serve", "serve", "Serve a model over HTTP, with a page."),
    "mcp": Entry("mcp", "mcp", "Offer a model to an agent as tools (MCP)."),
    "adapter": Entry("adapter", "adapter_group", "Merge an adapter into its model, or show it."),
}


SECTIONS = {
    "Ask a model about pictures": (
        "run",
        "detect",
        "segment",
        "caption",
        "answer",
        "read",
        "generate",
        "chat",
        "demo",
        "batch",
    ),
    "Search documents and pictures": ("index", "search", "similar"),
    "Teach a model": ("review", "train", "data", "plan", "adapter"),
    "Measure a model": ("eval", "reproduce", "bench"),
    "Files of models": ("models", "convert", "export", "push", "pull", "doctor", "inspect"),
    "Serve a model": ("serve", "mcp"),
}
_WIDTH = max(map(len, COMMANDS))


class LazyGroup(NamingGroup):
    """A group whose commands are imported when they are called, and whose errors are sentences."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        return getattr(importlib.import_module(f"{__name__}.{entry.module}"), entry.function)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in SECTIONS.items():
            with formatter.section(title):
                # One width for all sections.
                rows = [(name.ljust(_WIDTH), COMMANDS[name].summary) for name in names]
                formatter.write_dl(rows)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run; as a program, exit with one sentence: 2 for what was asked, 1 for what failed."""
        prog_name = prog_name or "paligemma"
        complete_var = complete_var or _COMPLETION
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        words = list(sys.argv[1:] if args is None else args)
        # Completions are written as bytes, of names that the program knows.
        completes = _COMPLETION in os.environ
        with nullcontext() if completes else guarded_streams(), signals_as_exceptions():
            try:
                status = super().main(
                    words, prog_name, complete_var, standalone_mode=False, obj=words, **extra
                )
            except PaliGemmaError as error:
                asked_wrongly = isinstance(error, ConfigError)
                sentence = _with_option_names(str(error)) if asked_wrongly else str(error)
                _complain(sentence)
                has_failed = isinstance(error, RunError) or _was_full(error)
                status = EXIT_FAILED if has_failed else EXIT_BAD_INPUT
            except OSError as error:
                if _was_writing(error):
                    _drop_output()
                    _complain(
                        f"standard output cannot be written ({error.strerror}); "
                        "send it where there is room"
                    )
                    status = EXIT_BAD_INPUT
                else:
                    logging.getLogger(__name__).info("where it failed:", exc_info=error)
                    _complain(_of_the_system(error))
                    status = EXIT_FAILED
            except click.Abort as error:
                stop = error.__cause__
                status = stop.exit_code if isinstance(stop, Stopped) else EXIT_INTERRUPTED
            except click.ClickException as error:
                error.show()
                status = error.exit_code
            sys.exit(status)


def _complain(sentence: str) -> None:
    # Colour codes are shown as what they are, not taken away.
    click.echo(f"paligemma: {bounded(sentence)}", err=True, color=True)


def _of_the_system(error: OSError) -> str:
    """The system's own words with the file, and what helps."""
    place = f" ({error.filename})" if error.filename else ""
    return (
        f"a file or the disk failed: {error.strerror or error}{place}; "
        "see to its place, rights and room, and try again"
    )


def _was_full(error: BaseException | None) -> bool:
    """Whether an error began with a full disk, which no other input mends."""
    while error is not None:
        # safetensors writes the number of the system's error in its words.
        words = str(error) if type(error).__name__ == "SafetensorError" else ""
        if getattr(error, "errno", None) in NO_ROOM or f"os error {errno.ENOSPC})" in words:
            return True
        error = error.__cause__
    return False


def _was_writing(error: BaseException) -> bool:
    """Whether an error arose where the program writes what it has to say."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    writers = (click.echo.__code__, GuardedStream.write.__code__)
    return trace is not None and trace.tb_frame.f_code in writers


def _drop_output() -> None:
    """Send what standard output still holds nowhere: Python would try again at its end."""
    if sys.stdout is not None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


_KEYWORD = re.compile(r"(?<![\w/.-])(num_beams|best_of|top_k|top_p|max_new_tokens)(?![\w/.-])")


def _with_option_names(sentence: str) -> str:
    """The keywords of Python's `AnswerOptions` as the options they are here."""
    return _KEYWORD.sub(
        lambda found: "--" + found[1].removeprefix("num_").replace("_", "-"), sentence
    )


class StderrLog(logging.Handler):
    """Warnings of the package as sentences on standard error."""

    def __init__(self) -> None:
        super().__init__()
        self._held: list[logging.LogRecord] | None = None
        self._of_data: set[str] = set()

    def forget(self) -> None:
        """Begin another command: what was written about data may be written once more."""
        self._of_data.clear()

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or keep it for later."""
        if self._held is not None:
            self._held.append(record)
            return
        words = record.getMessage()
        if str(record.name).startswith(
            "paligemma.tasks."
        ):  # commands read their data several times
            if words in self._of_data:
                return
            self._of_data.add(words)
        trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
        _complain(words + (f"\n{trace}" if trace else ""))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep warnings until the end, while an answer is being written to the same screen."""
        self._held = []
        try:
            yield
        finally:
            records, self._held = self._held, None
            for record in records:
                self.emit(record)


stderr_log = StderrLog()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "color": True})
@click.version_option(package_name="paligemma")
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="Also say what is loaded from where, and how long it takes.",
)
def main(verbose: bool) -> None:
    """A picture and a prompt in; text, boxes and masks out.

    \b
    paligemma run photo.jpg "detect cat ; dog" --model google/paligemma2-3b-mix-448
    paligemma answer photo.jpg "what color is the car?" --json
    """
    # What Pillow warns of is said as an error or in words of ours.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    log = logging.getLogger("paligemma")
    log.handlers[:] = [stderr_log]
    stderr_log.forget()
    log.setLevel(logging.INFO if verbose else logging.WARNING)
