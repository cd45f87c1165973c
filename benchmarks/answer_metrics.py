"""Time and memory of the answer metrics at the size of the real sets, one thread.

    python benchmarks/answer_metrics.py [--questions 200000]

The bounds that the project keeps: VQA accuracy of 200 000 questions (two million annotators'
answers) within 10 s and 1 GB. Answers are drawn with the shares of VQAv2: a few frequent ones, and
a long tail.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from paligemma.metrics.answers import exact_match_measures, tallyqa_measures
from paligemma.metrics.documents import anls_measures, relaxed_accuracy_measures
from paligemma.metrics.measure import Measure
from paligemma.metrics.vqa import soft_accuracy_measures, vqa_measures

FREQUENT = ["yes", "no", "2", "1", "white", "a dog", "black/white", "two", "1,000", "on the table."]
TAIL = 30_000


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One metric.

    Attributes:
        metric: what was computed.
        num: questions.
        seconds: of the whole call.
        peak_mb: largest resident memory of the process so far, data included.
    """

    metric: str
    num: int
    seconds: float
    peak_mb: float


def drawn_answers(rng: random.Random, num: int) -> tuple[list[str], list[list[str]]]:
    """Predictions, and ten annotators' answers each, which mostly agree."""
    tail = [f"{rng.choice(FREQUENT)} thing-{n}" for n in range(TAIL)]
    predictions, answers = [], []
    for _ in range(num):
        main = rng.choice(FREQUENT) if rng.random() < 0.6 else rng.choice(tail)
        ten = [main if rng.random() < 0.7 else rng.choice(tail) for _ in range(10)]
        predictions.append(main if rng.random() < 0.8 else rng.choice(tail))
        answers.append(ten)
    return predictions, answers


def timed(metric: str, num: int, compute: Callable[[], list[Measure]]) -> Timing:
    gc.collect()
    start = time.perf_counter()
    compute()
    seconds = time.perf_counter() - start
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Timing(metric=metric, num=num, seconds=round(seconds, 3), peak_mb=round(peak_mb, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=200_000)
    num = parser.parse_args().questions
    rng = random.Random(0)
    ours, answers = drawn_answers(rng, num)
    types = [rng.choice(["yes/no", "number", "other"]) for _ in range(num)]
    first = [one[0] for one in answers]
    for timing in (
        timed("VQA accuracy", num, lambda: vqa_measures(ours, answers, types)),
        timed("soft accuracy", num, lambda: soft_accuracy_measures(ours, answers)),
        timed("exact match", num, lambda: exact_match_measures(ours, first, lower=True)),
        timed("counting", num, lambda: tallyqa_measures(ours, ["2"] * num)),
        timed("relaxed accuracy", num, lambda: relaxed_accuracy_measures(ours, first)),
        timed("ANLS", num, lambda: anls_measures(ours, answers)),
    ):
        print(json.dumps(asdict(timing)), flush=True)


if __name__ == "__main__":
    main()
