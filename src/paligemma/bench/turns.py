"""Another engine beside this one, in turns, each in a process of its own."""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paligemma.bench.engine_process import OURS, EngineFailed, Worker
from paligemma.bench.machine import LimitsOfMachine, free_memory_bytes
from paligemma.bench.measure import BenchOptions, Question
from paligemma.bench.memory import Memory
from paligemma.bench.subject import Subject
from paligemma.errors import ConfigError
from paligemma.weights.catalog import resolve
from paligemma.weights.hf_config import hf_config
from paligemma.weights.shapes import parameter_shapes

# A peer's memory beside its weights: Python, libraries and activations.
_PEER_BYTES = 1_500_000_000
# First logits that differ by a larger share come from something else than rounding.
_UNEQUAL = 0.3
# Seconds and bytes beyond these were not measured.
_LEAST, _MOST = 1e-9, 1e18


@dataclass(frozen=True, kw_only=True)
class Peer:
    """What is compared with.

    Attributes:
        engine: "transformers" or "llama.cpp".
        python: an interpreter that has it.
        model: of llama.cpp the GGUF file; of transformers another folder than ours, or None.
        dtype: in which transformers computes.
    """

    engine: str
    python: str
    model: Path | None
    dtype: str


@dataclass(kw_only=True)
class Comparison:
    """What was measured in turns.

    Attributes:
        peer: the other engine.
        versions: engine -> version.
        load_s: engine -> seconds of its first loading.
        side_by_side: whether both models were in memory at once.
        turns: of each turn its round, engine, times, peak memory and what the machine did before.
        agreement: how far the first logits lie apart, where both have the same weights.
        failures: engine -> what became of it.
    """

    peer: Peer
    versions: dict[str, str | None] = field(default_factory=dict)
    load_s: dict[str, float] = field(default_factory=dict)
    side_by_side: bool = True
    turns: list[dict[str, Any]] = field(default_factory=list)
    agreement: dict[str, Any] | None = None
    failures: dict[str, str] = field(default_factory=dict)


def compare(
    subject: Subject,
    peer: Peer,
    options: BenchOptions,
    *,
    memory: Memory,
    on_progress: Callable[[str], None] = lambda words: None,
) -> Comparison:
    """Measure both engines in turns, A B A B; what fails ends that engine's turns alone.

    Args:
        memory: estimate of ours.
        on_progress: called with what is measured next.

    Raises:
        ConfigError: the peer is not there, or has nothing to load.
    """
    with tempfile.TemporaryDirectory() as scratch:
        tasks = _tasks(subject, peer, options, Path(scratch))
        free = free_memory_bytes()
        needed = memory.total + _peer_bytes(subject, peer)
        made = Comparison(peer=peer, side_by_side=free is None or needed <= free)
        can_agree = peer.engine == "transformers" and not subject.is_random
        run = _Turns(made, tasks, options, Path(scratch) if can_agree else None, on_progress)
        limits = LimitsOfMachine(subject.kind)
        with ExitStack() as stack:
            # The peer first: whether it is there is known before ours is loaded.
            kept = {e: stack.enter_context(run.start(e)) for e in reversed(list(tasks))}
            if not made.side_by_side:
                stack.close()
                kept = {}
            for engine in list(kept):
                run.load(engine, kept[engine])
            for number in range(options.repetitions):
                for engine in tasks:
                    if engine not in made.failures:
                        run.turn(number, engine, kept.get(engine), limits)
        if can_agree and not made.failures:
            try:
                made.agreement = _agreement(*(run.logits_file(one) for one in tasks))
            except EngineFailed as error:
                made.failures[peer.engine] = f"when answers were compared, {error}"
        return made


class _Turns:
    """The workers' side of a comparison."""

    def __init__(
        self,
        made: Comparison,
        tasks: Mapping[str, dict[str, Any]],
        options: BenchOptions,
        logits: Path | None,
        on_progress: Callable[[str], None],
    ) -> None:
        self._made, self._tasks, self._options = made, tasks, options
        self._logits, self._on_progress = logits, on_progress

    def logits_file(self, engine: str) -> Path:
        assert self._logits is not None
        return self._logits / f"{engine}.logits"

    def start(self, engine: str) -> Worker:
        python = sys.executable if engine == OURS else self._made.peer.python
        started = Worker(engine, python, self._tasks[engine]["threads"])
        self._made.versions[engine] = started.version
        return started

    def load(self, engine: str, process: Worker) -> bool:
        """Load and answer once, unmeasured; whether that went well."""
        self._on_progress(f"{engine} is loaded")
        wanted = {} if self._logits is None else {"logits": str(self.logits_file(engine))}
        try:
            loaded = process.ask(**self._tasks[engine])
            self._made.load_s.setdefault(engine, _number(loaded, "load_s"))
            self._checked(process.ask(**wanted))
        except EngineFailed as error:
            self._made.failures[engine] = f"while it was loaded, {error}"
            return False
        return True

    def turn(self, number: int, engine: str, kept: Worker | None, limits: LimitsOfMachine) -> None:
        """One turn of one engine, in a process that has it loaded or in one of its own."""
        with ExitStack() as stack:
            process = kept
            if process is None:
                try:
                    process = stack.enter_context(self.start(engine))
                except ConfigError as error:  # it did start before
                    self._made.failures[engine] = f"in round {number + 1}, {error}"
                    return
                if not self.load(engine, process):
                    return
            self._on_progress(f"round {number + 1} of {self._options.repetitions}, {engine}")
            before = limits.read()
            try:
                found = self._checked(process.ask())
            except EngineFailed as error:
                self._made.failures[engine] = f"in round {number + 1}, {error}"
                return
            self._made.turns.append(
                {"round": number + 1, "engine": engine, **found, "limits": asdict(before)}
            )

    def _checked(self, found: dict[str, Any]) -> dict[str, Any]:
        steps = found.get("steps_s")
        if not isinstance(steps, dict) or set(steps) != set(map(str, self._options.batches)):
            raise EngineFailed(f"it answered {json.dumps(found)[:80]}, which are no times")
        vision = None if found.get("vision_s") is None else _number(found, "vision_s")
        peak = found.get("peak_memory_bytes")
        prefill = _number(found, "prefill_s")
        return {
            "vision_s": vision,
            "prefill_s": prefill,
            "first_token_s": None if vision is None else vision + prefill,
            "steps_s": {batch: _number(steps, str(batch)) for batch in self._options.batches},
            "peak_memory_bytes": None if peak is None else _number(found, "peak_memory_bytes"),
        }


def _number(found: Mapping[str, Any], key: str) -> float:
    number = found.get(key)
    if type(number) not in (int, float) or not _LEAST < number < _MOST:  # type: ignore[operator]
        raise EngineFailed(f"it answered {number!r:.80} as {key}, which is no sensible number")
    return float(number)  # type: ignore[arg-type]


def _tasks(
    subject: Subject, peer: Peer, options: BenchOptions, scratch: Path
) -> dict[str, dict[str, Any]]:
    """Engine -> what it loads and is asked."""
    config = subject.config
    question = Question.draw(config, options)
    pixels = scratch / "pixels.f32"
    pixels.write_bytes(question.images.numpy().tobytes())
    threads = torch.get_num_threads()
    fixed = {
        "threads": threads,
        "pixels": str(pixels),
        "image_size_px": config.vision.image_size_px,
        "num_image_tokens": config.num_image_tokens,
        "tokens": question.tokens[:, : options.num_prompts[0]].tolist(),
        "num_new": options.num_new,
        "batches": options.batches,
    }
    if peer.engine == "llama.cpp":
        if peer.model is None or not _is_gguf(peer.model):
            raise ConfigError(
                "llama.cpp reads a GGUF file, "
                + (f"{peer.model} is none" if peer.model else "none was named")
                + "; name that of the text half with --peer-model"
            )
        own: dict[str, Any] = {"file": str(peer.model)}
    else:
        folder = peer.model
        if folder is not None and not folder.is_dir():
            raise ConfigError(
                f"transformers reads a folder, {str(folder)!r:.200} is none; name that of a model "
                "with --peer-model"
            )
        if subject.image_size_px is not None and not subject.is_random:
            raise ConfigError(
                "transformers reads a checkpoint at its own resolution, got "
                f"{subject.image_size_px} px; leave that out, or measure --random weights"
            )
        if folder is None and not subject.is_random:
            found = resolve(subject.name)
            found.require_plain("a comparison with transformers")
            if found.layout != "hf":
                raise ConfigError(
                    f"transformers reads safetensors, {subject.name:.200} is {found.layout}; write "
                    "them with paligemma convert, or measure --random weights"
                )
            folder = found.folder
        own = {
            "folder": None if folder is None else str(folder),
            "config": hf_config(config, dtype=getattr(torch, peer.dtype)),
            "dtype": peer.dtype,
        }
    asked = asdict(options) | {"num_prompts": options.num_prompts[:1]}
    return {
        OURS: {"threads": threads, "subject": asdict(subject), "options": asked},
        peer.engine: fixed | own,
    }


def _is_gguf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _peer_bytes(subject: Subject, peer: Peer) -> int:
    if peer.engine == "llama.cpp":
        assert peer.model is not None
        return peer.model.stat().st_size + _PEER_BYTES
    numbers = sum(map(math.prod, parameter_shapes(subject.config).values()))
    return numbers * getattr(torch, peer.dtype).itemsize + _PEER_BYTES


def _agreement(ours: Path, theirs: Path) -> dict[str, Any]:
    """How far the first logits lie apart; rows that only fill up the peer's table are left out."""
    try:
        a, b = (np.fromfile(path, np.float32) for path in (ours, theirs))
    except OSError as error:
        raise EngineFailed(f"its logits are not there ({error.strerror or error})") from error
    if len(b) < len(a):
        raise EngineFailed(f"it has {len(b)} logits, not {len(a)}")
    b = b[: len(a)]
    if not np.isfinite(b).all():
        raise EngineFailed("its logits are not finite")
    relative = float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-30))
    return {
        "largest_difference": float(np.abs(a - b).max()),
        "largest_logit": float(np.abs(b).max()),
        "relative": relative,
        "same_first_token": bool(a.argmax() == b.argmax()),
        "is_equal_work": relative <= _UNEQUAL,
    }


Value = Callable[[dict[str, Any]], float | None]


def _metrics(batches: Sequence[int]) -> list[tuple[str, Value, bool]]:
    """Name, value of a turn, and whether more is better."""

    def speed(batch: int) -> Value:
        return lambda turn: batch / turn["steps_s"][batch]

    return [
        ("first token, s", lambda turn: turn["first_token_s"], False),
        ("picture, s", lambda turn: turn["vision_s"], False),
        ("prompt, s", lambda turn: turn["prefill_s"], False),
        *((f"decode, batch {batch}, tokens/s", speed(batch), True) for batch in batches),
        (
            "peak memory, GB",
            lambda turn: turn["peak_memory_bytes"] and turn["peak_memory_bytes"] / 1e9,
            False,
        ),
    ]


def summary(made: Comparison, batches: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Metric -> median and range of each engine, and "times_better" of ours round by round."""
    rows: dict[str, dict[str, Any]] = {}
    for name, value, more_is_better in _metrics(batches):
        found: dict[str, dict[int, float]] = {OURS: {}, made.peer.engine: {}}
        for turn in made.turns:
            number = value(turn)
            if number is not None:
                found[turn["engine"]][turn["round"]] = number
        ours, theirs = found.values()
        ratios = [
            ours[k] / theirs[k] if more_is_better else theirs[k] / ours[k]
            for k in ours.keys() & theirs.keys()
        ]
        each = {engine: _spread(list(numbers.values())) for engine, numbers in found.items()}
        rows[name] = each | {"times_better": _spread(ratios)}
    return rows


def _spread(numbers: Sequence[float]) -> dict[str, float] | None:
    if not numbers:
        return None
    return {"median": statistics.median(numbers), "min": min(numbers), "max": max(numbers)}
