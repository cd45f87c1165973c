"""CIDEr and tokens of captions beside pycocoevalcap, on the same captions in the same minutes.

    pip install pycocoevalcap==1.2
    python benchmarks/caption_metrics.py [--images 40000] [--references 5] [--rounds 3]

CIDEr of both starts from the same tokens, in one process, in turns; the scores have to agree. The
tokeniser of the peer is a Java program, and its start counts, as it does for its users; without
Java that half is left out. Captions are drawn: scenes with a handful of words of their own over a
long-tailed vocabulary, so that references of an image resemble each other as people's do.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np

from paligemma.bench.machine import describe
from paligemma.metrics import ptb
from paligemma.metrics.caption import caption_measures
from paligemma.metrics.ptb import ptb_tokenize_batch

VOCABULARY = 12_000
FRAMES = (
    "a {0} {1} on a {2}",
    "the {0} is {3} near the {1} {2}",
    "two {0} and a {1} {3} in the {2}",
    "a close-up of a {0} with {1} {2}",
    "there is a {0} {3} next to a {2} that isn't {1}",
    "a man's {0}, {3} by the {2} of a {1} street",
    "an image of the {2} and {0} {1}",
)


def drawn_words(rng: random.Random) -> list[str]:
    syllables = [c + v for c in "bdfgklmnprstvz" for v in ("a", "e", "i", "o", "ai", "er", "on")]
    words: dict[str, None] = {}
    while len(words) < VOCABULARY:
        words["".join(rng.choice(syllables) for _ in range(rng.randint(2, 4)))] = None
    return list(words)


def drawn_captions(
    rng: random.Random, num_images: int, num_references: int
) -> tuple[list[str], list[list[str]]]:
    """One prediction and some references an image; one in eight has two sentences."""
    words = drawn_words(rng)
    shares = list(accumulate(1 / (rank + 3) for rank in range(len(words))))

    def caption(scene: list[str]) -> str:
        said = [word if rng.random() < 0.7 else draw() for word in scene]
        text = rng.choice(FRAMES).format(*said)
        if rng.random() < 0.125:
            text += f". {rng.choice(FRAMES).format(*said)}"
        return text[0].upper() + text[1:] + "."

    def draw() -> str:
        return rng.choices(words, cum_weights=shares)[0]

    predictions, references = [], []
    for _ in range(num_images):
        scene = [draw() for _ in range(4)]
        predictions.append(caption(scene))
        references.append([caption(scene) for _ in range(num_references)])
    return predictions, references


def cpu_seconds() -> float:
    """Of this process and the ones that it started: what a busy machine cannot change."""
    return sum(os.times()[:4])


def seconds_of(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds on the wall, and of processors."""
    start, cpu_start = time.perf_counter(), cpu_seconds()
    result = call()
    return time.perf_counter() - start, cpu_seconds() - cpu_start, result


def take_turns(
    rounds: int, ours: Callable[[], Any], theirs: Callable[[], Any]
) -> tuple[dict[str, list[float]], Any, Any]:
    """Seconds of each round; who begins changes from round to round."""
    times: dict[str, list[float]] = {"ours": [], "theirs": [], "ours_cpu": [], "theirs_cpu": []}
    results: dict[str, Any] = {}
    for number in range(rounds):
        turns = [("ours", ours), ("theirs", theirs)]
        for name, call in turns if number % 2 == 0 else turns[::-1]:
            seconds, cpu, results[name] = seconds_of(call)
            times[name].append(round(seconds, 3))
            times[f"{name}_cpu"].append(round(cpu, 3))
    return times, results["ours"], results["theirs"]


def report(what: str, times: dict[str, list[float]], agreement: str) -> None:
    line: dict[str, Any] = {"measured": what, **times}
    for unit in ("", "_cpu"):
        pairs = zip(times[f"ours{unit}"], times[f"theirs{unit}"], strict=True)
        line[f"ratio{unit}"] = round(statistics.median(a / b for a, b in pairs), 3)
    print(json.dumps(line | {"agreement": agreement}), flush=True)


def compare_cider(said: list[str], wanted: list[list[str]], rounds: int) -> None:
    from pycocoevalcap.cider.cider import Cider

    def ours() -> np.ndarray:
        per_example = caption_measures(said, wanted, tokenize=False)[0].per_example
        assert per_example is not None
        return per_example

    def theirs() -> np.ndarray:
        truth = dict(enumerate(wanted))
        return Cider().compute_score(truth, {key: [one] for key, one in enumerate(said)})[1]

    times, mine, peer = take_turns(rounds, ours, theirs)
    largest = float(np.abs(mine - peer).max())
    assert largest < 1e-9, f"the scores differ by {largest}"
    num = sum(map(len, wanted))
    report(
        f"CIDEr of {len(said)} captions with {num} references, s",
        times,
        f"per image within {largest:.1e}, corpus {mine.mean():.6f}",
    )


def compare_tokens(captions: list[str], rounds: int) -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    def ours() -> list[str]:
        ptb._piece.cache_clear()
        return ptb_tokenize_batch(captions)

    def theirs() -> list[str]:
        rows = {key: [{"caption": one}] for key, one in enumerate(captions)}
        return [one for (one,) in PTBTokenizer().tokenize(rows).values()]

    times, mine, peer = take_turns(rounds, ours, theirs)
    equal = sum(a == b for a, b in zip(mine, peer, strict=True))
    report(
        f"tokens of {len(captions)} captions, start of Java included, s",
        times,
        f"{equal} of {len(captions)} captions equal",
    )


def about_run() -> dict[str, Any]:
    def version(command: list[str]) -> str | None:
        if shutil.which(command[0]) is None:
            return None
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return (done.stdout + done.stderr).splitlines()[0]

    return {
        "command": " ".join(["python", *sys.argv]),
        "machine": describe("numpy", "pycocoevalcap"),
        "load": [round(one, 1) for one in os.getloadavg()],
        "threads": "1 (neither side uses more; Java chooses its own)",
        "java": version(["java", "-version"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--references", type=int, default=5, help="of each image")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    about = about_run()
    print(json.dumps(about), flush=True)
    said, wanted = drawn_captions(random.Random(0), options.images, options.references)
    every = [*said, *(one for of_image in wanted for one in of_image)]
    if about["java"]:
        compare_tokens(every, options.rounds)
    tokens = ptb_tokenize_batch(every)
    num = options.references
    references = [tokens[k : k + num] for k in range(options.images, len(tokens), num)]
    compare_cider(tokens[: options.images], references, options.rounds)


if __name__ == "__main__":
    main()
