"""The training loop: batches by step number, metrics as JSON lines, checkpoints, resume."""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from paligemma.errors import ConfigError, RunError
from paligemma.json_file import parse_json
from paligemma.one_writer import one_writer
from paligemma.train.checkpoint import TrainState, resume
from paligemma.train.data import BatchSource, MicroBatches, batches
from paligemma.train.distributed import world
from paligemma.train.optim import Optimizer
from paligemma.train.optim_config import OptimConfig
from paligemma.train.saving import Saver
from paligemma.train.schedule import ScheduleConfig
from paligemma.train.sharding import computed, gathered, is_sharded
from paligemma.train.watchdog import Watchdog
from paligemma.train.window import TOKENS, Window, words
from paligemma.whole_file import whole_file

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
# No run has as many steps: seeds and steps together give every step a number of its own.
_MAX_STEPS = 1_000_000_007
# Keeps the seeds of the parts of a step apart from those of other steps.
_PLACE_STRIDE = 0x9E3779B97F4A7C15
# Logged by nobody: how many processes are asked to end, and how many could not save.
_ASKED, _UNSAVED = "asked", "unsaved"


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How long a run takes, and how often it logs and saves.

    Attributes:
        total_steps: number of updates in the whole run, resumed parts included.
        stop_at: last update of a run that ends before its schedule; None runs the whole schedule.
        log_every: number of steps that are averaged into one line of metrics.jsonl.
        save_every: number of steps between checkpoints.
        num_workers: number of processes that make batches; 0 makes them in this process.
        keeps_frozen: see `TrainState`.
        dropout_seed: with the number of the step it fixes what torch draws in that step; None
            draws on from torch's global generator.
        batch_size: rows an update, for schedules in examples or epochs.
        data_size: rows an epoch, for schedules in epochs.
        hang_after: seconds after which a step, with the wait for its batch, ends the run.
        saves_in_background: whether checkpoints are written while the next steps run, from a copy
            in the host's memory.
    """

    total_steps: int
    stop_at: int | None = None
    log_every: int = 50
    save_every: int = 250
    num_workers: int = 1
    progress: bool = True
    keeps_frozen: bool = True
    dropout_seed: int | None = None
    batch_size: int | None = None
    data_size: int | None = None
    hang_after: float = 1800.0
    saves_in_background: bool = True


# Takes a step and its numbers.
Log = Callable[[int, Mapping[str, float]], None]


class Watch(Protocol):
    """What looks at a run between its updates, and may end it; it changes no update."""

    @property
    def ends_run(self) -> bool:
        """Whether no update is to follow."""
        ...

    def begin(self, step: int) -> None:
        """Called before the first update; what was seen after `step` will be repeated."""
        ...

    def is_due(self, step: int, *, is_last: bool) -> bool:
        """Whether to look after this many updates."""
        ...

    def look(self, step: int) -> None:
        """Look at the model, which is in eval mode and holds its averages, if it keeps any."""
        ...


def train(
    model: nn.Module,
    objective: nn.Module,
    source: BatchSource[Any],
    optim: OptimConfig,
    options: LoopOptions,
    folder: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
    log: Log | None = None,
) -> dict[str, Any]:
    """Train a model, from the newest checkpoint in the folder if it holds one.

    An interrupt (Ctrl-C, SIGTERM, SIGHUP) writes a checkpoint first. A run that is killed without
    warning loses at most `save_every` steps and repeats them on the same data. Where the update
    rule averages parameters, the model holds the averages at the end; checkpoints hold both.

    Args:
        objective: a module that is called with the model and a batch and returns the loss
            float32[] and a dict of scalars to log; its parameters are trained beside the model's.
        source: makes the batches, of any type that the objective takes.
        options: length of the run, and how often it logs and saves.
        folder: folder of the checkpoints and of metrics.jsonl.
        settings: what else must be equal for a run to resume, such as data and seed; stored as
            JSON.
        watch: looks at the model between updates.
        log: gets every line of metrics as a step with its numbers.

    Returns:
        The last line of metrics, the number of updates done as `step`, and as `begun_at` how many
        of them were done before.

    Raises:
        CheckpointError: the folder holds a run with another configuration, or a checkpoint cannot
            be written.
        ConfigError: another process writes to the folder, or it cannot be written.
        KeyboardInterrupt: the run was interrupted; its checkpoint is written.
        RunError: a loss or a gradient is not finite.
    """
    here = world()
    with ExitStack() as stack:
        here.on_first(lambda: stack.enter_context(one_writer(folder)))
        return _train(model, objective, source, optim, options, folder, settings or {}, watch, log)


def _train(
    model: nn.Module,
    objective: nn.Module,
    source: BatchSource[Any],
    optim: OptimConfig,
    options: LoopOptions,
    folder: Path,
    settings: Mapping[str, Any],
    watch: Watch | None,
    log: Log | None,
) -> dict[str, Any]:
    extra = dict(objective.named_parameters())
    optimizer = Optimizer(
        model,
        optim,
        total_steps=options.total_steps,
        batch_size=options.batch_size,
        data_size=options.data_size,
        extra_parameters=extra or None,
        extra_schedule=_first_live_schedule(optim) if extra else None,
    )
    state = TrainState(
        model=model, objective=objective, optimizer=optimizer, keeps_frozen=options.keeps_frozen
    )
    here = world()
    described = {"optim": asdict(optim), "total_steps": options.total_steps, **settings}
    meta = json.loads(json.dumps(described))
    beside = resume(folder, state, meta)
    machine = {
        "processes": here.size,
        "threads": torch.get_num_threads(),
        "workers": options.num_workers,
    }
    if beside is not None:
        logger.info("resumed at step %d", optimizer.steps_done)
        _say_changes(beside.get("machine", machine), machine)
    first = optimizer.steps_done
    here.on_first(lambda: drop_lines_after(folder / METRICS_FILE, first))
    if watch is not None:
        watch.begin(first)
    model.train()
    interrupted = _Interrupt()
    window = Window.of(beside or {})
    end = options.stop_at or options.total_steps
    if watch is not None and watch.ends_run:
        end = first
    shows = options.progress and here.is_first
    bar = tqdm(total=end, initial=first, unit="step", disable=not shows)
    watchdog = Watchdog(options.hang_after, here, getattr(source, "ids", lambda _: ()))
    watchdog.begin(first)
    saver = Saver(folder, state, meta, in_background=options.saves_in_background)
    try:
        for batch in window.timed(batches(source, first, end, options.num_workers)):
            optimizer.zero_grad()
            seed = options.dropout_seed
            if seed is not None:
                seed = seed * _MAX_STEPS + optimizer.steps_done
            values = _backward(model, objective, batch, seed)
            watchdog.arrive()
            if not is_sharded(model):  # else they were, as they were divided
                here.sum_gradients(optimizer.trained)
            # A signal may reach one process alone, and at another step; all end at the same.
            flags = {_ASKED: interrupted.asked is not None, _UNSAVED: saver.has_failed}
            values = here.summed({**values, **{name: float(x) for name, x in flags.items()}})
            stops = bool(values.pop(_ASKED))
            if values.pop(_UNSAVED):
                saver.wait()
            moved = optimizer.step()
            _require_finite(optimizer.steps_done, {"loss": values["loss"], **moved})
            window.add({**values, **moved})
            watchdog.rest()
            done = optimizer.steps_done
            last = done == end
            if watch is not None and watch.is_due(done, is_last=last):
                window.started += _look(watch, model, optimizer)
                last = last or watch.ends_run
            if done % options.log_every == 0 or last:
                line = window.line(done, optimizer.schedule_factors(done - 1), here.size)
                if here.is_first:
                    with (folder / METRICS_FILE).open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    if log is not None:
                        log(done, line)
                bar.set_postfix_str(words(line, optim.lr))
            if done % options.save_every == 0 or last or stops:
                saver.save({**window.to_json(), "machine": machine})
            bar.update()
            if last or stops:
                saver.wait()
            if stops:
                interrupted.stop()
            if last:
                break
            watchdog.begin(done)
    finally:
        watchdog.close()
        bar.close()
        interrupted.restore()
        saver.close()
    optimizer.keep_averages()
    model.eval()
    # Whoever edited the file has lost its lines, not the run.
    return {
        **here.on_first(lambda: _last_line(folder / METRICS_FILE)),
        "step": optimizer.steps_done,
        "begun_at": first,
    }


def _require_finite(step: int, values: Mapping[str, Tensor]) -> None:
    """Refuse a step that broke the model, before it is looked at or saved."""
    if broken := [name for name, value in values.items() if not math.isfinite(value)]:
        raise RunError(
            f"a training needs finite numbers, {broken[0]} of step {step} is "
            f"{float(values[broken[0]])}; lower the learning rate or warm up longer, checkpoints "
            "of earlier steps stay"
        )


def _look(watch: Watch, model: nn.Module, optimizer: Optimizer) -> float:
    """Let a watch look at the model as it would be kept now; returns the seconds it took."""
    started = time.monotonic()
    model.eval()
    with torch.random.fork_rng(devices=[]), optimizer.averaged(), gathered(model):
        watch.look(optimizer.steps_done)
    model.train()
    return time.monotonic() - started


def _backward(
    model: nn.Module, objective: nn.Module, batch: Any, seed: int | None
) -> dict[str, Tensor]:
    """Add the gradients of a batch, or of its parts in turn; returns the mean of what is logged.

    Args:
        seed: fixes what each part draws, with the place of its first row; None draws on.
    """
    if not isinstance(batch, MicroBatches):
        batch = MicroBatches((batch,), (1.0,))
    values: dict[str, Tensor] = {}
    for place, part, share in zip(
        batch.places or range(len(batch.parts)), batch.parts, batch.shares, strict=True
    ):
        if seed is not None:
            torch.manual_seed((seed + place * _PLACE_STRIDE) % 2**63)
        loss, logged = computed(objective, model, part)
        (loss if share == 1 else loss * share).backward()
        for name, value in {"loss": loss.detach(), **logged}.items():
            factor = float(share > 0) if name == TOKENS else share
            values[name] = values.get(name, 0) + value * factor
    return values


def _say_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warn where sums are added up in another order than before."""
    changed = [
        f"{name} from {before[name]} to {value}"
        for name, value in now.items()
        if before.get(name, value) != value
    ]
    if changed:
        logger.warning(
            "the run goes on with other %s: the same rows in the same order, but not bit-equal",
            ", ".join(changed),
        )


class _Interrupt:
    """Turns the first signal to end into a request, so that a step is never cut in half."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self._old: dict[int, Any] = {}
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP.
            # What the caller ignores, as nohup does, stays ignored.
            if number is None or signal.getsignal(number) == signal.SIG_IGN:
                continue
            try:
                self._old[number] = signal.signal(number, self._ask)
            except ValueError:  # Not in the main thread: the caller owns the signals.
                logger.debug("signals are handled by the main thread")

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.asked = number
        self.restore()

    def stop(self) -> NoReturn:
        """End as the signal would have ended the program: by the caller's handler, if it has one.

        Raises:
            KeyboardInterrupt: the caller has none, or it did not end the program.
        """
        handler = None if self.asked is None else self._old[self.asked]
        if callable(handler):
            handler(self.asked, None)
        raise KeyboardInterrupt

    def restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


def _first_live_schedule(optim: OptimConfig) -> ScheduleConfig:
    return next(schedule for _, schedule in optim.schedule if schedule is not None)


def drop_lines_after(path: Path, step: int) -> None:
    """Remove the lines of steps that will be repeated, and a line that a kill cut in half.

    Raises:
        ConfigError: the file is a link.
    """
    if path.is_symlink():
        raise ConfigError(
            f"a training writes its own {path.name}, {path} is a link to another file; move it away"
        )
    if not path.exists():
        return
    kept = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            is_done = parse_json(text)["step"] <= step
        except (ValueError, TypeError, LookupError):
            continue
        if is_done:
            kept.append(text + "\n")
    with whole_file(path) as partial:
        partial.write_text("".join(kept))


def _last_line(path: Path) -> dict[str, Any]:
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1]) if lines else {}
