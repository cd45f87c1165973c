"""A server of the embedded model whose steps take a while; run by tests of how servers end."""

from __future__ import annotations

import os
import sys
import time

from paligemma.cli import main
from paligemma.pipeline.engine_queue import EngineQueue

STEP_S = float(os.environ["STEP_S"])
step = EngineQueue.step


def slowly(queue: EngineQueue) -> object:
    time.sleep(STEP_S)
    return step(queue)


EngineQueue.step = slowly  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.argv[1:1] = ["serve", "--model", "tiny", "--port", "0"]
    main()
