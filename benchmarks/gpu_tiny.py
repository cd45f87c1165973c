"""Train the embedded model on one GPU within some minutes, and bring the run home in small files.

    python benchmarks/gpu_tiny.py --output results                   # 480 s of a GPU
    python benchmarks/gpu_tiny.py --join results --output runs/tiny  # here: put it together again
    paligemma train tiny --budget card --output runs/tiny            # and go on, on a CPU

Where the time ends before the training does, its newest checkpoint is kept, and the same command
goes on with it on any machine. `--seconds 60 --device cpu --workers 1` tries the way without a GPU.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tarfile
import time
from io import BytesIO
from pathlib import Path

import torch

from paligemma.one_writer import one_writer
from paligemma.train.checkpoint import checkpoints

SHARD_BYTES = 15 << 20
_GRACE_S = 90


def train(run: Path, options: argparse.Namespace) -> float:
    """Train for a time at most; returns the seconds it took."""
    command = [sys.executable, "-m", "paligemma", "train", "tiny", "--output", str(run)]
    command += ["--budget", "card", "--workers", str(options.workers), "--quiet"]
    command += ["--precision", "bfloat16", "--device", options.device]
    if options.parts:
        command += ["--parts", str(options.parts)]
    began = time.monotonic()
    with subprocess.Popen(command) as process:
        try:
            process.wait(options.seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
    return time.monotonic() - began


def shards(run: Path, output: Path) -> list[Path]:
    """Write metrics, the newest checkpoint of each stage and the model as files of 15 MiB."""
    kept = [*run.glob("*/metrics.jsonl"), *(run / "model").glob("**/*")]
    stages = [path for path in run.iterdir() if path.is_dir() and path.name != "model"]
    for stage in stages:
        kept += [path for path in checkpoints(stage)[-1:] for path in path.glob("*")]
    if not kept:
        raise SystemExit(f"{run} holds no checkpoint yet; give it more --seconds")
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(path for path in kept if path.is_file()):
            archive.add(path, path.relative_to(run).as_posix())
    data = buffer.getvalue()
    output.mkdir(parents=True, exist_ok=True)
    found = []
    for number, start in enumerate(range(0, len(data), SHARD_BYTES)):
        found.append(output / f"tiny.tar.{number:03d}")
        found[-1].write_bytes(data[start : start + SHARD_BYTES])
    return found


def join(folder: Path, run: Path) -> None:
    """Unpack what `shards` wrote into the folder of a run."""
    data = b"".join(path.read_bytes() for path in sorted(folder.glob("tiny.tar.*")))
    if not data:
        raise SystemExit(f"{folder} holds no tiny.tar.000; name the folder of --output")
    run.mkdir(parents=True, exist_ok=True)
    with one_writer(run), tarfile.open(fileobj=BytesIO(data)) as archive:
        archive.extractall(run, filter="data")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--join", type=Path)
    parser.add_argument("--parts", type=Path)
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--run", type=Path, default=Path("/tmp/tiny-run"))
    options = parser.parse_args()
    if options.join:
        join(options.join, options.output)
        print(f"unpacked into {options.output}")
        return
    seconds = train(options.run, options)
    files = shards(options.run, options.output)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    record = {
        "command": " ".join(["python", "benchmarks/gpu_tiny.py", *sys.argv[1:]]),
        "seconds": round(seconds, 1),
        "device": name,
        "torch": torch.__version__,
        "finished": (options.run / "model" / "training.json").is_file(),
        "files": [path.name for path in files],
    }
    (options.output / "gpu_tiny.json").write_text(json.dumps(record, indent=1))
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
