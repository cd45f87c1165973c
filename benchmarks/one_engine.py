"""Load a checkpoint with one engine and answer, in a process of its own; times and memory as JSON.

`full_size.py` starts it: python one_engine.py ours|transformers TASK.json RESULT.json
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is measured.

    Attributes:
        folder: checkpoint in the hub's layout.
        inputs: npz with pixels float32[1, R, R, 3] in [-1, 1] and tokens int64[1, T].
        dtype: of the file, in which both compute: "bfloat16" or "float32".
        num_new_tokens: length of every answer; the end token does not stop it.
        num_threads: of torch.
        started_at: time.time() when the process was started.
    """

    folder: str
    inputs: str
    dtype: str
    num_new_tokens: int
    num_threads: int
    started_at: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer: its ids and when each was known, in seconds since the question."""

    ids: list[int]
    times: list[float]

    @property
    def tokens_per_s(self) -> float:
        """Of the tokens after the first."""
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])


Ask = Callable[[], Answer]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One way to answer, its libraries imported.

    Attributes:
        load: the model, ready to answer.
        prepare: given the model, a function that answers anew from pixels and prompt; and one that
            encodes the image and returns a function that answers about it, if the engine can.
    """

    load: Callable[[], Any]
    prepare: Callable[[Any], tuple[Ask, Callable[[], Ask] | None]]


def peak_memory_gb() -> float:
    """Most memory that was resident so far, mapped weights included."""
    from paligemma.bench.machine import peak_memory_bytes

    return (peak_memory_bytes() or 0) / 1e9


def timed(tokens: Iterable[int]) -> Answer:
    """Drain a stream of ids; its computation starts with the first step."""
    start = time.perf_counter()
    ids, times = [], []
    for token in tokens:
        ids.append(token)
        times.append(time.perf_counter() - start)
    return Answer(ids=ids, times=times)


def our_engine(task: Task) -> Engine:
    """This package."""
    import numpy as np
    import torch

    from paligemma.batch import Batch
    from paligemma.generate import DecodeOptions, stream
    from paligemma.weights.load import load_model

    def prepare(model: Any) -> tuple[Ask, Callable[[], Ask]]:
        with np.load(task.inputs) as arrays:
            images = torch.from_numpy(arrays["pixels"])
            tokens = torch.from_numpy(arrays["tokens"])
        valid = torch.ones_like(tokens, dtype=torch.bool)
        batch = Batch(
            images=images, tokens=tokens, mask_ar=torch.zeros_like(tokens), mask_input=valid
        )
        options = DecodeOptions(
            max_new_tokens=task.num_new_tokens,
            banned_ids=(model.config.vocab.eos,),
            kv_cache_dtype=task.dtype,
        )

        def ask(soft_tokens: torch.Tensor | None = None) -> Answer:
            steps = stream(model, batch, options, soft_tokens=soft_tokens)
            return timed(int(step.tokens[0]) for step in steps)

        def encode() -> Ask:
            with torch.inference_mode():
                return partial(ask, model.encode_image(images))

        return ask, encode

    return Engine(load=lambda: load_model(task.folder), prepare=prepare)


def transformers_engine(task: Task) -> Engine:
    """The peer; it encodes the image anew for every question."""
    import numpy as np
    import torch
    from transformers import PaliGemmaForConditionalGeneration
    from transformers.generation.streamers import BaseStreamer

    class Clock(BaseStreamer):
        """Notes each new token; the first call brings the prompt."""

        def __init__(self) -> None:
            self.start = time.perf_counter()
            self.ids: list[int] = []
            self.times: list[float] = []
            self.has_prompt = False

        def put(self, value: torch.Tensor) -> None:
            if self.has_prompt:
                self.ids.append(int(value))
                self.times.append(time.perf_counter() - self.start)
            self.has_prompt = True

        def end(self) -> None:
            pass

    def load() -> Any:
        return PaliGemmaForConditionalGeneration.from_pretrained(
            task.folder, dtype=getattr(torch, task.dtype)
        ).eval()

    def prepare(model: Any) -> tuple[Ask, None]:
        with np.load(task.inputs) as arrays:
            pixels = torch.from_numpy(arrays["pixels"]).permute(0, 3, 1, 2).contiguous()
            tokens = torch.from_numpy(arrays["tokens"])
        config = model.config
        num_image_tokens = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        image_ids = tokens.new_full((1, num_image_tokens), config.image_token_id)
        ids = torch.cat((image_ids, tokens), dim=1)
        inputs = {
            "input_ids": ids,
            "pixel_values": pixels.to(model.dtype),
            "attention_mask": torch.ones_like(ids),
            "token_type_ids": torch.zeros_like(ids),  # the prompt is read in both directions
        }
        model.generation_config.eos_token_id = None

        def ask() -> Answer:
            clock = Clock()
            model.generate(
                **inputs, do_sample=False, max_new_tokens=task.num_new_tokens, streamer=clock
            )
            return Answer(ids=clock.ids, times=clock.times)

        return ask, None

    return Engine(load=load, prepare=prepare)


ENGINES = {"ours": our_engine, "transformers": transformers_engine}


def measure(name: str, task: Task) -> dict[str, Any]:
    """Everything that one process measures; full_size.py says what each number is."""
    start = time.perf_counter()
    import torch

    torch.set_num_threads(task.num_threads)
    engine = ENGINES[name](task)
    imported = time.perf_counter()
    model = engine.load()
    loaded = time.perf_counter()
    memory_loaded = peak_memory_gb()
    ask, encode = engine.prepare(model)
    asked_at = time.time()
    cold, warm = ask(), ask()
    result: dict[str, Any] = {
        "import_s": imported - start,
        "load_s": loaded - imported,
        "start_to_first_token_s": asked_at - task.started_at + cold.times[0],
        "first_token_cold_s": cold.times[0],
        "first_token_s": warm.times[0],
        "first_token_same_image_s": warm.times[0],
        "decode_tokens_per_s": warm.tokens_per_s,
        "peak_memory_loaded_gb": memory_loaded,
        "ids": warm.ids,
        "repeats_itself": cold.ids == warm.ids,
    }
    if encode is not None:
        again = encode()()
        result["first_token_same_image_s"] = again.times[0]
        result["repeats_itself"] &= again.ids == warm.ids
    return result | {"peak_memory_gb": peak_memory_gb()}


def main() -> None:
    engine, task_file, result_file = sys.argv[1:]
    task = Task(**json.loads(Path(task_file).read_text()))
    Path(result_file).write_text(json.dumps(measure(engine, task)))


if __name__ == "__main__":
    main()
