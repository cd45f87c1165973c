"""A server of the embedded model whose steps, or whose loading, take a while; run by tests of how
servers end."""

from __future__ import annotations

import os
import sys
import time

from paligemma.cli import main
from paligemma.cli.options import ModelChoice
from paligemma.pipeline.engine_queue import EngineQueue

STEP_S, LOAD_S = (float(os.environ[name]) for name in ("STEP_S", "LOAD_S"))
step, load = EngineQueue.step, ModelChoice.load


def slowly(queue: EngineQueue) -> object:
    time.sleep(STEP_S)
    return step(queue)


def later(choice: ModelChoice) -> object:
    time.sleep(LOAD_S)
    return load(choice)


EngineQueue.step = slowly  # type: ignore[method-assign]
ModelChoice.load = later  # type: ignore[method-assign, assignment]

if __name__ == "__main__":
    sys.argv[1:1] = ["serve", "--model", "tiny", "--port", "0"]
    main()
