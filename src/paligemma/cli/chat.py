"""`paligemma chat`: ask one picture many things; it is encoded once."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from paligemma.cli import EXIT_BAD_INPUT, stderr_log
from paligemma.cli.answering import Asker, check_prompt
from paligemma.cli.ask_each import WhichFrame, opened
from paligemma.cli.line_reader import LineReader
from paligemma.cli.options import (
    ModelChoice,
    decoding_options,
    frame_option,
    model_options,
    object_options,
    overwrite_option,
)
from paligemma.cli.pictures import require_kept, require_pictures
from paligemma.cli.sections import SectionedCommand
from paligemma.cli.show import echo_json, overlay_paths, pictures_json, write_overlay
from paligemma.cli.stopping import Stopped
from paligemma.errors import PaliGemmaError, PromptError
from paligemma.processing.frames import Frames

if TYPE_CHECKING:
    from paligemma.outputs.detections import Detections
    from paligemma.outputs.types import TextAnswer
    from paligemma.pipeline.following import WrittenToken

HELP = """\
a question         is asked as "answer en ..."; see --lang
a prompt           such as "detect cat ; dog", "caption en" or "ocr" is asked as it is
/ask PROMPT        asks any text as it is, as a fine-tuned model may want it
/picture FILE      asks about another picture from now on
/save FILE.png     writes the picture with the last answer drawn on it
/json, /tokens     show the last answer as JSON, or its tokens with their probabilities
/quit              ends, as Ctrl-D does; Ctrl-C stops an answer"""


@click.command(cls=SectionedCommand)
@click.argument("picture")
@frame_option
@click.option("--lang", default="en", show_default=True, help="Language of questions and answers.")
@click.option("--json", "as_json", is_flag=True, help="An object a line, for each prompt.")
@click.option(
    "--history/--no-history",
    default=True,
    show_default=True,
    help="Keep the lines typed in a file of yours, for the arrow keys of the next chat.",
)
@overwrite_option
@model_options
@decoding_options
@object_options
def chat(
    picture: str,
    frame: WhichFrame,
    lang: str,
    as_json: bool,
    history: bool,
    overwrite: bool,
    model: ModelChoice,
    decoding: dict[str, Any],
    objects: dict[str, Any],
) -> None:
    """Ask PICTURE one thing after another; it is encoded once.

    A line is a question or a prompt; /help lists what else it may be. Lines may also come from a
    file or a pipe.

    \b
    paligemma chat photo.jpg --model google/paligemma2-3b-mix-448
    printf 'detect cat\\nwhat color is it?\\n' | paligemma chat photo.jpg --json
    """
    from paligemma.processing.prompts import answer_prompt

    answer_prompt("a bad --lang is reported before a model is loaded", lang)
    require_pictures([picture], model)
    asker = Asker(decoding, objects)
    talk = Chat(model, asker, lang=lang, as_json=as_json, overwrite=overwrite)
    talk.open(picture, frame)
    reader = LineReader(keeps_history=history)
    if reader.is_interactive:
        click.echo(f"paligemma: {talk.heading}; ask, or /help", err=True)
    with reader:
        failed = _converse(talk, reader)
    if failed and not reader.is_interactive:
        raise click.exceptions.Exit(EXIT_BAD_INPUT)


def _converse(talk: Chat, reader: LineReader) -> bool:
    """Take lines until they end; returns whether one of them could not be answered.

    Ctrl-C stops an answer or drops a line; a second one, with no line between, ends the program.
    """
    failed = was_stopped = False
    while not talk.is_over:
        try:
            line = reader.read()
            if line is None:
                break
            talk.take(line.strip())
            was_stopped = False
        except PaliGemmaError as error:
            click.echo(f"paligemma: {error}", err=True)
            failed, was_stopped = True, False
        except Stopped:
            raise
        except KeyboardInterrupt:
            if was_stopped or not reader.is_interactive:
                raise
            was_stopped = True
            click.echo("\npaligemma: stopped; Ctrl-C again, or Ctrl-D, ends the chat", err=True)
    return failed


class Chat:
    """One model and what was asked last.

    Args:
        model: loaded with the first picture.
        asker: asks with the options of the command.
        lang: of plain questions.
        as_json: whether each answer is printed as JSON.
        overwrite: whether overlays may replace any file.
    """

    def __init__(
        self, model: ModelChoice, asker: Asker, *, lang: str, as_json: bool, overwrite: bool
    ) -> None:
        self.is_over = False
        self._model, self._asker, self._lang = model, asker, lang
        self._as_json, self._overwrite = as_json, overwrite
        self._pg = model.load()
        self._has_explained = False
        self._last: tuple[str, TextAnswer | Detections, list[WrittenToken]] | None = None

    @property
    def heading(self) -> str:
        """The model and the picture that is asked."""
        height, width = self._picture.shape[:2]
        return f"{self._model.label} looks at {self._name}, {width} x {height} px"

    def open(self, name: str, frame: WhichFrame = None) -> None:
        """Ask about this picture from now on; after an error, about the one before."""
        require_pictures([name], self._model)
        pictures = opened(self._pg, (name,), frame)
        picture = pictures[0]
        self._encoded = self._pg.encode_image(Frames(pictures) if len(pictures) > 1 else picture)
        self._path, self._name = name, click.format_filename(name)
        self._picture, self._last = picture, None

    def take(self, line: str) -> None:
        """Do what a line says.

        Raises:
            PaliGemmaError: it cannot be done; the next line may be.
        """
        if not line:
            return
        if not line.startswith("/"):
            self._ask(line)
            return
        word, _, rest = line.partition(" ")
        command = self._commands.get(word)
        if command is None:
            raise PromptError(f"there is no command {word[:100]!r}; /help lists them")
        takes_text, do = command
        rest = rest.strip()
        if takes_text != bool(rest):
            how = "needs a text after it" if takes_text else "stands alone on its line"
            raise PromptError(f"{word} {how}; see /help")
        do(self, rest)

    def _as_prompt(self, line: str) -> str:
        from paligemma.processing.prompts import answer_prompt, clean_prompt, names_task

        if names_task(clean_prompt(line)[0]):
            return line
        prompt = answer_prompt(line, self._lang)
        if not self._has_explained:
            self._has_explained = True
            click.echo(
                f"paligemma: plain questions are asked as {prompt[:200]!r}; /ask asks as it is",
                err=True,
            )
        return prompt

    def _ask(self, line: str, *, as_it_is: bool = False) -> None:
        try:
            prompt = line if as_it_is else self._as_prompt(line)
            check_prompt(prompt)
            found, tokens = self._answer(prompt)
        except PaliGemmaError as error:
            if self._as_json:
                echo_json({"image": self._name, "prompt": line, "error": str(error)})
            raise
        self._last = prompt, found, tokens
        if self._as_json:
            self._show_json("")

    def _ask_as_it_is(self, line: str) -> None:
        self._ask(line, as_it_is=True)

    def _answer(self, prompt: str) -> tuple[TextAnswer | Detections, list[WrittenToken]]:
        """The answer, which is shown as it comes where it is text, and else when it is complete."""
        from paligemma.outputs.types import TextAnswer
        from paligemma.processing.prompts import clean_prompt, object_prompt

        tokens: list[WrittenToken] = []
        shown, streams = "", object_prompt(clean_prompt(prompt)[0]) is None and not self._as_json

        def show(token: WrittenToken) -> None:
            nonlocal shown, streams
            tokens.append(token)
            streams = streams and not token.text.startswith("<loc")
            if streams and token.text:
                click.echo(token.text, nl=False)
                shown += token.text

        with stderr_log.held():
            try:
                found = self._asker.ask(self._pg, self._encoded, prompt, show)
            except PaliGemmaError:
                if shown:
                    click.echo()
                raise
            if self._as_json:
                return found, tokens
            if isinstance(found, TextAnswer):
                click.echo(found.text.removeprefix(shown))
            else:
                click.echo(f"\n{found}" if shown else str(found))
        return found, tokens

    def _another_picture(self, name: str) -> None:
        self.open(_file_name(name))
        click.echo(f"paligemma: {self.heading}", err=True)

    def _save(self, name: str) -> None:
        prompt, found, _ = self._answered()
        (path,) = overlay_paths([self._path], Path(_file_name(name)))
        if path is not None:
            require_kept([self._path], [path], overwrite=self._overwrite)
            write_overlay(path, self._picture, prompt, found)

    def _show_json(self, _: str) -> None:
        prompt, found, _tokens = self._answered()
        picture = pictures_json([self._path], self._picture.shape[:2])
        echo_json({"model": self._model.name, **picture, "prompt": prompt, **found.to_json()})

    def _show_tokens(self, _: str) -> None:
        from math import exp

        for token in self._answered()[2]:
            piece = self._pg.processor.tokenizer.piece(token.id)
            click.echo(f"{token.id:6d} {exp(token.logprob):7.4f}  {piece!r}")

    def _answered(self) -> tuple[str, TextAnswer | Detections, list[WrittenToken]]:
        if self._last is None:
            raise PromptError("nothing was answered about this picture yet; ask it something first")
        return self._last

    def _show_help(self, _: str) -> None:
        click.echo(HELP)

    def _quit(self, _: str) -> None:
        self.is_over = True

    # Command -> whether a text follows it, and what it does.
    _commands: ClassVar[dict[str, tuple[bool, Callable[[Chat, str], None]]]] = {
        "/ask": (True, _ask_as_it_is),
        "/picture": (True, _another_picture),
        "/save": (True, _save),
        "/json": (False, _show_json),
        "/tokens": (False, _show_tokens),
        "/help": (False, _show_help),
        "/quit": (False, _quit),
    }


def _file_name(typed: str) -> str:
    """The name of a file as it was typed, or as terminals write one that is dropped on them."""
    if not os.path.exists(typed):
        try:
            words = shlex.split(typed)
        except ValueError:
            words = []
        if len(words) == 1:
            typed = words[0]
    return os.path.expanduser(typed)
