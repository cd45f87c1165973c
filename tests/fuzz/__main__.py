"""`python -m tests.fuzz --seed 0 --seconds 300`; exit 1 for a crash or a hang."""

from __future__ import annotations

import argparse
import importlib
import pickle
import sys
from pathlib import Path
from typing import cast

FUZZERS = (
    *("pictures", "checkpoints", "tokenizer_files", "runs", "results", "trainings"),
    *("options", "answers", "bodies", "uploads"),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description="Try hostile inputs.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FUZZERS)}; all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=300.0, help="of all fuzzers together")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="try a kept input once more")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from fuzz.frame import Fuzzer, fuzz

    names = options.names or FUZZERS
    if options.replay is not None:
        names = [options.replay.name.split("-")[0]]
    for name in names:
        if name not in FUZZERS:
            parser.error(f"{name!r} is no fuzzer; there are {', '.join(FUZZERS)}")
    fuzzers = [cast(Fuzzer, importlib.import_module(f"fuzz.{name}")) for name in names]
    if options.replay is not None:
        fuzzers[0].attempt(pickle.loads(options.replay.read_bytes()))
        return 0
    is_clean = True
    for fuzzer in fuzzers:
        report = fuzz(fuzzer, seed=options.seed, seconds=options.seconds / len(fuzzers))
        print(report, flush=True)
        is_clean &= report.is_clean
    return not is_clean


if __name__ == "__main__":
    sys.exit(main())
