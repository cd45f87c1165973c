"""What a user may change about a run, and which of these changes alter an answer."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from paligemma.errors import ConfigError
from paligemma.example import MASK, NOISE, Asking, Example
from paligemma.processing.resize import require_resize_method
from paligemma.tasks.reading.prefixes import question_of
from paligemma.tasks.task import Task

MAX_BATCH_SIZE = 4096
MAX_WORKERS = 64
PREFIX, QUESTION = "{prefix}", "{question}"
_PLACE = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """How a benchmark is run; None takes what the benchmark prescribes.

    Attributes:
        limit: number of examples, drawn evenly by `seed`; None asks all.
        batch_size: number of examples answered together. It is part of the run's key, because an
            answer may depend on its batch by rounding.
        num_workers: threads that read pictures while the model answers; 0 reads in turn.
        prompt: the user's prompt, where "{prefix}" stands for the benchmark's own and "{question}"
            for the question in it, without `answer en` and choices.
        resize_method: one of `processing.resize.RESIZE_METHODS`.
        rules: rules of scoring, see `chosen_rules`; they change no answer.

    Raises:
        ConfigError: a value out of its range, or a prompt with another place than these.
    """

    limit: int | None = None
    seed: int = 0
    batch_size: int = 16
    num_workers: int = 2
    prompt: str | None = None
    resize_method: str | None = None
    num_beams: int | None = None
    max_new_tokens: int | None = None
    noise_piece: str = NOISE
    rules: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Imported late: the names of benchmarks and rules are asked for without torch.
        from paligemma.generate import MAX_BEAMS, MAX_NEW_TOKENS

        for name, value, low, high in (
            ("limit", self.limit, 1, None),
            ("batch_size", self.batch_size, 1, MAX_BATCH_SIZE),
            ("num_workers", self.num_workers, 0, MAX_WORKERS),
            ("num_beams", self.num_beams, 1, MAX_BEAMS),
            ("max_new_tokens", self.max_new_tokens, 1, MAX_NEW_TOKENS),
        ):
            if value is not None and (value < low or (high is not None and value > high)):
                bounds = f"{low}..{high}" if high is not None else f"{low} or more"
                raise ConfigError(f"{name} must be {bounds}, got {value}")
        if self.resize_method is not None:
            require_resize_method(self.resize_method)
        if self.prompt is not None and not self.prompt.strip():
            raise ConfigError(
                f"a prompt must hold some text, got {self.prompt!r}; write {PREFIX} where the "
                "benchmark's own words go"
            )
        for place in _PLACE.findall(self.prompt or ""):
            if place not in (PREFIX, QUESTION):
                raise ConfigError(
                    f"a prompt may hold {PREFIX}, the benchmark's own words, and {QUESTION}, the "
                    f"question in them, got {place[:80]!r}; write one of these"
                )

    def asking_of(self, task: Task) -> Callable[[Example], Asking]:
        """How each example is asked, with the user's changes; it pickles if `asking_for` does."""
        return partial(_asking, task.asking, task.asking_for, self._changes())

    def answering(self, task: Task) -> dict[str, Any]:
        """Keywords of `ModelAnswerer` for this benchmark; they pickle."""
        return {
            "asking_of": self.asking_of(task),
            "noise_piece": self.noise_piece,
            "needs_masks": task.asking.answer == MASK,
        }

    def _changes(self) -> dict[str, Any]:
        names = ("resize_method", "num_beams", "max_new_tokens")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def prompted(self, examples: Iterable[Example]) -> Iterator[Example]:
        """The examples with the prompts that the model is asked.

        Raises:
            ConfigError: "{question}" where the benchmark's words hold none.
        """
        for one in examples:
            yield one if self.prompt is None else replace(one, prefix=self._asked(one.prefix))

    def _asked(self, prefix: str) -> str:
        places = {PREFIX: prefix}
        if QUESTION in (self.prompt or ""):
            question = question_of(prefix)
            if question is None:
                raise ConfigError(
                    f"{QUESTION} stands for what follows `answer en`, but this benchmark asks "
                    f"{prefix[:80]!r}; write {PREFIX} for its own words"
                )
            places[QUESTION] = question
        return _PLACE.sub(lambda place: places[place[0]], self.prompt or "")

    def settings(self, task: Task) -> dict[str, Any]:
        """The options that change an answer, as JSON holds them."""
        asking = replace(task.asking, **self._changes())
        fields = {
            name: value
            for name, value in vars(asking).items()
            if name not in ("train_resize_method", "num_pictures")
        }
        return {**fields, "noise_piece": self.noise_piece, "batch_size": self.batch_size}


def _asking(
    general: Asking,
    special: Callable[[Example], Asking] | None,
    changes: Mapping[str, Any],
    example: Example,
) -> Asking:
    return replace(general if special is None else special(example), **changes)


def chosen_rules(task: Task, stated: Iterable[str]) -> dict[str, str]:
    """The rules of scoring that differ from the benchmark's defaults.

    Args:
        stated: "name=value" each; if a name comes twice, the last value counts.

    Raises:
        ConfigError: a rule or value that the benchmark does not offer.
    """
    found = {}
    for one in stated:
        name, _, chosen = one.partition("=")
        if chosen not in task.rules.get(name, ()):
            offered = [f"{rule}={choice}" for rule in task.rules for choice in task.rules[rule]]
            raise ConfigError(
                f"a rule of {task.name} must be one of {', '.join(offered)}, got {one[:80]!r}"
                if offered
                else f"{task.name} offers no rule of scoring, got {one[:80]!r}; leave it out"
            )
        found[name] = chosen
    return {name: chosen for name, chosen in found.items() if chosen != task.rules[name][0]}
