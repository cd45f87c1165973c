"""A full-size model beside transformers: loading, memory, time to the first token, tokens a second.

    python benchmarks/full_size.py --release google/paligemma-3b-pt-224

Writes a checkpoint with the release's shapes and random weights, then lets both engines answer the
same question about the same pixels from the same files, each in a process of its own, in turns.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from one_engine import Task
from random_checkpoint import CONFIGS, choose_config, count_parameters, write_checkpoint
from tqdm import tqdm

from paligemma.bench import machine
from paligemma.config import PaliGemmaConfig
from paligemma.pipeline.loading import LoadOptions, load_processor

PEER = "transformers"
MAX_NEW_TOKENS = 1024
TIMEOUT_S = 3600
_BANDWIDTH_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One line of the table; `key` is that of `one_engine.measure`."""

    key: str
    label: str
    unit: str
    more_is_better: bool = False


METRICS = (
    Metric(key="import_s", label="import", unit="s"),
    Metric(key="load_s", label="load", unit="s"),
    Metric(key="start_to_first_token_s", label="start of python to first token", unit="s"),
    Metric(key="first_token_cold_s", label="first token, first question", unit="s"),
    Metric(key="first_token_s", label="first token, later question", unit="s"),
    Metric(key="first_token_same_image_s", label="first token, same image again", unit="s"),
    Metric(key="decode_tokens_per_s", label="decoding", unit="tokens/s", more_is_better=True),
    Metric(key="peak_memory_loaded_gb", label="peak memory after loading", unit="GB"),
    Metric(key="peak_memory_gb", label="peak memory after answering", unit="GB"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    config = choose_config(options.config, options.release)
    name = options.release if options.config == "release" else options.config
    dtype = getattr(torch, options.dtype)
    folder = write_checkpoint(
        options.workdir, f"{name.replace('/', '--')}-{options.dtype}", config, dtype
    )
    engines = ["ours"] if options.peer == "none" else ["ours", options.peer]
    report = describe(options, config, name, sys.argv[1:] if arguments is None else arguments)
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Path(scratch) / "inputs.npz"
        report["num_prompt_tokens"] = write_inputs(inputs, folder, options.prompt, config)
        read_all(folder)
        report["rounds"] = run_rounds(engines, folder, inputs, options)
    report["summary"] = summarise(report["rounds"], engines)
    print(table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure a full-size model with random weights beside transformers."
    )
    parser.add_argument(
        "--release", default="google/paligemma-3b-pt-224", help="hub id whose shapes are measured"
    )
    parser.add_argument(
        "--workdir",
        type=Path,
        default=Path(tempfile.gettempdir()) / "paligemma-full-size",
        help="where the checkpoint is written, and found by the next run (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=bounded(256), default=len(os.sched_getaffinity(0)), help="of torch"
    )
    parser.add_argument(
        "--new-tokens", type=bounded(MAX_NEW_TOKENS, lowest=2), default=16, help="of every answer"
    )
    parser.add_argument("--rounds", type=bounded(100), default=3, help="processes per engine")
    parser.add_argument("--peer", choices=(PEER, "none"), default=PEER)
    parser.add_argument("--prompt", default="caption en")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--json", type=Path, help="also write everything measured to this file")
    # Small made-up models, for checks of this script.
    parser.add_argument("--config", choices=CONFIGS, default="release", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def bounded(highest: int, *, lowest: int = 1) -> Any:
    """A parser of whole numbers within bounds."""

    def number(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text) <= highest:
            raise argparse.ArgumentTypeError(f"must lie in {lowest}..{highest}, got {text!r}")
        return int(text)

    return number


def describe(
    options: argparse.Namespace, config: PaliGemmaConfig, name: str, arguments: Sequence[str]
) -> dict[str, Any]:
    """What was measured, where, and with what."""
    num_parameters = count_parameters(config)
    return {
        "command": shlex.join(["python", "benchmarks/full_size.py", *arguments]),
        "model": name,
        "num_parameters": num_parameters,
        "weights_gb": num_parameters * getattr(torch, options.dtype).itemsize / 1e9,
        "dtype": options.dtype,
        "num_new_tokens": options.new_tokens,
        "threads": options.threads,
        "machine": machine.describe("safetensors", *[PEER] * (options.peer == PEER)),
    }


def write_inputs(path: Path, folder: Path, prompt: str, config: PaliGemmaConfig) -> int:
    """A random picture and the prompt's ids for both engines; the length of what they read."""
    processor, _ = load_processor(folder, LoadOptions())
    side = config.vision.image_size_px
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    batch = processor.inference_batch([picture], [prompt])
    assert batch.images is not None
    np.savez(path, pixels=batch.images.numpy(), tokens=batch.tokens.numpy())
    return config.num_image_tokens + batch.tokens.shape[1]


def read_all(folder: Path) -> None:
    """Bring the files into memory's cache, so that no engine waits for the disk and no other."""
    buffer = bytearray(1 << 24)
    for path in sorted(folder.iterdir()):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def run_rounds(
    engines: Sequence[str], folder: Path, inputs: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One entry a round: engine -> what it measured and the bandwidth just before."""
    rounds = []
    bar = tqdm(total=options.rounds * len(engines), unit="process", leave=False)
    with bar:
        for number in range(options.rounds):
            measured: dict[str, Any] = {}
            # In turns, and the other first in every second round: a machine drifts.
            for engine in engines if number % 2 == 0 else reversed(engines):
                bar.set_description(f"round {number + 1}, {engine}")
                bandwidth = read_bandwidth_gb_per_s()
                task = Task(
                    folder=str(folder),
                    inputs=str(inputs),
                    dtype=options.dtype,
                    num_new_tokens=options.new_tokens,
                    num_threads=options.threads,
                    started_at=time.time(),
                )
                measured[engine] = run_engine(engine, task, inputs.parent) | {
                    "bandwidth_gb_per_s": bandwidth
                }
                bar.update()
            rounds.append(measured)
    return rounds


def run_engine(engine: str, task: Task, scratch: Path) -> dict[str, Any]:
    """Measure in a process of its own.

    Raises:
        SystemExit: the process failed; its last words are shown.
    """
    task_file, result_file = scratch / "task.json", scratch / "result.json"
    task_file.write_text(json.dumps(asdict(task)))
    result_file.unlink(missing_ok=True)
    script = Path(__file__).with_name("one_engine.py")
    done = subprocess.run(
        [sys.executable, str(script), engine, str(task_file), str(result_file)],
        env=os.environ
        | {"OMP_NUM_THREADS": str(task.num_threads), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode or not result_file.exists():
        raise SystemExit(f"{engine} failed ({done.returncode}):\n{done.stderr[-4000:]}")
    return json.loads(result_file.read_text())


def read_bandwidth_gb_per_s() -> float:
    """Best of several sums over memory much larger than the caches, with torch's threads."""
    data = torch.ones(_BANDWIDTH_BYTES // 8, dtype=torch.int64)
    best = math.inf
    for _ in range(6):
        start = time.perf_counter()
        data.sum()
        best = min(best, time.perf_counter() - start)
    return _BANDWIDTH_BYTES / best / 1e9


def summarise(rounds: list[dict[str, Any]], engines: Sequence[str]) -> dict[str, Any]:
    """Median, least and most of each metric, and how many times better ours is."""
    summary: dict[str, Any] = {}
    for metric in METRICS:
        row: dict[str, Any] = {}
        for engine in engines:
            values = [measured[engine][metric.key] for measured in rounds]
            row[engine] = {
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
            }
        if PEER in engines:
            ours, peer = row["ours"]["median"], row[PEER]["median"]
            row["times_better"] = ours / peer if metric.more_is_better else peer / ours
        summary[metric.key] = row
    if PEER in engines:
        summary["num_equal_ids"] = [
            num_equal(measured["ours"]["ids"], measured[PEER]["ids"]) for measured in rounds
        ]
    return summary


def num_equal(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Length of the common beginning."""
    pairs = zip(ours, theirs, strict=True)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), len(ours))


def table(report: dict[str, Any]) -> str:
    """What was measured, as Markdown."""
    summary, rounds = report["summary"], report["rounds"]
    engines = list(rounds[0])
    engines.sort(key=lambda engine: engine != "ours")
    heads = ["", *engines, *(["ours is better by"] if PEER in engines else [])]
    lines = [heads, ["---"] * len(heads)]
    for metric in METRICS:
        row = summary[metric.key]
        cells = [f"{metric.label}, {metric.unit}", *(spread(row[engine]) for engine in engines)]
        lines.append(cells + ([f"{row['times_better']:.2f} x"] if PEER in engines else []))
    bandwidths = [
        measured[engine]["bandwidth_gb_per_s"] for measured in rounds for engine in measured
    ]
    where = report["machine"]
    facts = [
        f"model: {report['model']}, random weights, {report['num_parameters']:,} parameters, "
        f"{report['dtype']}, {report['weights_gb']:.2f} GB",
        f"question: {report['num_prompt_tokens']} tokens read, {report['num_new_tokens']} written, "
        "greedy; files in the page cache",
        f"machine: {where['cpu']}, {where['num_cores']} cores, {where['memory_gb']} GB, "
        f"{where['system']}; {report['threads']} threads",
        f"memory bandwidth before each process: {min(bandwidths):.0f}..{max(bandwidths):.0f} GB/s",
        "versions: " + ", ".join(f"{name} {number}" for name, number in where["versions"].items()),
        f"median [least..most] of {len(rounds)} rounds, a process each, in turns",
    ]
    if PEER in engines:
        equal = ", ".join(map(str, summary["num_equal_ids"]))
        facts.append(f"equal ids from the start, by round: {equal} of {report['num_new_tokens']}")
    facts.append(f"command: {report['command']}")
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", *facts])


def spread(values: dict[str, float]) -> str:
    return f"{values['median']:.2f} [{values['min']:.2f}..{values['max']:.2f}]"


if __name__ == "__main__":
    main()
