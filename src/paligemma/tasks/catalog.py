"""All benchmarks by name; a family's module is imported when the catalogue is asked for."""

from __future__ import annotations

import difflib
from functools import cache
from importlib import import_module

from paligemma.errors import ConfigError
from paligemma.tasks.task import Task

# In the order of the documentation; each module holds `TASKS: tuple[Task, ...]`.
FAMILY_MODULES = (
    "captions.rows",
    "answers.rows",
    "documents.rows",
    "documents.counting",
    "answers.rsvqa",
    "answers.scienceqa",
    "answers.pairs",
    "video.rows",
    "grounding.referring",
    "grounding.detection",
    "robustness.rows",
    "structure.rows",
    "captions.reports",
    "scenes.rows",
)


@cache
def tasks() -> dict[str, Task]:
    """Every benchmark by its name.

    Raises:
        ConfigError: two benchmarks of one name.
    """
    found: dict[str, Task] = {}
    for module in FAMILY_MODULES:
        for task in import_module(f"paligemma.tasks.{module}").TASKS:
            if task.name in found:
                raise ConfigError(f"two benchmarks are named {task.name!r}; rename one")
            found[task.name] = task
    return found


def find_task(name: str) -> Task:
    """The benchmark of this name.

    Raises:
        ConfigError: no such benchmark; near names are offered.
    """
    known = tasks()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    offered = f"did you mean {' or '.join(near)}?" if near else f"it knows {', '.join(known)}"
    raise ConfigError(f"no benchmark is named {name!r}; {offered}")
