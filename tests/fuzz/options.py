"""Values without sense for the options of every command, through its parser."""

from __future__ import annotations

import os
import random

from fuzz.folders import program
from fuzz.models import model_folder
from hostile_options import commands, hostile_words
from tiny_folder import DESK

NAME = "options"
MAX_MB = 1024

# What a command needs beside its options; the others refuse before any work.
_PICTURE = dict.fromkeys(("caption", "read"), (str(DESK),))
_PROMPTED = dict.fromkeys(("run", "generate", "inspect"), (str(DESK), "ocr"))
_NAMED = dict.fromkeys(("answer", "detect", "segment"), (str(DESK), "star"))
_ARGUMENTS: dict[str, tuple[str, ...]] = _PICTURE | _PROMPTED | _NAMED


def make(rng: random.Random) -> tuple[str, list[str]]:
    """A command with one to three hostile options; what would work for long ends unparsed."""
    words, command = rng.choice([one for one in commands() if any(hostile_words(one[1]))])
    pairs = rng.choices(list(hostile_words(command)), k=rng.choice((1, 1, 2, 3)))
    given = [*words, *_ARGUMENTS.get(words[0], ())]
    if words[0] in _ARGUMENTS and words[0] != "inspect":
        given += ["--max-new-tokens", "2"]
    given += [word for pair in pairs if pair[0] != "--max-new-tokens" for word in pair]
    if words[0] in ("train", "demo") or words == ("eval", "scenes"):
        given.append("--no-such-option")
    return " ".join(given)[:200], given


def attempt(given: list[str]) -> None:
    """Run the command on a narrow random model."""
    os.environ["PALIGEMMA_MODEL"] = str(model_folder())
    program(*given)
