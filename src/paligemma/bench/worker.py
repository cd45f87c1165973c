"""A process that loads one engine and measures it whenever it is asked, by lines of JSON.

    PYTHON worker.py ours|transformers|llama.cpp

It is run by path, by any Python that has the engine: nothing but the standard library is imported
for the others. It writes a line when the engine's libraries are imported. The first line it reads
says what to load, each further one asks for a turn; every line is answered by one.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Task = dict[str, Any]
# A turn: whether the first logits are wanted -> times, and float32 bytes of the logits.
Turn = Callable[[bool], tuple[dict[str, Any], bytes]]


class Clock:
    """When each new token of a batch was known, in seconds; a streamer of transformers."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._has_prompt = False
        self._start = time.perf_counter()

    def put(self, _: object = None) -> None:
        """Note a token; the first call brings the prompt."""
        if self._has_prompt:
            self.times.append(time.perf_counter() - self._start)
        self._has_prompt = True

    def end(self) -> None:
        """Nothing is left to do."""

    def step_s(self) -> float:
        """Median time of a token after the first."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return statistics.median(after - before for before, after in pairs)


def ours(task: Task) -> Turn:
    """This package."""
    import torch

    from paligemma.bench.machine import Limits
    from paligemma.bench.measure import BenchOptions, Question, repetition
    from paligemma.bench.subject import Subject
    from paligemma.kernels.attention import soft_cap

    torch.set_num_threads(task["threads"])
    model = Subject(**task["subject"]).load()
    options = BenchOptions(**task["options"])
    question = Question.draw(model.config, options)
    nothing = Limits(bytes_per_s=None, operations_per_s=None)

    def turn(wants_logits: bool) -> tuple[dict[str, Any], bytes]:
        timing, logits = repetition(model, options, question, nothing)
        cap = model.config.text.final_softcap  # transformers caps the first logits too
        capped = logits if cap is None else soft_cap(logits, cap)
        times = {"vision_s": timing.vision_s, "prefill_s": timing.prefill_s}
        return times | {"steps_s": timing.steps_s}, capped.numpy().tobytes()

    return turn


def transformers(task: Task) -> Turn:
    """The same checkpoint, or its shapes with weights of its own."""
    torch, library = importlib.import_module("torch"), importlib.import_module("transformers")
    torch.set_num_threads(task["threads"])
    kind, dtype = library.PaliGemmaForConditionalGeneration, getattr(torch, task["dtype"])
    if task["folder"] is None:
        torch.set_default_dtype(dtype)
        with importlib.import_module("transformers.initialization").no_init_weights():
            model = kind(library.PaliGemmaConfig.from_dict(task["config"])).eval()
        torch.set_default_dtype(torch.float32)
        model.tie_weights()
        _fill(torch, model)
    else:
        model = kind.from_pretrained(task["folder"], dtype=dtype, local_files_only=True).eval()
    model.generation_config.eos_token_id = None
    side = task["image_size_px"]
    pixels = torch.frombuffer(bytearray(Path(task["pixels"]).read_bytes()), dtype=torch.float32)
    images = pixels.view(1, side, side, 3).permute(0, 3, 1, 2).to(dtype)
    image = torch.full((1, task["num_image_tokens"]), model.config.image_token_id)
    marks: list[float] = []
    tower = next(one for one in model.modules() if type(one).__name__ == "SiglipVisionModel")
    tower.register_forward_pre_hook(lambda *_: marks.append(time.perf_counter()))
    tower.register_forward_hook(lambda *_: marks.append(time.perf_counter()))

    def answer(batch: int, **wanted: bool) -> tuple[Clock, Any]:
        ids = torch.cat((image.expand(batch, -1), torch.tensor(task["tokens"][:batch])), dim=1)
        clock = Clock()
        found = model.generate(
            input_ids=ids,
            pixel_values=images.expand(batch, -1, -1, -1),
            attention_mask=torch.ones_like(ids),
            token_type_ids=torch.zeros_like(ids),  # the prompt is read in both directions
            do_sample=False,
            max_new_tokens=task["num_new"] + 1,
            streamer=clock,
            **wanted,
        )
        return clock, found

    def turn(wants_logits: bool) -> tuple[dict[str, Any], bytes]:
        marks.clear()
        wanted = {"return_dict_in_generate": True, "output_logits": True} if wants_logits else {}
        clock, found = answer(1, **wanted)
        vision = marks[1] - marks[0]
        steps = {
            batch: (clock if batch == 1 else answer(batch)[0]).step_s() for batch in task["batches"]
        }
        logits = found.logits[0][0].float().numpy().tobytes() if wants_logits else b""
        times = {"vision_s": vision, "prefill_s": clock.times[0] - vision, "steps_s": steps}
        return times, logits

    return turn


def _fill(torch: Any, model: Any) -> None:
    """Give parameters values as `random_model` does; a peer's own drawing takes half an hour."""
    circle, place = torch.randn(2**24 - 3), 0
    circle = circle.to(next(model.parameters()).dtype)
    for parameter in model.parameters():
        left = parameter.data.view(-1)
        scale = 0.1 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
        while len(left):
            part = circle[place : place + len(left)]
            torch.mul(part, scale, out=left[: len(part)])
            left, place = left[len(part) :], (place + len(part)) % len(circle)


def llama_cpp(task: Task) -> Turn:
    """The text half: as many tokens of text as there are of picture and prompt."""
    lc, np = importlib.import_module("llama_cpp"), importlib.import_module("numpy")
    lc.llama_backend_init()
    wanted = lc.llama_model_default_params()
    wanted.n_gpu_layers = 0
    model = lc.llama_model_load_from_file(task["file"].encode(), wanted)
    if not model:
        raise ValueError(f"{task['file']} cannot be loaded")
    num, rows = task["num_image_tokens"] + len(task["tokens"][0]), max(task["batches"])
    each = -(-(num + task["num_new"] + 1) // 256) * 256
    sizes = lc.llama_context_default_params()
    sizes.n_ctx, sizes.n_batch, sizes.n_seq_max = each * rows, max(num, rows), rows
    sizes.n_threads = sizes.n_threads_batch = task["threads"]
    context = lc.llama_init_from_model(model, sizes)
    size = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
    memory, batch = lc.llama_get_memory(context), lc.llama_batch_init(sizes.n_batch, 0, 1)
    prompt = np.random.default_rng(0).integers(300, min(20_000, size), num)

    def decode(tokens: Any, positions: Any, sequences: Any) -> None:
        batch.n_tokens = len(tokens)
        for k, (token, position, row) in enumerate(zip(tokens, positions, sequences, strict=True)):
            batch.token[k], batch.pos[k] = int(token), int(position)
            batch.n_seq_id[k], batch.seq_id[k][0] = 1, int(row)
            batch.logits[k] = len(set(sequences)) > 1 or k == len(tokens) - 1
        if lc.llama_decode(context, batch):
            raise ValueError("llama_decode failed")

    def best(place: int) -> int:
        return int(np.ctypeslib.as_array(lc.llama_get_logits_ith(context, place), (size,)).argmax())

    def answer(num_rows: int) -> Clock:
        lc.llama_memory_clear(memory, True)
        clock = Clock()
        clock.put()
        decode(prompt, range(num), [0] * num)
        tokens = [best(-1)] * num_rows
        clock.put()
        for row in range(1, num_rows):
            lc.llama_memory_seq_cp(memory, 0, row, -1, -1)
        for step in range(task["num_new"]):
            decode(tokens, [num + step] * num_rows, range(num_rows))
            tokens = [best(place) for place in range(num_rows)]
            clock.put()
        return clock

    def turn(_: bool) -> tuple[dict[str, Any], bytes]:
        clocks = {rows: answer(rows) for rows in task["batches"]}
        first = clocks.get(1) or answer(1)
        steps = {rows: clock.step_s() for rows, clock in clocks.items()}
        return {"vision_s": None, "prefill_s": first.times[0], "steps_s": steps}, b""

    return turn


ENGINES = {"ours": ours, "transformers": transformers, "llama.cpp": llama_cpp}
# Engine -> module that must be there, and the name of its package.
NEEDS = {
    "ours": ("paligemma.bench.measure", "paligemma"),
    "transformers": ("transformers.models.paligemma.modeling_paligemma", "transformers"),
    "llama.cpp": ("llama_cpp", "llama-cpp-python"),
}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from its sources
        return None


def _peak_memory_bytes() -> int | None:
    """As `machine.peak_memory_bytes`, which another Python does not have."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def main() -> None:
    """Serve one engine until standard input ends."""
    # The folder of this file holds no libraries, and what they print is no answer.
    sys.path[:] = [one for one in sys.path if one != str(Path(__file__).parent)]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**body: Any) -> None:
        answers.write(json.dumps(body) + "\n")
        answers.flush()

    engine = sys.argv[1]
    module, package = NEEDS[engine]
    try:
        importlib.import_module(module)
    except ImportError as error:
        say(missing=package, reason=str(error))
        return
    say(version=_version(package))
    turn: Turn | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            start = time.perf_counter()
            if turn is None:
                turn = ENGINES[engine](request)
                found: dict[str, Any] = {"load_s": time.perf_counter() - start}
            else:
                found, logits = turn("logits" in request)
                if "logits" in request:
                    Path(request["logits"]).write_bytes(logits)
        except Exception as error:  # whatever an engine raises is the answer
            say(error=f"{type(error).__name__}: {error}")
            return
        say(**found, peak_memory_bytes=_peak_memory_bytes())


if __name__ == "__main__":
    main()
