"""`python -m tests.fuzz pictures --seed 0 --seconds 60`; exit 1 for a crash or a hang."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

FUZZERS = ("pictures",)


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description="Try hostile inputs.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FUZZERS)}; all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each fuzzer")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    is_clean = True
    for name in options.names or FUZZERS:
        if name not in FUZZERS:
            parser.error(f"{name!r} is no fuzzer; there are {', '.join(FUZZERS)}")
        report = importlib.import_module(f"fuzz.{name}").run(options.seed, options.seconds)
        print(report, flush=True)
        is_clean &= report.is_clean
    return not is_clean


if __name__ == "__main__":
    sys.exit(main())
