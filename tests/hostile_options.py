"""Values without sense for every option of every command, made from the parser itself."""

from __future__ import annotations

import random
from collections.abc import Iterator

import click

from paligemma import cli

NUMBERS = (
    *("nan", "inf", "-inf", "-0.0", "-1", "0", "1e300", "-1e300", "1e-300", "1e400"),
    *(str(10**30), str(-(10**30)), str(2**63), str(2**31), "1_0", "٣", "0x10", "1e3", "½"),
)
TEXTS = ("", " ", "\n", "x" * 300, "x" * 5000, "../..", "/", "\x1b]0;t\x07", "\udcff", "hpu", "😀")


def commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Words and parser of every command, those of groups included."""

    def walk(
        words: tuple[str, ...], command: click.Command
    ) -> Iterator[tuple[tuple[str, ...], click.Command]]:
        if not isinstance(command, click.Group):
            yield words, command
            return
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from walk((*words, name), below)

    yield from walk((), cli.main)


def hostile_words(command: click.Command) -> Iterator[tuple[str, ...]]:
    """Every option that takes a value, with every value that is hostile to its kind."""
    for option in command.params:
        if isinstance(option, click.Option) and not option.is_flag and not option.count:
            is_number = isinstance(
                option.type, click.types.IntParamType | click.types.FloatParamType
            )
            for value in NUMBERS if is_number else TEXTS:
                yield option.opts[0], value


def sampled(seed: int, num: int) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Words of a command with one hostile option; all where `num` is no less."""
    every = [
        (words, hostile) for words, command in commands() for hostile in hostile_words(command)
    ]
    return random.Random(seed).sample(every, min(num, len(every)))
