"""A server of the embedded model whose steps, or whose loading, take a while; run by tests of how
servers end."""

from __future__ import annotations

import os
import sys
import time

from paligemma.cli import main
from paligemma.pipeline.engine_queue import EngineQueue
from paligemma.serve.offered import Named

STEP_S, LOAD_S = (float(os.environ[name]) for name in ("STEP_S", "LOAD_S"))
step, load = EngineQueue.step, Named.load


def slowly(queue: EngineQueue) -> object:
    time.sleep(STEP_S)
    return step(queue)


def later(model: Named) -> object:
    time.sleep(LOAD_S)
    return load(model)


EngineQueue.step = slowly  # type: ignore[method-assign]
Named.load = later  # type: ignore[method-assign, assignment]

if __name__ == "__main__":
    sys.argv[1:1] = ["serve", "--model", "tiny", "--port", "0"]
    main()
