"""The toy benchmark over two Ray workers: `python distributed_run.py FOLDER`; prints JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from toy_task import TOY, ToyAnswerer

from paligemma.errors import DataError
from paligemma.eval.options import EvalOptions
from paligemma.eval.runner import evaluate
from paligemma.jobs.cluster import Cluster

OPTIONS = EvalOptions(batch_size=9, limit=100)
TWO = Cluster(make_answerer=ToyAnswerer, num_workers=2)


class Broken(ToyAnswerer):
    """Meets what it cannot answer."""

    def settings(self) -> dict[str, str]:
        raise DataError("the picture of this worker is gone")


def main(root: Path) -> None:
    alone = evaluate(TOY, ToyAnswerer(), None, "test", OPTIONS, root / "alone")
    spread = evaluate(TOY, TWO, None, "test", OPTIONS, root / "spread")
    path = root / "spread" / "predictions.jsonl"
    whole = path.read_bytes()
    # Cut in the middle of a batch and of a line.
    path.write_bytes(whole[: len(whole) // 2])
    again = evaluate(TOY, TWO, None, "test", OPTIONS, root / "spread")
    try:
        broken = Cluster(make_answerer=Broken, num_workers=2)
        evaluate(TOY, broken, None, "test", OPTIONS, root / "broken")
    except DataError as error:
        words = str(error)
    print(
        json.dumps(
            {
                "num": len(alone.predictions),
                "same": spread.predictions == alone.predictions,
                "same_key": spread.config.key == alone.config.key,
                "same_after_a_cut": again.predictions == alone.predictions,
                "duplicates": again.num_duplicates,
                "error": words,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
