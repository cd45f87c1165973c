"""All benchmarks by name; the families are imported at the first look-up."""

import difflib
from functools import cache
from importlib import import_module

from paligemma.errors import ConfigError
from paligemma.tasks.task import Task

# Folders in the order of the documentation; the module `rows` of each holds its `TASKS`.
FAMILY_FOLDERS = (
    "captions",
    "answers",
    "documents",
    "video",
    "grounding",
    "robustness",
    "structure",
    "scenes",
    "own",
)


@cache
def tasks() -> dict[str, Task]:
    """Collect every benchmark by its name.

    Raises:
        ConfigError: two benchmarks share a name.
    """
    found: dict[str, Task] = {}
    for family in FAMILY_FOLDERS:
        for task in import_module(f"paligemma.tasks.{family}.rows").TASKS:
            if task.name in found:
                raise ConfigError(f"two benchmarks are named {task.name!r}; rename one")
            found[task.name] = task
    return found


def find_task(name: str) -> Task:
    """Find the benchmark of a name.

    Raises:
        ConfigError: no benchmark has this name; the error offers near ones.
    """
    known = tasks()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    offered = f"did you mean {' or '.join(near)}?" if near else f"it knows {', '.join(known)}"
    raise ConfigError(f"no benchmark is named {name!r}; {offered}")
