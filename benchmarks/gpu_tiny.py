"""Train the embedded model on one GPU within some minutes, and bring the run home in small files.

    python benchmarks/gpu_tiny.py --output results                   # 480 s of a GPU
    python benchmarks/gpu_tiny.py --join results --output runs/tiny  # here: put it together again

A finished run is its model with the metrics, two files of 15 MiB. Of a run that was cut the newest
checkpoint of its newest stage comes home, its moments rounded to bfloat16, in four files; it goes
on on any machine, on a CPU too:

    paligemma train tiny --budget card --precision bfloat16 --output runs/tiny

`--seconds 60 --device cpu --workers 1` tries the way without a GPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from io import BytesIO
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from paligemma.one_writer import one_writer
from paligemma.tiny.stages import BUDGETS
from paligemma.train.checkpoint import checkpoints
from paligemma.weights.hashes import sha256

SHARD_BYTES = 15 << 20
_SHARDS = "tiny.tar.*"
_GRACE_S = 90


def train(run: Path, options: argparse.Namespace) -> float:
    """Train for a time at most; returns the seconds it took.

    Raises:
        SystemExit: the training failed; what the folder holds is then of another run.
    """
    command = [sys.executable, "-m", "paligemma", "train", "tiny", "--output", str(run)]
    command += ["--budget", "card", "--workers", str(options.workers), "--quiet"]
    command += ["--precision", "bfloat16", "--device", options.device]
    if options.parts:
        command += ["--parts", str(options.parts)]
    began = time.monotonic()
    status = 0
    with subprocess.Popen(command) as process:
        try:
            status = process.wait(options.seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
    if status:
        raise SystemExit(f"the training ended with {status}, see above; nothing is brought home")
    return time.monotonic() - began


def shards(run: Path, output: Path) -> list[Path]:
    """Write the metrics with the finished model, or with the newest checkpoint, in small files."""
    kept = {path.relative_to(run).as_posix(): path for path in run.glob("*/metrics.jsonl")}
    if (run / "model" / "training.json").is_file():
        kept |= {f"model/{path.name}": path for path in (run / "model").iterdir()}
    else:
        kept |= _newest(run, output / "narrow")
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=3) as archive:
        for name, path in sorted(kept.items()):
            archive.add(path, name)
    shutil.rmtree(output / "narrow", ignore_errors=True)
    data = buffer.getvalue()
    output.mkdir(parents=True, exist_ok=True)
    for path in output.glob(_SHARDS):  # of a longer run
        path.unlink()
    found = []
    for number, start in enumerate(range(0, len(data), SHARD_BYTES)):
        found.append(output / f"tiny.tar.{number:03d}")
        found[-1].write_bytes(data[start : start + SHARD_BYTES])
    return found


def _newest(run: Path, narrow: Path) -> dict[str, Path]:
    """Files of the newest checkpoint by their names in the run; two of them are rewritten."""
    begun = [run / stage.name for stage in BUDGETS["card"] if checkpoints(run / stage.name)]
    if not begun:
        raise SystemExit(f"{run} holds no checkpoint yet; give it more --seconds")
    newest = checkpoints(begun[-1])[-1]
    found = {path.relative_to(run).as_posix(): path for path in newest.iterdir()}
    narrow.mkdir(parents=True, exist_ok=True)
    # Moments need few digits, and those that are left out need no room once compressed.
    moments = load_file(newest / "optimizer.safetensors")
    short = {name: value.bfloat16().to(value.dtype) for name, value in moments.items()}
    save_file(short, narrow / "optimizer.safetensors")
    state = json.loads((newest / "state.json").read_text())
    state["sha256"]["optimizer"] = sha256(narrow / "optimizer.safetensors")
    (narrow / "state.json").write_text(json.dumps(state))
    return found | {
        (newest / path.name).relative_to(run).as_posix(): path for path in narrow.iterdir()
    }


def join(folder: Path, run: Path) -> None:
    """Unpack what `shards` wrote into the folder of a run."""
    paths = sorted(folder.glob(_SHARDS))
    for number, path in enumerate(paths or [folder]):
        if path.name != (name := f"tiny.tar.{number:03d}"):
            raise SystemExit(f"{folder} holds no {name}; name the folder of --output, whole")
    data = BytesIO(b"".join(path.read_bytes() for path in paths))
    run.mkdir(parents=True, exist_ok=True)
    try:
        # To its end, where its sum is checked, before anything is unpacked.
        with tarfile.open(fileobj=data) as archive:
            archive.getmembers()
    except (tarfile.ReadError, EOFError, OSError, zlib.error) as error:
        raise SystemExit(f"{paths[-1]} is not the last file, or one is damaged: {error}") from error
    data.seek(0)
    with one_writer(run), tarfile.open(fileobj=data) as archive:
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
        is_finished = (options.output / "model" / "training.json").is_file()
        print(f"unpacked into {options.output}, {'the finished model' if is_finished else 'cut'}")
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
