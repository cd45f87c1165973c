"""The lines of metrics.jsonl and validation.jsonl, shown in TensorBoard, trackio or W&B as well.

The files come first; what is shown here is a copy, and needs an extra of the package.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from paligemma.errors import ConfigError
from paligemma.metrics.extras import missing_extra
from paligemma.train.loop import Log

# Name -> module that must be there.
LOGGERS = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}
_PROJECT = "paligemma"


def require_loggers(names: Sequence[str]) -> None:
    """Check, before any work, that each is known and installed.

    Raises:
        ConfigError: an unknown name.
        MissingExtraError: its package is not installed.
    """
    for name in names:
        if name not in LOGGERS:
            raise ConfigError(f"log_to must be one of {', '.join(LOGGERS)}, got {name!r:.100}")
        try:
            importlib.import_module(LOGGERS[name])
        except ImportError as error:
            raise missing_extra(name, name, f"logging to {name}") from error


@contextmanager
def opened_loggers(
    names: Sequence[str], folder: Path, settings: Mapping[str, Any]
) -> Iterator[Log]:
    """What takes a step and its numbers, and shows them everywhere; closed at the end."""
    opened: list[Log] = []
    with ExitStack() as stack:
        for name in dict.fromkeys(names):
            if name == "tensorboard":
                from torch.utils.tensorboard import SummaryWriter

                writer = SummaryWriter(folder / "tensorboard")
                stack.callback(writer.close)
                opened.append(_to_tensorboard(writer))
            else:
                module = importlib.import_module(LOGGERS[name])
                module.init(project=_PROJECT, name=folder.name, config=dict(settings))
                stack.callback(module.finish)
                opened.append(_to_module(module))

        def log(step: int, numbers: Mapping[str, float]) -> None:
            for one in opened:
                one(step, numbers)

        yield log


def _to_tensorboard(writer: Any) -> Log:
    def log(step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return log


def _to_module(module: Any) -> Log:
    return lambda step, numbers: module.log(dict(numbers), step=step)
